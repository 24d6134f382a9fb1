"""A run is what it was started as: each use of it has the config and the images that bind it, or stops."""

import json
import os
import re
import shutil
import socket
import sys
from concurrent.futures import ThreadPoolExecutor

import forks
import pytest
from data_folders import make_folder
from paths import ROOT
from run_lab import CONFIG, environment

from bignas_jax.config.files import differences, to_json
from bignas_jax.config.options import Options
from bignas_jax.config.recipes import load_recipe
from bignas_jax.errors import ConfigError
from bignas_jax.files import locked
from bignas_jax.runs.identity import BINDINGS, Use, broken, check_data, claim, other_figures

FIELDS = {
    "space.": ("config.space.activation: 'swish' -> 'relu'", Use.EXPORT),
    "model.num_classes": ("config.model.num_classes: 10 -> 9", Use.EVALUATION),
    "arch": ("config.arch: '' -> 'max'", Use.GOING_ON),
    "init_from": ("config.init_from: 'a' -> 'b'", Use.GOING_ON),
    "init_checkpoint": ("config.init_checkpoint: 'best' -> '3'", Use.GOING_ON),
    "phases.": ("config.phases.p1_full.epochs: 3 -> 4", Use.GOING_ON),
    "teacher.": ("config.teacher.source: 'a' -> 'b'", Use.GOING_ON),
    "optimizer.name": ("config.optimizer.name: 'sgd' -> 'rmsprop'", Use.GOING_ON),
    "optimizer.ema_decay": ("config.optimizer.ema_decay: 0.0 -> 0.9", Use.GOING_ON),
    "optimizer.momentum": ("config.optimizer.momentum: 0.9 -> 0.0", Use.GOING_ON),
    "batch_size": ("config.batch_size: 24 -> 48", Use.GOING_ON),
    "data.source": ("config.data.source: 'digits' -> 'folder'", Use.HELD_OUT),
    "data.train_split": ("config.data.train_split: 'train' -> 'more'", Use.SEARCH),
    "data.holdout": ("config.data.holdout: 4 -> 5", Use.GOING_ON),
}


def test_every_binding_refuses_its_field_and_no_other_use():
    assert set(FIELDS) == {binding.field for binding in BINDINGS}
    for binding in BINDINGS:
        line, use = FIELDS[binding.field]
        assert broken([line], use) == [line], line
        free = [other for other in Use if other not in binding.uses]
        assert not any(broken([line], other) for other in free), line


def test_what_binds_nothing_and_what_only_changes_size():
    for line in ("config.log.every_steps: 1 -> 2", "config.optimizer.momentum: 0.9 -> 0.8", "config.epochs: 3 -> 4",
                 "config.calibration.batch_size: 3 -> 4", "config.init_from_else: 1 -> 2"):  # fmt: skip
        assert not any(broken([line], use) for use in Use), line
    assert broken(["config.batch_size: 24 -> 48"], Use.GOING_ON, steps_made=False) == []
    changed = load_recipe().copy_and_resolve_references().unlock()
    changed.data.train_split = "more"
    assert len(broken(differences(load_recipe(), changed), Use.GOING_ON)) == 1


def test_checkpoints_without_their_config_are_not_gone_on_with(tmp_path):
    (tmp_path / "checkpoints" / "3").mkdir(parents=True)
    with pytest.raises(ConfigError, match="holds checkpoints, but no config.json"):
        claim(tmp_path, Options.of(load_recipe()), 5)
    assert not (tmp_path / "config.json").exists()


THEN = {"classes": ["ant", "bee"], "train": {"images": 30, "digest": "a"}, "val": {"images": 6, "digest": "b"}}


@pytest.mark.parametrize("change, use, words", [
    ({"classes": ["bee", "zebra"]}, Use.EVALUATION, "only there: ant; only here: zebra"),
    ({"classes": ["bee", "ant"]}, Use.EXPORT, "only there: none; only here: none.*same order"),
    ({"train": {"images": 29, "digest": "c"}}, Use.SEARCH, "was trained on 30 images, found 29"),
    ({"train": {"images": 30, "digest": "c"}}, Use.GOING_ON, "30 images, found others of that number"),
    ({"train": {"images": 29, "digest": "c"}}, Use.EVALUATION, None),
    ({"val": {"images": 5, "digest": "d"}}, Use.EVALUATION, None),
    ({}, Use.GOING_ON, None),
])
def test_other_data_are_refused_where_they_matter(tmp_path, capsys, change, use, words):
    check_data(tmp_path, THEN | change, use)  # a run from before fingerprints
    (tmp_path / "data.json").write_text(json.dumps(THEN))
    if words is None:
        check_data(tmp_path, THEN | change, use)
        said = capsys.readouterr().err
        assert said.count("\n") == ("val" in change) and ("6 images, found 5" in said) == ("val" in change)
    else:
        with pytest.raises(ConfigError, match=words) as error:
            check_data(tmp_path, THEN | change, use)
        assert "\n" not in str(error.value)


def test_what_makes_figures_others_than_the_runs_own_is_named(tmp_path):
    options = Options.of(load_recipe())
    assert other_figures(tmp_path, options, THEN) == []  # nothing is known
    (tmp_path / "config.json").write_text(to_json(options))
    (tmp_path / "data.json").write_text(json.dumps(THEN))
    assert other_figures(tmp_path, options, THEN) == []
    changed = load_recipe().copy_and_resolve_references().unlock()
    changed.data.update(root="elsewhere", num_workers=1, mean=(0.1, 0.1, 0.1))
    changed.update(seed=3, batch_size=7, num_devices=1)
    changed.calibration.num_images, changed.model.dtype, changed.evaluation.batch_size = 100, "bfloat16", 7
    found = other_figures(tmp_path, Options.of(changed), THEN | {"val": {"images": 5, "digest": "c"}})
    names = [line.partition(": ")[0] for line in found]
    assert sorted(names) == ["config.calibration.num_images", "config.data.mean", "config.model.dtype", "config.seed",
                             "val"]  # fmt: skip
    assert "val: 6 images, found 5" in found


def test_fewer_steps_than_were_made_do_not_finish_a_run(tmp_path, capsys):
    def options(steps):
        return Options.of(load_recipe().to_dict() | {"max_steps": steps})

    (tmp_path / "checkpoints" / "30").mkdir(parents=True)
    (tmp_path / "config.json").write_text(to_json(options(60)))
    with pytest.raises(ConfigError, match=r"^config.max_steps, config.epochs: found 20 steps, but the run .* made 30,"):
        claim(tmp_path, options(20), stop=20)
    (tmp_path / "evaluation_val.json").write_text('{"step": 30, "rows": []}')
    capsys.readouterr()
    assert claim(tmp_path, options(20), stop=20) == 30
    assert "finished and is not changed by config.max_steps: 60 -> 20" in capsys.readouterr().out


# ---- by the scripts


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A run of six steps on a folder of images."""
    folder = tmp_path_factory.mktemp("identity")
    make_folder(folder / "images", 12, 3, size=(8, 8))
    (folder / "tiny.py").write_text(CONFIG)
    call(folder, "train.py", folder / "run")
    return folder


def call(lab, script, workdir, *arguments, images="images", code=0):
    command = [
        sys.executable, str(ROOT / script), "--config", str(lab / "tiny.py"), "--workdir", str(workdir),
        "--config.data.source=folder", f"--config.data.root={lab / images}", "--config.model.num_classes=3",
        "--config.data.holdout=6", "--config.batch_size=12", "--config.evaluation.batch_size=6",
        "--config.calibration.num_images=12", "--config.calibration.batch_size=12", "--config.max_steps=6", *arguments,
    ]  # fmt: skip
    done = forks.run(command, env=environment(lab), cwd=lab, capture_output=True, text=True, timeout=300)
    assert done.returncode == code, done.stderr[-2000:]
    return done


def last(done):
    return done.stderr.strip().splitlines()[-1]


@pytest.fixture
def run(lab, tmp_path):
    shutil.copytree(lab / "run", tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def images(lab, request):
    """A copy of the images, to change."""
    name = f"images-{request.node.name}"
    shutil.copytree(lab / "images", lab / name)
    return lab / name


def test_an_export_of_another_activation_is_refused(lab, run):
    done = call(lab, "export.py", run, "--arch=min", "--config.space.activation=relu", code=2)
    assert "config.space.activation: 'swish' -> 'relu'" in last(done) and not (run / "children").exists()


def test_renamed_classes_are_named(lab, run, images):
    for split in ("train", "val"):
        os.rename(images / split / "ant", images / split / "zebra")
    done = call(lab, "eval.py", run, images=images.name, code=2)
    assert "only there: ant; only here: zebra" in last(done)


def test_a_deleted_training_image_ends_a_resume_and_a_search_but_no_evaluation(lab, run, images):
    next((images / "train" / "ant").iterdir()).unlink()
    commands = ("train.py", ["--config.max_steps=9"]), ("search.py", []), ("eval.py", ["--split=holdout"])
    for script, arguments in commands:
        done = call(lab, script, run, *arguments, images=images.name, code=2)
        assert "was trained on 36 images, found 35" in last(done), script
    call(lab, "eval.py", run, "--arch=min", images=images.name)


def test_a_finished_run_is_not_changed_by_another_mean(lab, run):
    before = {path.name: path.read_bytes() for path in run.glob("*.json")}
    done = call(lab, "train.py", run, "--config.data.mean=(0.1, 0.1, 0.1)")
    assert "the run is finished and is not changed by config.data.mean" in done.stdout
    assert {path.name: path.read_bytes() for path in run.glob("*.json")} == before


def test_an_evaluation_with_another_mean_leaves_the_runs_own(lab, run):
    own = (run / "evaluation_val.json").read_bytes()
    done = call(lab, "eval.py", run, "--config.data.mean=(0.1, 0.1, 0.1)")
    assert (run / "evaluation_val.json").read_bytes() == own
    (changed,) = json.loads((run / "evaluation_val_changed.json").read_text())["changed"]
    assert changed.startswith("config.data.mean: ") and changed.endswith("-> (0.1, 0.1, 0.1)")
    assert done.stdout.splitlines()[-1] == f"not the run's own figures: {changed}"
    call(lab, "eval.py", run, "--arch=min")  # with the run's own config
    assert not own == (run / "evaluation_val.json").read_bytes()
    assert "changed" not in json.loads((run / "evaluation_val.json").read_text())


def test_a_run_that_is_half_done_is_not_called_finished_by_a_larger_batch(lab, run):
    done = call(lab, "train.py", run, "--config.batch_size=24", "--config.max_steps=0", code=2)
    assert "config.batch_size: 12 -> 24" in last(done)


def test_a_class_that_is_gone_is_named(lab, run, images):
    for split in ("train", "val"):
        shutil.rmtree(images / split / "bee")
    done = call(lab, "eval.py", run, images=images.name, code=2)
    assert "only there: bee; only here: none" in last(done)


def test_only_an_evaluation_of_its_last_step_is_that_of_a_finished_run(lab, run):
    path = run / "evaluation_val.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"step": 3}))
    before = path.read_bytes()
    done = call(lab, "train.py", run, "--config.data.mean=(0.1, 0.1, 0.1)", code=2)
    assert "has no evaluation of its last step, 6: run eval.py" in last(done)
    assert path.read_bytes() == before


def test_a_second_training_on_a_folder_is_refused_in_all_its_processes(lab, run):
    before = {path.name: path.read_bytes() for path in run.glob("*.json*")}
    with locked(run, "training"):
        done = call(lab, "train.py", run, "--config.max_steps=9", code=2)
        who = re.escape(f"train.py: {run}: another training is at work in it (pid {os.getpid()} on ")
        assert re.fullmatch(who + r".+\); wait for its end, or stop it\n", done.stderr)
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        settings = [f"--config.distributed.coordinator=localhost:{port}", "--config.distributed.num_processes=2"]
        with ThreadPoolExecutor() as pool:
            both = [
                pool.submit(call, lab, "train.py", run, "--config.max_steps=9", *settings,
                            f"--config.distributed.process_id={rank}", code=2)
                for rank in (0, 1)
            ]  # fmt: skip
        assert "another training is at work in it" in last(both[0].result())
        assert "process 0 of 2 (" in last(both[1].result())
    assert {path.name: path.read_bytes() for path in run.glob("*.json*")} == before
