"""Checkpoints on disk: what orbax alone reads from them, which are kept, and what is refused."""

import contextlib
import errno
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from run_lab import last_checkpoint, steps_of
from tiny import flat

from bignas_jax.errors import CheckpointError
from bignas_jax.programs.devices import make_mesh, replicate
from bignas_jax.runs.checkpoint import Checkpoints
from bignas_jax.runs.orbax_manager import writing
from bignas_jax.step.state import TrainState

MESH = make_mesh(2, {})
# In the order of their names 10 comes before 2, in the order of the network after it.
SHAPES = {
    "stem": {"conv": {"kernel": (3, 2)}, "conv_norm": {"scale": (2,)}},
    "blocks": {2: {"expand": {"kernel": (2, 4)}}, 10: {"expand": {"kernel": (2, 4)}}},
    "classifier": {"conv": {"bias": (5,)}},
}
NAMES = ["stem.kernel", "stem_norm.scale", "blocks.2.expand.kernel", "blocks.10.expand.kernel", "classifier.bias"]
STATISTICS = {"stem": (np.float32([1, 2]), np.float32([3, 4])), "block2.expand": (np.ones(4, "f"), np.zeros(4, "f"))}
WIDTHS = {"stem": 2, "block2.expand": 4}


def tree(seed):
    rng = np.random.default_rng(seed)
    draw = lambda shape: rng.standard_normal(shape).astype(np.float32)  # noqa: E731
    return replicate(MESH, jax.tree.map(draw, SHAPES, is_leaf=lambda x: isinstance(x, tuple)))


def state(step, ema=True):
    """A state in which no two arrays are equal."""
    params = tree(step)
    moments = optax.adam(0.1).init(params)
    moments = jax.tree.map(lambda a: a + jnp.asarray(step, a.dtype) + (a.size if a.ndim else 0), moments)
    counters = [jnp.int32(step + n) for n in (0, 100, 200)]
    return replicate(MESH, TrainState(params, moments, tree(step + 1000) if ema else None, *counters))


def opened(workdir, **arguments):
    return contextlib.closing(Checkpoints(workdir, **arguments))


def save(workdir, *saves, **arguments):
    """Saves steps, each with or without an accuracy, one after the other."""
    with opened(workdir, **arguments) as checkpoints:
        for step, top1 in saves:
            checkpoints.save(state(step), step, top1)
            checkpoints.wait()


def assert_equal(found, expected):
    found, expected = flat(found), flat(expected)
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == array.dtype, name
        np.testing.assert_array_equal(found[name], array, err_msg=name)


def test_orbax_alone_finds_every_array_under_its_name(tmp_path):
    save(tmp_path, (7, None))
    made, arrays = state(7), last_checkpoint(tmp_path)
    for item, weights in (("params", made.params), ("ema", made.ema)):
        assert {name for name in arrays if name.startswith(item)} == {f"{item}.{name}" for name in NAMES}
        kernel = weights["blocks"][10]["expand"]["kernel"]
        np.testing.assert_array_equal(arrays[f"{item}.blocks.10.expand.kernel"], kernel)
        np.testing.assert_array_equal(arrays[f"{item}.stem_norm.scale"], weights["stem"]["conv_norm"]["scale"])
    assert [int(arrays[f"training.{name}"]) for name in ("step", "skipped", "skipped_in_row")] == [7, 107, 207]
    assert len(arrays) == 3 + 2 * len(NAMES) + len(jax.tree.leaves(made.opt_state))


@pytest.mark.parametrize("ema", [True, False])
def test_what_is_restored_is_what_was_saved(ema, tmp_path):
    with opened(tmp_path) as checkpoints:
        checkpoints.save(state(7, ema), 7)
        checkpoints.wait()
        found = checkpoints.restore(state(1, ema), MESH)
    assert jax.tree.structure(found) == jax.tree.structure(state(7, ema))
    assert_equal(found, state(7, ema))
    assert all(a.sharding.is_fully_replicated and a.sharding.num_devices == 2 for a in jax.tree.leaves(found))


@pytest.mark.parametrize("devices", [1, 4])
def test_another_number_of_devices_finds_the_same(devices, tmp_path):
    with opened(tmp_path) as checkpoints:
        checkpoints.save(state(5), 5)
        checkpoints.wait()
        found = checkpoints.restore(state(1), make_mesh(devices, {}))
    assert {len(leaf.sharding.device_set) for leaf in jax.tree.leaves(found)} == {devices}
    assert_equal(found, state(5))


def test_arrays_may_be_given_away_while_they_are_written(tmp_path):
    with opened(tmp_path) as checkpoints:
        given = state(7)
        checkpoints.save(given, 7)
        for array in jax.tree.leaves(given):
            array.delete()
        checkpoints.wait()
        assert_equal(checkpoints.restore(state(1), MESH), state(7))


def test_the_moving_average_is_what_is_evaluated_where_there_is_one(tmp_path):
    for ema in (True, False):
        with opened(tmp_path / str(ema)) as checkpoints:
            checkpoints.save(state(7, ema), 7)
            checkpoints.wait()
        with opened(tmp_path / str(ema), read_only=True) as checkpoints:
            shapes = jax.eval_shape(lambda: tree(0))
            weights, step = checkpoints.weights(shapes, MESH)
        assert step == 7
        assert_equal(weights, state(7).ema if ema else state(7).params)


def test_the_newest_and_the_best_are_kept(tmp_path):
    save(tmp_path, (3, 0.4), (6, 0.6), (9, None), (12, 0.5), (15, None), (18, None), keep=2)
    assert steps_of(tmp_path) == [6, 15, 18]
    with opened(tmp_path, read_only=True) as checkpoints:
        assert [checkpoints.find(which) for which in ("newest", "best", 15, "15")] == [18, 6, 15, 15]
        assert checkpoints.newest() == 18
        assert_equal(checkpoints.weights(tree(0), MESH, "best")[0], state(6).ema)
    save(tmp_path, (21, 0.7), keep=1)
    assert steps_of(tmp_path) == [21]


def test_what_a_kill_behind_a_save_left_is_deleted(tmp_path):
    save(tmp_path, (1, 0.1), (2, 0.9), (3, 0.2), (4, None), (5, 0.3), (6, 0.4), keep=9)
    with opened(tmp_path, keep=2) as checkpoints:
        assert checkpoints.newest() == 6  # nothing that is opened is deleted yet
        checkpoints.prune()
        checkpoints.prune()
    assert steps_of(tmp_path) == [2, 5, 6]
    with opened(tmp_path / "none") as checkpoints:
        checkpoints.prune()


def test_without_accuracies_the_newest_is_the_best(tmp_path):
    save(tmp_path, (3, None), (6, None), keep=2)
    with opened(tmp_path, read_only=True) as checkpoints:
        assert checkpoints.find("best") == 6


def test_a_step_is_saved_once(tmp_path):
    with opened(tmp_path) as checkpoints:
        for seed in (7, 8):
            checkpoints.save(state(seed), 7)
            checkpoints.wait()
    np.testing.assert_array_equal(last_checkpoint(tmp_path)["params.classifier.bias"],
                                  state(7).params["classifier"]["conv"]["bias"])  # fmt: skip


def test_a_save_that_was_killed_half_way_is_no_checkpoint(tmp_path):
    save(tmp_path, (3, None))
    folder = tmp_path / "checkpoints"
    shutil.copytree(folder / "3", folder / "6.orbax-checkpoint-tmp")
    for read_only in (True, False):
        with opened(tmp_path, read_only=read_only) as checkpoints:
            assert checkpoints.newest() == checkpoints.find() == 3
    save(tmp_path, (6, None))
    assert steps_of(tmp_path) == [6]


def test_steps_from_one_on_are_deleted(tmp_path):
    save(tmp_path, (3, None), (6, None), (9, None), keep=4)
    with opened(tmp_path, keep=4) as checkpoints:
        checkpoints.save(state(12), 12)  # still being written
        assert checkpoints.delete_from(6) == 3
        assert steps_of(tmp_path) == [3]
        assert checkpoints.delete_from(0) is None and steps_of(tmp_path) == []


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    """A folder of weights from elsewhere."""
    folder = tmp_path_factory.mktemp("imported")
    with opened(folder) as checkpoints:
        checkpoints.save_imported(tree(5), STATISTICS)
    return folder


@pytest.fixture
def brought(imported, tmp_path):
    """A copy of it, to change."""
    return shutil.copytree(imported, tmp_path / "run")


@pytest.mark.parametrize("ema", [True, False])
def test_imported_weights_begin_the_moving_average_and_nothing_else(ema, imported):
    begun = state(1, ema)
    with opened(imported, read_only=True) as checkpoints:
        assert checkpoints.is_imported(0) and not checkpoints.is_imported(1)
        found = checkpoints.restore(begun, MESH)
    assert_equal(found.params, tree(5))
    if ema:
        assert_equal(found.ema, tree(5))
        # Two buffers: the step gives both away.
        pointers = [found.params["classifier"]["conv"]["bias"], found.ema["classifier"]["conv"]["bias"]]
        assert len({a.addressable_shards[0].data.unsafe_buffer_pointer() for a in pointers}) == 2
    else:
        assert found.ema is None
    assert_equal(found.opt_state, begun.opt_state)
    assert int(found.step) == 1


def test_imported_statistics_come_back_by_layer(imported):
    with opened(imported, read_only=True) as checkpoints:
        assert_equal(checkpoints.statistics(WIDTHS, MESH), STATISTICS)
        for widths in (WIDTHS | {"stem": 3}, WIDTHS | {"head": 4}):
            with pytest.raises(CheckpointError, match="checkpoints/0 does not fit this config's space and model"):
                checkpoints.statistics(widths, MESH)


def test_the_imported_one_outlives_those_that_follow(brought):
    save(brought, (3, 0.5), (6, 0.4), (9, None), keep=1)
    assert steps_of(brought) == [0, 3, 9]
    with opened(brought) as checkpoints:
        assert not checkpoints.is_imported(3)
        with pytest.raises(CheckpointError, match="checkpoints/9 keeps no batch-norm statistics, as only imported"):
            checkpoints.statistics(WIDTHS, MESH, 9)
        assert checkpoints.delete_from(0) == 0
    assert steps_of(brought) == [0]


def test_a_run_s_own_step_0_is_not_kept_for_ever(tmp_path):
    save(tmp_path, (0, None), (3, None), keep=1)
    assert steps_of(tmp_path) == [3]


def test_a_reader_makes_no_folder(tmp_path):
    with pytest.raises(CheckpointError, match="^no checkpoint under .*new/checkpoints: train first, or give"):
        Checkpoints(tmp_path / "new", read_only=True)
    assert list(tmp_path.iterdir()) == []
    with opened(tmp_path) as checkpoints:
        assert checkpoints.newest() is None
        with pytest.raises(CheckpointError, match="^no checkpoint under"):
            checkpoints.find()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    save(folder, (3, 0.5), (6, None), keep=2)
    return folder


@pytest.mark.parametrize("which", ["7", 7, "-3", "3.0", "last", ""])
def test_another_step_is_refused_with_those_that_there_are(which, saved):
    with opened(saved, read_only=True) as checkpoints, pytest.raises(CheckpointError) as error:
        checkpoints.find(which)
    assert str(error.value) == f"--checkpoint: found {which}, expected newest, best or one of 3, 6"


def changed(path, new):
    """The tree with another shape at a path; None takes the array out."""
    found = tree(0)
    owner = found
    for key in path[:-1]:
        owner = owner[key]
    if new is None:
        del owner[path[-1]]
    else:
        owner[path[-1]] = np.zeros(new, np.float32)
    return found


@pytest.mark.parametrize("path, new", [
    (("classifier", "conv", "bias"), (6,)), (("blocks", 2, "expand", "kernel"), (4, 2)),
    (("classifier", "conv", "kernel"), (4, 5)), (("blocks", 10), None),
])  # fmt: skip
def test_weights_of_another_network_are_refused_in_one_line(path, new, saved):
    with opened(saved, read_only=True) as checkpoints:
        with pytest.raises(CheckpointError, match=f"^checkpoint {saved}/checkpoints/6 does not fit") as error:
            checkpoints.weights(changed(path, new), MESH)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("pattern", ["d/*", "manifest.ocdbt", "_METADATA"])
def test_where_a_file_was_cut_the_checkpoint_is_refused_or_the_one_before_read(pattern, saved, tmp_path, capsys):
    run = shutil.copytree(saved, tmp_path / "run")
    for path in (run / "checkpoints" / "6" / "ema").glob(pattern):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with opened(run, read_only=True) as checkpoints:
        with pytest.raises(CheckpointError, match=f"^checkpoint {run}/checkpoints/6 is damaged: ") as error:
            checkpoints.weights(tree(0), MESH, 6)
        assert "\n" not in str(error.value)
        found, step = checkpoints.weights(tree(0), MESH)
        assert step == 3
        assert_equal(found, state(3).ema)
        assert capsys.readouterr().err.count("that of step 3 is taken\n") == 1


def test_the_accuracy_of_a_checkpoint_lies_beside_it_as_json(saved):
    folder = saved / "checkpoints"
    assert json.loads((folder / "3" / "metrics" / "metrics").read_text()) == {"top1": 0.5}
    assert not (folder / "6" / "metrics").exists()


@pytest.mark.parametrize("error", [
    OSError(errno.EFBIG, "File too large"), ValueError(f"Error writing [os_error_code='{errno.EFBIG}']"),
])  # fmt: skip
def test_an_error_of_the_system_without_a_file_names_the_folder(error, tmp_path):
    with pytest.raises(OSError) as raised, writing(tmp_path):
        raise error
    assert (raised.value.errno, raised.value.strerror) == (errno.EFBIG, "File too large")
    assert raised.value.filename == str(tmp_path)


def test_an_error_that_names_its_file_stays(tmp_path):
    with pytest.raises(FileNotFoundError) as raised, writing(tmp_path):
        (tmp_path / "nothing").read_text()
    assert raised.value.filename == str(tmp_path / "nothing")
