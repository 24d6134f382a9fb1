"""The import command: what it writes, how runs go on from it, and what it refuses before anything is written."""

import json
import re
import shutil
import sys

import forks
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from paths import ROOT
from reference_torch import DATA, MANIFESTS, Child, load_slice
from tiny import flat, seeded_tensors

import eval as eval_script
from bignas_jax.cli import importing
from bignas_jax.cli.importing import following
from bignas_jax.config import fields as config_lib
from bignas_jax.config.files import from_json
from bignas_jax.config.options import Options
from bignas_jax.config.recipes import load_config
from bignas_jax.files import locked
from bignas_jax.interop.imports.bignas_names import account, expected_shapes, read_state_dict
from bignas_jax.nets.slicing import param_shapes
from bignas_jax.programs import memory
from bignas_jax.programs.devices import make_mesh
from bignas_jax.runs.checkpoint import Checkpoints
from bignas_jax.runs.session import Session
from bignas_jax.search import run as search_run
from bignas_jax.spaces.cost import count
from bignas_jax.spaces.layers import statistics
from bignas_jax.spaces.mobilenet import SearchSpace, blocks
from bignas_jax.training import loop as training

TINY = """
from ml_collections import ConfigDict
from configs import digits

def get_config():
    config = digits.get_config()
    stage = dict(kernel_size=(3, 5), expand_ratio=(2,))
    config.space = ConfigDict(dict(
        resolution=(8,), stem_width=(8,), stem_stride=1, head_width=(16, 24), v3_head=True, activation="swish",
        stages=dict(mb1=dict(stage, width=(8, 16), depth=(1, 2), stride=2, se=True),
                    mb2=dict(stage, width=(16,), depth=(1, 2), stride=1, se=False))))
    config.data.update(image_size=8, eval_resize=8, holdout=160)
    config.calibration.update(num_images=96, batch_size=48)
    config.evaluation.batch_size = 40
    config.optimizer.update(ema_decay=0.9, learning_rate=1e-30, warmup_epochs=0.0)
    config.checkpoint.update(every_steps=1, keep=1)
    config.search.num_evaluations = 6
    config.sandwich.num_random = 0
    return config
"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A folder with a recipe, and with the checkpoint of a supernet of its space, as it is released."""
    folder = tmp_path_factory.mktemp("lab")
    (folder / "tiny.py").write_text(TINY)
    torch.save({"epoch": 12, "model_state": released(tensors_of(config_of(folder)))}, folder / "weights.pth")
    return folder


def config_of(folder):
    config = config_lib.canonical(load_config(folder / "tiny.py"))
    config_lib.validate(config)
    return config


def tensors_of(config):
    """Seeded, with the shortcut convolutions inside stages that no forward pass reads."""
    space = SearchSpace.from_config(config.space)
    tensors = seeded_tensors(space, config.model.num_classes)
    for number, block in enumerate(blocks(space, space.biggest)):
        width = block.out_width
        tensors.setdefault(f"blocks.{number}.shortcut.conv.conv.weight", np.ones((width, width, 1, 1), np.float32))
    return tensors


def released(tensors):
    found = {}
    for name, array in tensors.items():
        tensor = torch.tensor(array)
        found[f"module.{name}"] = found[f"module.{name.replace('.mobile_inverted_conv.', '.conv.')}"] = tensor
        if name.endswith("running_var"):
            norm = f"module.{name.removesuffix('bn.running_var')}"
            found[f"{norm}bn.num_batches_tracked"] = torch.tensor(3)
            found[f"{norm}bn_tracking.0.running_var"] = torch.ones(2)
    return found


@pytest.fixture(scope="module")
def imported(lab):
    """The run's folder, and what the command printed."""
    command = [sys.executable, "-m", "bignas_jax", "import", lab / "weights.pth",
               "--config", lab / "tiny.py", "--workdir", lab / "run"]  # fmt: skip
    ended = forks.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr[-3000:]
    return lab / "run", ended.stdout


@pytest.fixture
def run(imported, tmp_path):
    """A copy of the imported run."""
    shutil.copytree(imported[0], tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def command(monkeypatch, capsys):
    """A script in this process: (exit code, standard output, standard error)."""
    monkeypatch.setattr(memory, "keep_freed_memory", lambda: None)

    def call(script, *arguments):
        monkeypatch.setattr(sys, "argv", [f"{script.__name__.rpartition('.')[2]}.py", *map(str, arguments)])
        try:
            code = script.main()
        except SystemExit as end:
            code = end.code
        return code, *capsys.readouterr()

    return call


def read(workdir, config, step="newest"):
    """Weights and stored statistics of a run."""
    space = SearchSpace.from_config(config.space)
    like = param_shapes(space, config.model.num_classes)
    mesh, checkpoints = make_mesh(1, {}), Checkpoints(workdir, read_only=True)
    try:
        widths = statistics(space.layout(space.biggest))
        return checkpoints.weights(like, mesh, step)[0], checkpoints.statistics(widths, mesh, 0)
    finally:
        checkpoints.close()


def assert_same(found, expected):
    found, expected = flat(found), flat(expected)
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


def test_everything_in_the_file_arrives_or_is_counted(lab, imported):
    workdir, out = imported
    config = config_of(lab)
    tensors = tensors_of(config)
    params, statistics = read_state_dict(SearchSpace.from_config(config.space), tensors)
    found = read(workdir, config)
    assert_same(found[0], params)
    assert_same(found[1], statistics)
    assert from_json((workdir / "config.json").read_text()).to_dict() == config.to_dict()
    note = json.loads((workdir / "imported.json").read_text())
    assert (note["entry"], note["counters"]) == ("model_state", {"epoch": 12})
    assert note["params"] == sum(array.size for array in flat(params).values())
    numbers = note["tensors"] | note["ignored"]
    file = torch.load(lab / "weights.pth")["model_state"]
    assert sum(numbers.values()) == len(file)
    for kind, number in numbers.items():
        assert re.search(rf"(used|ignored): {re.escape(kind)} +{number}\n", out), out
    assert numbers["shortcuts inside stages, which never run"] == 2
    space = SearchSpace.from_config(config.space)
    for name, arch in (("MAX", space.biggest), ("MIN", space.smallest)):
        cost = count(space, arch, 10)
        assert re.search(rf"{name} +{cost.macs / 1e6:.2f} +{cost.params / 1e6:.3f}\n", out), out


def scores_in_torch(config, arch, statistics):
    """Top-1 and loss on the validation split, in plain PyTorch; 'calibrate' from the batches that eval.py uses."""
    session = Session.open(Options.of(config))
    child = load_slice(Child(session.space, arch, 10), tensors_of(config))

    def logits(batch):
        x = torch.tensor(batch["image"]).permute(0, 3, 1, 2) / 255
        mean, std = (torch.tensor(values)[:, None, None] for values in (config.data.mean, config.data.std))
        return child((x - mean.float()) / std.float())

    with torch.no_grad():
        if statistics == "calibrate":
            child.statistics("calibrate")
            for batch in session.loader("calibration", 48, limit=96).once():
                logits(batch)
        child.statistics("stored")
        rows = [(logits(b)[b["weight"] > 0], torch.tensor(b["label"][b["weight"] > 0]).long())
                for b in session.loader("val", 40).once()]  # fmt: skip
    found, labels = torch.cat([a for a, _ in rows]), torch.cat([b for _, b in rows])
    return (found.argmax(1) == labels).double().mean().item(), F.cross_entropy(found, labels).item()


def test_eval_scores_as_pytorch_does(lab, run, command):
    config = config_of(lab)
    space = SearchSpace.from_config(config.space)
    assert command(eval_script, "--workdir", run, "--arch", "max", "--arch", "min")[0] == 0
    code, out, err = command(eval_script, "--workdir", run, "--arch", "max", "--statistics", "stored")
    assert code == 0 and "step 0 of" in out, err
    rows = {row["name"]: row for row in json.loads((run / "evaluation_val.json").read_text())["rows"]}
    expected = {
        "MAX": scores_in_torch(config, space.biggest, "calibrate"),
        "MIN": scores_in_torch(config, space.smallest, "calibrate"),
        "MAX (stored)": scores_in_torch(config, space.biggest, "stored"),
    }
    assert rows.keys() == expected.keys()
    for name, (top1, loss) in expected.items():
        assert rows[name]["loss"] == pytest.approx(loss, rel=1e-4), name
        assert rows[name]["top1"] == pytest.approx(top1, abs=0.006), name  # two images may be ties
    assert abs(rows["MAX"]["loss"] - rows["MAX (stored)"]["loss"]) > 0.01


def test_stored_statistics_are_those_of_the_biggest_alone(run, command):
    code, _, err = command(eval_script, "--workdir", run, "--arch", "max", "--arch", "min", "--statistics", "stored")
    assert code == 2 and err == (
        "eval.py: --statistics=stored: found MIN, expected --arch max alone: a checkpoint keeps statistics of the "
        "biggest architecture only, those of others are calibrated\n"
    )


def test_search_runs_on_it(lab, run):
    found = search_run.search(Options.of(config_of(lab)), run)
    assert len(found["evaluations"]) >= 6
    winners = list(run.glob("children/*/architecture.json"))
    assert winners and (run / "search" / "report.html").is_file()


def test_training_goes_on_from_the_weights(lab, run, capsys):
    """The steps are too small to change a weight, so that what was begun with can be seen."""
    config = config_of(lab)
    config.max_steps = 3
    before, statistics = read(run, config)
    training.train(Options.of(config), run, progress=False)
    assert "starting from the weights that were imported into" in capsys.readouterr().out
    kept = sorted(int(path.name) for path in (run / "checkpoints").glob("[0-9]*"))
    assert kept == [0, 3]  # of one's own one is kept, and the imported one always
    assert json.loads((run / "data.json").read_text())["classes"]  # steps were made on these images
    moving_average, still_there = read(run, config, 3)
    for name, array in flat(before).items():
        np.testing.assert_allclose(flat(moving_average)[name], array, rtol=1e-6, atol=1e-12, err_msg=name)
    assert_same(read(run, config, 0)[0], before)
    assert_same(still_there, statistics)


def refused(result, *patterns):
    """The one line that a refusal ends in; returns what was printed before it."""
    code, out, err = result
    *details, line = err.splitlines()
    assert code == 2 and not out
    for pattern in ("^importing.py: ", *patterns):
        assert re.search(pattern, line), line
    return details


@pytest.fixture
def bring(lab, command, tmp_path):
    """The command on a state dict, with a workdir in which nothing must appear."""

    def call(tensors, *arguments):
        torch.save({"state_dict": {name: torch.as_tensor(a) for name, a in tensors.items()}}, tmp_path / "w.pth")
        result = command(named(importing), tmp_path / "w.pth", "--config", lab / "tiny.py",
                         "--workdir", tmp_path / "new", *arguments)  # fmt: skip
        assert not (tmp_path / "new").exists()
        return result

    return call


class named:
    """A module under the last part of its name."""

    def __init__(self, module):
        self.main, self.__name__ = module.main, module.__name__.split(".")[-1]


def test_tensors_that_do_not_fit_are_all_listed(lab, bring):
    tensors = tensors_of(config_of(lab))
    names = expected_shapes(SearchSpace.from_config(config_of(lab).space), 10)
    gone = [name for name in names if "blocks" in name][:12]
    for name in gone:
        del tensors[name]
    tensors["first_conv.conv.conv.weight"] = tensors["first_conv.conv.conv.weight"][:, :1]
    tensors["extra.weight"] = np.ones((2, 5), np.float32)
    details = refused(
        bring(tensors),
        rf"12 tensors missing \({gone[0]}, expected \[.*\]\)",
        r"1 of another shape \(first_conv.conv.conv.weight: found \[8, 1, 3, 3\], expected \[8, 3, 3, 3\]\)",
        r"1 unexpected \(extra.weight \[2, 5\]\); set config.space to the choices",
    )
    assert details[0] == "missing (12):" and [line.split(",")[0].strip() for line in details[1:11]] == gone[:10]
    assert details[11] == "  and 2 more"
    assert details[12:] == [
        "of another shape (1):",
        "  first_conv.conv.conv.weight: found [8, 1, 3, 3], expected [8, 3, 3, 3]",
        "unexpected (1):",
        "  extra.weight [2, 5]",
    ]


def test_an_idle_shortcut_of_another_shape_is_no_idle_shortcut(lab, bring):
    name = "blocks.1.shortcut.conv.conv.weight"
    changed = {name: np.ones((4, 4, 1, 1), np.float32)}
    refused(bring(tensors_of(config_of(lab)) | changed), rf"1 of another shape \({name}")


def test_another_number_of_classes_is_hinted_at(lab, bring):
    flag = r"the classifier has 10 classes: --config.model.num_classes=10$"
    refused(bring(tensors_of(config_of(lab)), "--config.model.num_classes=7"), flag)


@pytest.mark.parametrize("classes, flag", [(1000, ""), (100, " --config.model.num_classes=100")])
@pytest.mark.parametrize("recipe", MANIFESTS)
def test_another_space_is_hinted_at(recipe, classes, flag, bring):
    """Full-size shapes, a number in each; the released files' own lists of names."""
    shapes = json.loads((DATA / MANIFESTS[recipe]).read_text())
    for name in ("weight", "bias"):
        shapes[f"classifier.linear.linear.{name}"][0] = classes
    tensors = {name: torch.zeros(1).expand(shape) for name, shape in shapes.items()}
    refused(bring(tensors), f"the tensors are those of --config configs/{recipe}.py{flag}$")


def test_something_else_is_hinted_at(bring):
    tensors = {"layer1.0.conv1.weight": np.ones((64, 64, 3, 3), np.float32)}
    refused(bring(tensors), "none of its names is known: expected a whole supernet")


def test_weights_that_are_no_numbers_are_refused(lab, bring):
    tensors = tensors_of(config_of(lab))
    tensors["classifier.linear.linear.bias"][3] = np.nan
    refused(bring(tensors), r"1 tensors hold NaN or infinity \(classifier.linear.linear.bias\)")


@pytest.mark.parametrize("recipe", MANIFESTS)
def test_expected_shapes_are_those_of_the_released_files(recipe):
    space = SearchSpace.from_config(load_config(ROOT / "configs" / f"{recipe}.py").space)
    released = {name: tuple(shape) for name, shape in json.loads((DATA / MANIFESTS[recipe]).read_text()).items()}
    inside = [n for n, block in enumerate(blocks(space, space.biggest)) if block.index]
    idle = {f"blocks.{n}.shortcut.conv.conv.weight" for n in inside}
    held = account(space, 1000, released)
    assert held.fits and set(held.idle) == idle
    assert expected_shapes(space, 1000) == {name: shape for name, shape in released.items() if name not in idle}


def test_the_next_commands_name_the_images_only_where_none_are_known(lab, tmp_path):
    config = config_of(lab)
    found = following("my runs", config)
    assert "next:\n\npython -m bignas_jax eval --workdir 'my runs' --arch max --arch min\n" in found
    config.data.update(source="folder", root=str(tmp_path))
    assert "ROOT" not in following("run", config)
    config.data.root = str(tmp_path / "none")
    assert following("run", config).count("--config.data.root=ROOT") == 3


def test_nothing_that_is_there_is_lost(lab, run, command, tmp_path):
    def call(workdir):
        return command(named(importing), lab / "weights.pth", "--config", lab / "tiny.py", "--workdir", workdir)

    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    refused(call(run), "--workdir: .* already holds a run with 1 checkpoints, expected a new or empty folder")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    refused(call(tmp_path / "other"), "already holds notes.txt, expected a new or empty folder")
    refused(call(tmp_path / "other" / "notes.txt"), "notes.txt is a file, expected a new folder")
    (tmp_path / "begun").mkdir()
    shutil.copy(run / "config.json", tmp_path / "begun")
    refused(call(tmp_path / "begun"), "already holds config.json, expected")
    with locked(tmp_path / "busy", "training"):
        refused(call(tmp_path / "busy"), r"busy: another training is at work in it \(pid .*\); wait for its end")
    assert [path.name for path in (tmp_path / "busy").iterdir()] == [".lock"]
    assert before == {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["notes.txt"]
    assert [path.name for path in (tmp_path / "begun").iterdir()] == ["config.json"]


def test_an_import_that_was_broken_off_is_made_again(lab, command, tmp_path, monkeypatch):
    arguments = (named(importing), lab / "weights.pth", "--config", lab / "tiny.py", "--workdir", tmp_path / "new")

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save_imported", killed)
        with pytest.raises(KeyboardInterrupt):
            command(*arguments)
    assert (tmp_path / "new" / "config.json").is_file()
    assert command(*arguments)[0] == 0
    read(tmp_path / "new", config_of(lab))


@pytest.mark.parametrize("arguments, pattern", [
    ((), "found no argument, expected one CHECKPOINT, and flags$"),
    (("a.pth", "b.pth"), "found a.pth b.pth, expected one CHECKPOINT, and flags$"),
    (("none.pth",), "none.pth: No such file or directory$"),
    (("--weights", "both", "a.pth"), "weights"),
    (("a.pth", "--config.distributed.num_processes=2", "--config.distributed.coordinator=localhost:1"), "an import is"),
    (("a.pth", "--config.arch=max"), "config.arch: found an architecture, expected a supernet's config"),
])  # fmt: skip
def test_mistakes_on_the_command_line(arguments, pattern, lab, command, tmp_path):
    result = command(named(importing), *arguments, "--config", lab / "tiny.py", "--workdir", tmp_path / "new")
    refused(result, pattern)
    assert not (tmp_path / "new").exists()


def test_other_scripts_still_take_flags_only(command):
    code, _, err = command(eval_script, "stray", "--arch", "max")
    assert code == 2 and "found the argument 'stray', expected flags only" in err
