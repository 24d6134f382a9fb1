"""Damaged checkpoints are named, and the step before is taken; every file of a step is broken in every way."""

import shutil

import jax
import numpy as np
import pytest
from run_states import MESH, PARAMS, state

from bignas_jax.config.options import Optimizer
from bignas_jax.errors import CheckpointError
from bignas_jax.runs.checkpoint import Checkpoints
from bignas_jax.runs.folder import steps


def assert_is(found, step):
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(found), jax.device_get(state(step)))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run's folder with steps 1 and 2."""
    workdir = tmp_path_factory.mktemp("run")
    checkpoints = Checkpoints(workdir, keep=3)
    for step in (1, 2):
        checkpoints.save(state(step), step, 0.1 * step)
    checkpoints.wait()
    checkpoints.close()
    return workdir


def remove(path):
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def rename(path):
    """The folder of another step in its place, as an interrupted copy or a hand leaves it."""
    shutil.rmtree(path)
    shutil.copytree(path.parent / "1", path)


def cut(path):
    path.write_bytes(path.read_bytes()[:10])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x55
    path.write_bytes(bytes(content))


def each(break_it, folder):
    """Breaks every file in which arrays of an item lie."""
    for path in [path for path in folder.rglob("*") if path.parent.name == "d"]:
        break_it(path)


@pytest.mark.parametrize("break_it, where, words", [
    (remove, "training", "is incomplete: found no training"),
    (remove, "params", "is incomplete: found no params"),
    (remove, "ema", "is incomplete: found no ema"),
    (remove, "manifest", "is incomplete: found no manifest"),
    (cut, "params/_METADATA", "is damaged"), (flip, "params/_METADATA", "is damaged"),
    (cut, "training/manifest.ocdbt", "is damaged"), (flip, "params/DATA", "is damaged"),
    (flip, "training/DATA", "is damaged"), (remove, "params/DATA", "is damaged"),
    (cut, "manifest/metadata", "is damaged"), (cut, "_CHECKPOINT_METADATA", "is damaged"),
    (remove, "_CHECKPOINT_METADATA", "is damaged"), (rename, ".", "holds another step than its name says"),
])  # fmt: skip
def test_the_step_before_is_taken_and_the_damaged_one_is_kept_aside(break_it, where, words, run, tmp_path, capsys):
    workdir = tmp_path / "run"
    shutil.copytree(run, workdir)
    folder = workdir / "checkpoints" / "2"
    if where.endswith("/DATA"):
        each(break_it, folder / where.removesuffix("/DATA"))
    else:
        break_it(folder / where)
    checkpoints = Checkpoints(workdir, keep=3)
    found = checkpoints.restore(state(0), MESH)
    assert_is(found, 1)
    said = capsys.readouterr().err
    assert words in said and "that of step 1 is taken" in said and said.count("\n") == 1
    assert (workdir / "damaged" / "2").is_dir() and not folder.exists()
    checkpoints.save(state(2), 2, 0.2)  # made anew
    checkpoints.wait()
    assert_is(checkpoints.restore(state(0), MESH), 2)
    checkpoints.close()


def test_changed_bytes_are_found_that_the_format_itself_lets_through(run, tmp_path, capsys, monkeypatch):
    """What is read back is held against the checksums, wherever the change came from."""
    workdir = tmp_path / "run"
    shutil.copytree(run, workdir)
    checkpoints = Checkpoints(workdir, read_only=True)
    whole, restore = checkpoints._manager, checkpoints._manager.restore

    def changed(step, args):
        read = restore(step, args=args)
        if step == 2 and "ema" in dict(read.items()):
            read["ema"]["classifier.bias"] = read["ema"]["classifier.bias"].at[1].add(1e-6)
        return read

    monkeypatch.setattr(whole, "restore", changed)
    weights, step = checkpoints.weights(PARAMS, MESH)
    assert step == 1 and weights["classifier"]["bias"][1] == 2
    assert "ema classifier.bias has other bytes than were written" in capsys.readouterr().err


def test_an_evaluation_changes_nothing_and_a_given_step_has_no_stand_in(run, tmp_path, capsys):
    workdir = tmp_path / "run"
    shutil.copytree(run, workdir)
    cut(workdir / "checkpoints" / "2" / "ema" / "_METADATA")
    checkpoints = Checkpoints(workdir, read_only=True)
    assert checkpoints.weights(PARAMS, MESH)[1] == 1
    assert (workdir / "checkpoints" / "2").is_dir() and not (workdir / "damaged").exists()
    for which in (2, "2", "best"):
        with pytest.raises(CheckpointError, match="2 is damaged"):
            checkpoints.weights(PARAMS, MESH, which)
    refusing = Checkpoints(workdir, read_only=True, on_damage="refuse")
    with pytest.raises(CheckpointError, match="is damaged: .*on_damage=fall_back takes that of step 1"):
        refusing.weights(PARAMS, MESH)


def test_without_a_whole_step_there_is_nothing_to_go_on_from(run, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(run, workdir)
    for step in "12":
        shutil.rmtree(workdir / "checkpoints" / step / "params")
    with pytest.raises(CheckpointError, match="is incomplete: found no params in it; no whole checkpoint is left"):
        Checkpoints(workdir, read_only=True).weights(PARAMS, MESH)


def test_another_model_is_not_called_damage(run):
    wider = PARAMS | {"classifier": {"kernel": np.ones((4, 7), np.float32), "bias": np.zeros(7, np.float32)}}
    with pytest.raises(CheckpointError, match=r"does not fit this config's space and model: ema classifier.bias: "
                                              r"found float32 \[3\], expected float32 \[7\]"):
        Checkpoints(run, read_only=True).weights(wider, MESH)
    more = PARAMS | {"extra": {"kernel": np.ones(2, np.float32)}}
    with pytest.raises(CheckpointError, match=r"ema extra.kernel: found nothing, expected float32 \[2\]"):
        Checkpoints(run, read_only=True).weights(more, MESH)


def test_a_score_that_comes_later_counts_as_if_it_had_come_in_time(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(state(1), 1, 0.5)
    checkpoints.save(state(2), 2)  # a signal came before its evaluation
    checkpoints.wait()
    assert checkpoints.find("best") == 1
    checkpoints.score(2, 0.9)
    assert checkpoints.find("best") == 2
    checkpoints.score(2, 0.1)  # it has one
    assert Checkpoints(tmp_path, read_only=True).find("best") == 2
    for step in (3, 4):
        checkpoints.save(state(step), step, 0.1)
    checkpoints.wait()
    assert sorted(int(path.name) for path in (tmp_path / "checkpoints").iterdir()) == [2, 4], "the best is kept"


def test_a_damaged_score_is_moved_away(run, tmp_path, capsys):
    workdir = tmp_path / "run"
    shutil.copytree(run, workdir)
    cut(workdir / "checkpoints" / "2" / "metrics" / "metrics")
    with pytest.raises(CheckpointError, match="metrics is damaged, and nothing may be changed here"):
        Checkpoints(workdir, read_only=True)
    checkpoints = Checkpoints(workdir)
    assert "metrics is damaged, and was moved" in capsys.readouterr().err
    assert checkpoints.find("best") == 1 and checkpoints.find() == 2
    assert (workdir / "damaged" / "2-metrics").is_dir()


def test_a_file_with_the_name_of_a_step_is_no_step(run, tmp_path, capsys):
    workdir = tmp_path / "run"
    shutil.copytree(run, workdir)
    shutil.rmtree(workdir / "checkpoints" / "2")
    (workdir / "checkpoints" / "2").write_text("")
    assert steps(workdir) == [1]
    with pytest.raises(CheckpointError, match="2 is damaged, and nothing may be changed here"):
        Checkpoints(workdir, read_only=True)
    checkpoints = Checkpoints(workdir, keep=3)
    assert "2 is damaged, and was moved to" in capsys.readouterr().err
    checkpoints.save(state(2), 2)
    checkpoints.wait()
    assert_is(checkpoints.restore(state(0), MESH), 2)
    checkpoints.close()


def test_what_a_killed_save_left_is_removed(run, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(run, workdir)
    (workdir / "checkpoints" / "1").rename(workdir / "checkpoints" / "3.orbax-checkpoint-tmp")
    checkpoints = Checkpoints(workdir)
    checkpoints.save(state(4), 4)
    checkpoints.wait()
    checkpoints.close()
    assert sorted(path.name for path in (workdir / "checkpoints").iterdir()) == ["2", "4"]


def test_clipping_may_come_and_go(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(state(5), 5)
    checkpoints.wait()
    found = checkpoints.restore(state(0, Optimizer(clip_norm=1.0)), MESH)
    expected = state(5, Optimizer(clip_norm=1.0))
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(found), jax.device_get(expected))


def test_a_checkpoint_from_before_the_manifest_is_read(tmp_path, monkeypatch):
    from bignas_jax.runs import checkpoint

    monkeypatch.setattr(checkpoint, "state_names", lambda tree: [f"{n:05d}" for n in range(len(jax.tree.leaves(tree)))])
    writing = Checkpoints(tmp_path)
    monkeypatch.setattr(writing, "_save", lambda step, items, metrics: writing._manager.save(
        step, args=checkpoint.ocp.args.Composite(**{n: checkpoint.ocp.args.StandardSave(i) for n, i in items.items()}),
        metrics=metrics))  # fmt: skip
    writing.save(state(3), 3, 0.3)
    writing.wait()
    monkeypatch.undo()
    assert not (tmp_path / "checkpoints" / "3" / "manifest").exists()
    assert_is(Checkpoints(tmp_path, read_only=True).restore(state(0), MESH), 3)
