"""A single child's run: its step against plain PyTorch, its start against the supernet, and whole runs on digits."""

import dataclasses
import json
import re
import signal
import sys
from types import SimpleNamespace

import forks
import jax
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from paths import ROOT
from PIL import Image
from reference_torch import Child, load_slice
from run_lab import (
    CONFIG,
    assert_same_bits,
    environment,
    finish,
    last_checkpoint,
    records,
    signal_at,
    start,
    steps_of,
    without_speed,
)
from sandwich_cases import MEAN, RATE, SGD, SIDE, STD, batches, torch_images
from tiny import CLASSES, assert_close, flat, graphdef

from bignas_jax.config import fields as configs
from bignas_jax.config.files import load_run_options, to_json
from bignas_jax.config.options import Options
from bignas_jax.config.recipes import load_config
from bignas_jax.errors import ConfigError
from bignas_jax.nets.slicing import single, slice_params
from bignas_jax.programs.devices import make_mesh, replicate
from bignas_jax.programs.weights import build
from bignas_jax.runs import assess as reporting
from bignas_jax.runs.checkpoint import Checkpoints
from bignas_jax.runs.folder import begun
from bignas_jax.runs.identity import claim
from bignas_jax.runs.session import Session
from bignas_jax.spaces.registry import space_of
from bignas_jax.step.members.registry import make_members
from bignas_jax.step.optimizer import optimizer
from bignas_jax.step.recipe import Recipe
from bignas_jax.step.state import TrainState
from bignas_jax.step.train_step import TrainStep
from bignas_jax.training import loop as training
from bignas_jax.training.origin import Origin, resolve
from configs import child as recipe_of_a_child

# Between the extremes of the space of run_lab.CONFIG, as another process would write it.
ARCH = {"resolution": 8, "width": [8, 8, 16, 16], "kernel_size": [3, 3], "expand_ratio": [2, 2], "depth": [2, 1]}
STEPS = 24


def test_steps_of_a_child_equal_ordinary_training_in_pytorch(tiny_v3):
    made = tiny_v3
    arch = dataclasses.replace(made.space.smallest, resolution=SIDE - 4, depth=(2, 1, 1), kernel_size=(3, 5, 3))
    space, params = single(made.space, arch), slice_params(made.space, made.params, arch)
    recipe = Recipe(num_random=2, label_smoothing=0.1, mean=MEAN, std=STD)
    mesh = make_mesh(1, {})
    trainer = TrainStep(space, graphdef(space, CLASSES), recipe, optimizer(SGD, lambda step: RATE), mesh)
    state = trainer.init(params)
    trainer.compile(state, batches()[0], progress=False)
    assert set(trainer.executables) == {*trainer.members.programs(space), "update"} and len(trainer.executables) == 2
    assert make_members(space, recipe).architectures(0) == (arch,) and make_members(space, recipe).names == ("child",)

    net = load_slice(Child(made.space, arch, CLASSES), made.tensors).statistics("batch")
    groups = [dict(params=[p for p in net.parameters() if p.ndim > 1], weight_decay=SGD.weight_decay),
              dict(params=[p for p in net.parameters() if p.ndim == 1])]  # fmt: skip
    sgd = torch.optim.SGD(groups, RATE, 0.9, nesterov=True)
    for step, batch in enumerate([*batches(), *batches(1)]):
        state, metrics = trainer(state, jax.device_put(batch, mesh.devices.flat[0]), step)
        sgd.zero_grad()
        logits = net(torch_images(batch, arch.resolution).permute(0, 3, 1, 2))
        loss = F.cross_entropy(logits, torch.tensor(batch["label"]).long(), label_smoothing=0.1)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), SGD.clip_norm)
        sgd.step()
        np.testing.assert_allclose(metrics["loss"], [loss.item()], rtol=1e-4)
    kernel = net.classifier["linear"]["linear"].weight.detach().numpy().T
    assert_close(state.params["classifier"]["conv"]["kernel"], kernel, rtol=1e-3)
    assert np.abs(kernel - params["classifier"]["conv"]["kernel"]).max() > 1e-3


def made(lab, supernet="supernet", **changes):
    """The options of a child's run, as a command line would give them."""
    config = load_config(lab.folder / "tiny.py")
    values = dict(arch=str(lab.arch), init_from=str(lab.folder / supernet), max_steps=STEPS) | changes
    for name, value in values.items():
        *path, last = name.split("__")
        owner = config
        for part in path:
            owner = owner[part]
        owner[last] = value
    config = configs.canonical(config)
    configs.validate(config)
    return Options.of(config)


def arguments(lab, **changes):
    """The same on a command line."""
    values = dict(arch=str(lab.arch), init_from=str(lab.folder / "supernet"), max_steps=STEPS) | changes
    return [f"--config.{name}={value}" for name, value in values.items()]


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A folder with a config, the run of a supernet with arbitrary weights, and an architecture of its space."""
    folder = tmp_path_factory.mktemp("lab")
    (folder / "tiny.py").write_text(CONFIG)
    (folder / "middle.json").write_text(json.dumps(ARCH))
    write_supernet(folder / "supernet", configs.canonical(load_config(folder / "tiny.py")))
    return SimpleNamespace(folder=folder, arch=folder / "middle.json")


def write_supernet(workdir, config):
    """What training leaves of a supernet for others to read. No scale is zero: every branch counts."""
    session = Session.open(Options.of(config))
    claim(workdir, Options.of(config), STEPS)
    session.note_class_names(workdir)
    rng = np.random.default_rng(5)
    shaken = [
        jax.tree.map(lambda a: np.asarray(a) + 0.1 * rng.standard_normal(a.shape).astype(np.float32),
                     build(session.space, config.model.num_classes)[1])
        for _ in range(2)
    ]  # fmt: skip
    params, ema = (replicate(session.mesh, tree) for tree in shaken)
    checkpoints = Checkpoints(workdir)
    checkpoints.save(TrainState(params, {}, ema, *[np.int32(30)] * 3), 30)
    checkpoints.wait()
    checkpoints.close()


@pytest.fixture(scope="module")
def whole(lab):
    """A child's run that was never stopped: its folder and what it printed."""
    workdir = lab.folder / "child"
    return workdir, finish(start(lab.folder, workdir, *arguments(lab)))


def supernet_rows(lab, checkpoint="newest"):
    options = load_run_options(lab.folder / "supernet" / "config.json")
    return reporting.evaluate_run(options, lab.folder / "supernet", [str(lab.arch)], "val", checkpoint)[0]


def test_a_child_s_run_leaves_one_row_and_one_curve(lab, whole):
    workdir, (out, err) = whole
    (row,) = json.loads((workdir / "evaluation_val.json").read_text())["rows"]
    (before,) = json.loads((workdir / "evaluation_before.json").read_text())["rows"]
    assert (before["name"], row["name"]) == ("SLICE", "CHILD")
    assert row["architecture"] == before["architecture"] == ARCH
    assert f"{100 * before['top1']:.2f}" in out and f"{100 * row['top1']:.2f}" in out
    assert "the slice of step 30" in out and "its classifier is kept" in out
    logged = records(workdir)
    assert [r["step"] for r in logged if "loss/child" in r] == list(range(1, STEPS + 1))
    assert [r["step"] for r in logged if "holdout_top1/child" in r] == [0, STEPS]
    names = {name for record in logged for name in record}
    assert not [name for name in names if any(word in name for word in ("biggest", "smallest", "/max", "/min"))]
    assert set(re.findall(r"(compile \w+):.*? \d+/(\d+) ", err)) == {
        ("compile sandwich", "2"), ("compile evaluation", "2")}  # fmt: skip
    config = json.loads((workdir / "config.json").read_text())
    assert json.loads(config["arch"]) == ARCH and config["space"]["stages"]["mb1"]["width"] == [8]


def test_before_is_the_supernet_s_own_accuracy_at_the_architecture(lab, whole):
    (before,) = json.loads((whole[0] / "evaluation_before.json").read_text())["rows"]
    (row,) = supernet_rows(lab)
    assert before["macs"] == row["macs"] and before["params"] == row["params"]
    assert before["top1"] == pytest.approx(row["top1"], abs=1.5 / row["images"])
    assert before["loss"] == pytest.approx(row["loss"], rel=1e-4)


def test_a_killed_child_goes_on_to_the_same_bits_without_the_files_that_it_came_from(lab, whole):
    workdir, gone = lab.folder / "killed", lab.folder / "gone"
    process = start(lab.folder, workdir, *arguments(lab))
    signal_at(process, workdir, 18, signal.SIGKILL)
    finish(process, -signal.SIGKILL)
    assert steps_of(workdir)[-1] in (8, 16)
    (lab.folder / "supernet").rename(gone)
    try:
        out, _ = finish(start(lab.folder, workdir, *arguments(lab)))
    finally:
        gone.rename(lab.folder / "supernet")
    assert "going on from step" in out and "SLICE" in out and "starting from" not in out
    assert_same_bits(last_checkpoint(workdir), last_checkpoint(whole[0]))
    assert without_speed(records(workdir)) == without_speed(records(whole[0]))


def test_eval_of_a_child_needs_no_config(lab, whole):
    workdir = whole[0]
    final = json.loads((workdir / "evaluation_val.json").read_text())["rows"]
    command = [sys.executable, str(ROOT / "eval.py"), "--workdir", str(workdir)]
    done = forks.run(command, env=environment(lab.folder), cwd=lab.folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("CHILD") == 1 and "MAX" not in done.stdout
    again = json.loads((workdir / "evaluation_val.json").read_text())["rows"]
    assert [{k: v for k, v in row.items() if k not in ("images_per_second", "loss")} for row in again] == [
        {k: v for k, v in row.items() if k not in ("images_per_second", "loss")} for row in final
    ]


def test_the_folder_refuses_another_start(lab, whole):
    for changes in (dict(init_checkpoint="none"), dict(arch="max")):
        options = resolve(made(lab, **changes), whole[0])
        with pytest.raises(ConfigError, match="holds a run of another config .*give another --workdir"):
            claim(whole[0], options, STEPS)


def opened(lab, **changes):
    """A session of a child's run and where its weights come from."""
    session = Session.open(resolve(made(lab, **changes), lab.folder / "none"))
    return session, Origin.open(session)


def fresh_weights(session):
    return build(session.space, session.options.model.num_classes, seed=session.options.seed)[1]


def test_the_first_weights_are_the_moving_average_s_slice(lab, whole):
    session, origin = opened(lab)
    found = origin.weights(session.space, fresh_weights(session), session.mesh)
    arrays = last_checkpoint(lab.folder / "supernet")
    assert jax.tree.map(np.shape, found) == jax.tree.map(np.shape, session.shapes)
    # Blocks 0 and 1 of mb1, block 2 of mb2; the supernet has two of each.
    whole_kernel = arrays["ema.blocks.2.expand.kernel"]
    assert whole_kernel.shape == (16, 32)
    np.testing.assert_array_equal(found["blocks"][2]["expand"]["kernel"], whole_kernel[:8, :16])
    np.testing.assert_array_equal(found["classifier"]["conv"]["kernel"], arrays["ema.classifier.kernel"])
    assert not np.array_equal(arrays["params.classifier.kernel"], arrays["ema.classifier.kernel"])


def test_a_child_of_other_classes_has_a_new_classifier_and_the_slice_s_other_weights(lab):
    session, kept = opened(lab)
    renamed = dataclasses.replace(session.dataset, class_names=tuple("abcdefghij"))
    other = Origin.open(dataclasses.replace(session, dataset=renamed))
    assert kept.keeps_classifier and not other.keeps_classifier
    assert "the classifier is new" in str(other)
    fresh = fresh_weights(session)
    ours, theirs = (origin.weights(session.space, fresh, session.mesh) for origin in (kept, other))
    differ = {path for path, a in flat(ours).items() if not np.array_equal(a, flat(theirs)[path])}
    assert {path.split(".")[0] for path in differ} == {"classifier"}
    np.testing.assert_array_equal(theirs["classifier"]["conv"]["kernel"], fresh["classifier"]["conv"]["kernel"])


def test_a_classifier_is_kept_where_nothing_but_the_number_of_classes_is_known(lab):
    session, _ = opened(lab)
    renamed = dataclasses.replace(session.dataset, class_names=tuple("abcdefghij"))
    moved = dataclasses.replace(session.options, data=dataclasses.replace(session.options.data, root="another"))
    elsewhere = dataclasses.replace(session, dataset=renamed, options=moved)
    folder, noted = lab.folder / "supernet", lab.folder / "supernet" / "classes.json"
    assert json.loads(noted.read_text()) == [str(digit) for digit in range(10)]
    aside = noted.rename(lab.folder / "aside.json")
    try:
        assert not Origin.open(elsewhere).keeps_classifier, "the supernet's data is looked at"
        noted_options = load_run_options(folder / "config.json")
        nowhere = dataclasses.replace(noted_options.data, source="folder", root="nowhere")
        unknown = dataclasses.replace(noted_options, data=nowhere)
        (folder / "config.json").rename(lab.folder / "config.aside")
        (folder / "config.json").write_text(to_json(unknown))
        assert Origin.open(elsewhere).keeps_classifier
    finally:
        (lab.folder / "config.aside").replace(folder / "config.json")
        aside.rename(noted)


def test_training_on_other_classes_says_so_and_has_no_row_before(lab, capsys):
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for name in ("a", "b"):
            folder = lab.folder / "images" / split / name
            folder.mkdir(parents=True)
            for number in range(24):
                Image.fromarray(rng.integers(0, 256, (10, 10, 3), np.uint8)).save(folder / f"{number}.png")
    changes = dict(data__source="folder", data__root=str(lab.folder / "images"), data__holdout=0, batch_size=24,
                   model__num_classes=2, evaluation__batch_size=24, calibration__num_images=24,
                   calibration__batch_size=24, max_steps=2, num_devices=1)  # fmt: skip
    workdir = lab.folder / "other"
    rows = training.train(made(lab, **changes), workdir, progress=False)
    assert "the classifier is new, for the classes differ" in capsys.readouterr().out
    assert [row["name"] for row in rows] == ["CHILD"] and not (workdir / "evaluation_before.json").exists()
    assert last_checkpoint(workdir)["params.classifier.bias"].shape == (2,)
    assert json.loads((workdir / "classes.json").read_text()) == ["a", "b"]


def test_from_scratch_has_the_supernet_s_space_and_fresh_weights(lab):
    session, origin = opened(lab, init_checkpoint="none", space__stem_width=(24,))
    assert origin is None and session.space.biggest.to_dict() == ARCH
    other, origin = opened(lab, init_from="")
    assert origin is None and other.space == session.space


def test_the_space_of_a_slice_is_the_supernet_s_own(lab):
    options = resolve(made(lab, space__head_width=(64,), arch="max"), lab.folder / "none")
    assert json.loads(options.arch) == ARCH | {"width": [8, 16, 16, 16], "depth": [2, 2]}
    assert space_of(options.space).biggest.to_json() == options.arch
    assert resolve(options, lab.folder / "none") == options, "what is written needs no file"


def test_a_supernet_starts_from_a_whole_supernet_at_other_resolutions(lab):
    session, origin = opened(lab, arch="", space__resolution=(6, 8))
    assert not origin.space == session.space and "the supernet of step 30" in str(origin)
    found = origin.weights(session.space, fresh_weights(session), session.mesh)
    arrays = last_checkpoint(lab.folder / "supernet")
    # All values were drawn, so that no two tensors are alike. The names in a checkpoint are shorter.
    averages = [value for name, value in arrays.items() if name.startswith("ema.")]
    assert len(flat(found)) == len(averages)
    for path, value in flat(found).items():
        assert any(np.array_equal(value, average) for average in averages), path


def test_a_supernet_of_other_classes_trains_from_a_supernet(lab, capsys):
    root = lab.folder / "few"
    for split in ("train", "val"):
        for number, name in enumerate("ab"):
            (root / split / name).mkdir(parents=True)
            for i in range(16):
                pixels = np.random.default_rng(100 * number + i).integers(0, 256, (10, 10, 3), np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{i}.png")
    changes = dict(arch="", data__source="folder", data__root=str(root), data__holdout=0, batch_size=16,
                   model__num_classes=2, evaluation__batch_size=16, calibration__num_images=16,
                   calibration__batch_size=16, max_steps=1, num_devices=1)  # fmt: skip
    workdir = lab.folder / "moved"
    rows = training.train(made(lab, **changes), workdir, progress=False)
    said = capsys.readouterr().out
    assert "starting from the supernet of step 30" in said and "the classifier is new" in said
    assert [row["name"] for row in rows] == ["MAX", "MIN"]
    assert last_checkpoint(workdir)["params.classifier.bias"].shape == (2,)
    # It goes on without the run that it came from, and as any run it can be evaluated.
    again = made(lab, **changes | dict(max_steps=2))
    gone = (lab.folder / "supernet").rename(lab.folder / "gone")
    try:
        training.train(again, workdir, progress=False)
    finally:
        gone.rename(lab.folder / "supernet")
    assert "going on from step 1" in capsys.readouterr().out


def test_a_supernet_that_keeps_its_classes_is_scored_before(lab, capsys):
    workdir = lab.folder / "same"
    rows = training.train(made(lab, arch="", max_steps=1, num_devices=1), workdir, progress=False)
    said = capsys.readouterr().out
    assert re.search(r"before training: val top-1 [\d.]+% \(MAX BEFORE\), [\d.]+% \(MIN BEFORE\)", said)
    before = json.loads((workdir / "evaluation_before.json").read_text())["rows"]
    assert [row["name"] for row in rows] == ["MAX BEFORE", "MIN BEFORE", "MAX", "MIN"]
    options = load_run_options(lab.folder / "supernet" / "config.json")
    theirs, *_ = reporting.evaluate_run(options, lab.folder / "supernet", ["max", "min"], "val", "newest")
    for ours, row in zip(before, theirs, strict=True):
        assert ours["loss"] == pytest.approx(row["loss"], rel=1e-4)


def test_without_an_architecture_the_config_stands(lab):
    options = made(lab, arch="", init_from="")
    assert resolve(options, lab.folder / "none") is options


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(arch="nowhere.json"), r"^config\.arch: cannot read nowhere\.json"),
        (dict(arch='{"resolution": 8}'), r"^config\.arch .*missing keys"),
        (dict(arch=json.dumps(ARCH | {"width": [8, 24, 16, 16]})), r"stage mb1 width: found 24, allowed 8, 16"),
        (dict(arch=json.dumps(ARCH | {"kernel_size": [[3, 5], 3]})),
         r"stage mb1 kernel_size: found \(3, 5\), allowed 3 .one value for all blocks of the stage"),
        (dict(init_from="nowhere"), r"^config\.init_from: found no nowhere/config\.json"),
        (dict(init_from="EMPTY"), r"^config\.init_from: found no checkpoint under"),
        (dict(init_checkpoint="29"), r"^config\.init_checkpoint: found 29, expected newest, best or one of .*30"),
        (dict(arch="", space__head_width=(24,)),
         r"^config\.space: found another network than in .*head width: \(24,\), there \(16,\)\), expected the same"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(lab, changes, message):
    if changes.get("init_from") == "EMPTY":
        changes = dict(init_from=str(lab.folder / "empty"))
        (lab.folder / "empty").mkdir()
        (lab.folder / "empty" / "config.json").write_text(to_json(made(lab, arch="", init_from="")))
    with pytest.raises(ConfigError, match=message) as error:
        opened(lab, **changes)
    assert "\n" not in str(error.value)


def test_the_recipe_is_sound():
    config = recipe_of_a_child.get_config()
    configs.validate(config)
    assert config.init_from == "exp/cifar10" and config.arch


def test_a_run_from_before_these_fields_goes_on(lab):
    """A supernet's folder whose config.json lacks them is not taken for another run."""
    path = lab.folder / "supernet" / "config.json"
    text = path.read_text()
    newer = ("arch", "init_from", "init_checkpoint")
    old = {name: value for name, value in json.loads(text).items() if name not in newer}
    assert begun(lab.folder / "supernet")
    try:
        path.write_text(json.dumps(old))
        config = configs.canonical(load_config(lab.folder / "tiny.py"))
        claim(lab.folder / "supernet", Options.of(config), 1000)
    finally:
        path.write_text(text)
