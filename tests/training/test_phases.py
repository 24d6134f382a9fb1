"""Progressive shrinking: a start from a smaller space, and what a run's folder allows of a schedule of phases."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx
from ml_collections import ConfigDict
from saved_run import tiny_config
from tiny import graphdef

from bignas_jax.config import fields as configs
from bignas_jax.config.files import to_json
from bignas_jax.config.options import Options
from bignas_jax.config.phases import runs_of
from bignas_jax.errors import ConfigError
from bignas_jax.programs.devices import replicate
from bignas_jax.programs.weights import build
from bignas_jax.runs.checkpoint import Checkpoints
from bignas_jax.runs.folder import located
from bignas_jax.runs.identity import claim
from bignas_jax.runs.session import Session
from bignas_jax.spaces.registry import space_of
from bignas_jax.step.state import TrainState
from bignas_jax.training.loop import train
from bignas_jax.training.origin import Origin, resolve
from bignas_jax.training.phases import through

FULL = {"kernel_size": 1, "depth": 1, "expand_ratio": 1}


def tiny_ofa():
    """A recipe of a tiny space with kernel transforms, and two ratios and kernels in each block."""
    config = tiny_config()
    stage = dict(width=(8,), depth=(1, 2), kernel_size=((3, 5),) * 2, expand_ratio=((2, 4),) * 2, stride=2, se=True,
                 activation="relu")  # fmt: skip
    config.space = ConfigDict(dict(
        family="ofa", resolution=(8,), stem_width=(8,), stem_stride=1, head_width=(16,), v3_head=False,
        activation="h_swish", epsilon=1e-5, kernel_transforms=True, stages=dict(mb1=stage),
    ))  # fmt: skip
    return config


def options_of(config, **changes):
    config = config.copy_and_resolve_references()
    config.update_from_flattened_dict(changes)
    config = configs.canonical(config)
    configs.validate(config)
    return Options.of(config)


def leave(folder, options):
    """A run's folder with weights in which every scale counts."""
    claim(folder, options, 3)
    space = space_of(options.space)
    rng = np.random.default_rng(5)
    params = jax.tree.map(lambda a: np.asarray(a + 0.1 * rng.standard_normal(a.shape), np.float32),
                          build(space, options.model.num_classes)[1])  # fmt: skip
    session = Session.open(options)
    checkpoints = Checkpoints(folder)
    checkpoints.save(TrainState(replicate(session.mesh, params), {}, None, *[np.int32(3)] * 3), 3)
    checkpoints.wait()
    checkpoints.close()
    return params


@pytest.mark.parametrize("largest", [FULL, {"expand_ratio": 1}])
def test_a_start_from_a_smaller_space_keeps_the_functions_of_its_architectures(tmp_path, largest):
    config = tiny_ofa()
    space = space_of(config.space)
    smaller = space.restricted(largest=largest)
    theirs = leave(tmp_path / "before", options_of(config, space=ConfigDict(smaller.to_dict())))
    options = resolve(options_of(config, init_from=str(tmp_path / "before")), tmp_path / "none")
    session = Session.open(options)
    fresh = build(space, 10, seed=1)[1]
    found = Origin.open(session).weights(space, fresh, session.mesh)
    assert jax.tree.map(np.shape, found) == jax.tree.map(np.shape, fresh)
    images = np.random.default_rng(0).normal(size=(4, 8, 8, 3)).astype(np.float32)

    def logits(space, params, arch):
        return np.asarray(nnx.merge(graphdef(space, 10), params)(images, arch)[0])

    kept = smaller.smallest
    for arch in (space.biggest, kept):
        np.testing.assert_allclose(logits(space, found, arch), logits(smaller, theirs, arch), atol=2e-5)
    block = found["blocks"][0]
    norms = np.abs(block["project"]["kernel"]).sum(-1)
    assert np.all(np.diff(norms) <= 0), "the most important channels come first"
    if largest is FULL:  # the matrices are new: a smaller kernel is the centre
        np.testing.assert_array_equal(block["depthwise"]["to3_matrix"], np.eye(9))
        centre = dataclasses.replace(space.biggest, kernel_size=(3,))
        plain = dataclasses.replace(space, kernel_transforms=False)
        without = jax.tree.map(np.asarray, found)
        for held in without["blocks"].values():
            del held["depthwise"]["to3_matrix"]
        np.testing.assert_allclose(logits(space, found, centre), logits(plain, without, centre), atol=1e-6)


def scheduled():
    config = tiny_ofa()
    config.optimizer.warmup_epochs = 0.0
    config.teacher.source = "phase:p1_full"
    config.phases = ConfigDict(dict(
        p1_full=dict(largest=FULL, epochs=1, optimizer=dict(learning_rate=0.2)),
        p2_kernel=dict(largest=dict(depth=1, expand_ratio=1), epochs=1),
        p3_depth=dict(largest=dict(expand_ratio=1), epochs=1),
    ))  # fmt: skip
    return config


def began(workdir, config, *names):
    """Leaves the traces of runs of these phases in a run's folder, each after its third step; '' is the run itself."""
    runs = runs_of(options_of(config))
    for name in names:
        folder = workdir / "phases" / name if name else workdir
        (folder / "checkpoints" / "3").mkdir(parents=True)
        (folder / "config.json").write_text(to_json(runs[name]))
    return workdir


def trained_by(workdir, config):
    """The folders of the runs that a schedule trains, in order."""
    found = []
    through(options_of(config), workdir, lambda options, folder: found.append((folder, options.epochs)) or [])
    return [(folder.relative_to(workdir).as_posix(), epochs) for folder, epochs in found]


def test_phases_are_trained_in_order_from_the_last_that_has_begun(tmp_path):
    config = scheduled()
    later = [("phases/p2_kernel", 1), ("phases/p3_depth", 1), (".", 20)]
    assert trained_by(tmp_path / "new", config) == [("phases/p1_full", 1), *later]
    workdir = began(tmp_path / "begun", config, "p1_full", "p2_kernel")
    assert trained_by(workdir, config) == later, "the first one is over, the second one has steps to make"
    config.phases.p2_kernel.max_steps = 3
    workdir = began(tmp_path / "stopped", config, "p1_full", "p2_kernel")
    assert trained_by(workdir, config) == later, "it has made them, but the last one has no score"
    (workdir / "phases" / "p2_kernel" / "evaluation_val.json").write_text('{"step": 3, "split": "val", "rows": []}')
    assert trained_by(workdir, config) == later[1:]
    config.phases.p2_kernel.epochs = 2
    with pytest.raises(ConfigError, match=r"p2_kernel is over, .* \(config\.epochs: 1 -> 2\)"):
        trained_by(workdir, config)
    config.phases.p2_kernel.epochs = 1
    assert trained_by(began(workdir, config, ""), config) == later[2:]


OVER = r"phases/p1_full is over, and was trained with another config "


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.phases.p1_full.update(epochs=2), OVER + r"\(config\.epochs: 1 -> 2\): phases that have not begun"),
        (lambda c: c.phases.p1_full.optimizer.update(learning_rate=0.3), OVER + r".*learning_rate: 0\.2 -> 0\.3"),
        (lambda c: c.phases.p1_full.largest.update(kernel_size=2), OVER + r".*kernel_size: \(\(5,\), .* -> \(\(3, 5\)"),
        (lambda c: c.phases.__delattr__("p2_kernel"), r"holds phases that config\.phases does not have \(p2_kernel\)"),
        (lambda c: c.__delattr__("phases"), r"config\.phases: found none, but .*phases holds p1_full, p2_kernel: give"),
        (lambda c: c.phases.p3_depth.update(sandwich=ConfigDict(dict(loss="no.such:Loss"))),
         r"^phase p3_depth: config\.sandwich\.loss: "),
        (lambda c: c.phases.p3_depth.update(sandwich=ConfigDict(dict(loss="labels"))),
         r"^phase p3_depth: config\.teacher\.source: found 'phase:p1_full' beside config\.sandwich\.loss=labels"),
        (lambda c: c.phases.p3_depth.update(batch_size=9999), r"^phase p3_depth: config\.batch_size: found 9999"),
    ],
)
def test_another_schedule_is_refused_before_anything_is_written(tmp_path, change, message):
    config = scheduled()
    workdir = began(tmp_path, config, "p1_full", "p2_kernel")
    before = sorted(tmp_path.rglob("*"))
    change(config)
    if "phases" not in config:
        config.teacher.source = ""
    with pytest.raises(ConfigError, match=message) as error:
        train(options_of(config), workdir)
    assert "\n" not in str(error.value) and sorted(tmp_path.rglob("*")) == before


def test_phases_to_come_and_what_shapes_no_weights_can_be_changed(tmp_path):
    config = scheduled()
    workdir = began(tmp_path, config, "p1_full", "p2_kernel")
    config.phases.p3_depth.update(epochs=5)
    config.update(num_devices=2)
    config.log.every_steps, config.data.num_workers = 7, 3
    assert trained_by(workdir, config)[1] == ("phases/p3_depth", 5)


def test_a_phase_is_found_from_the_run_and_from_its_neighbours(tmp_path):
    workdir = began(tmp_path / "run", scheduled(), "p1_full", "p2_kernel")
    runs = runs_of(options_of(scheduled()))
    for name, folder in (("p3_depth", workdir / "phases" / "p3_depth"), ("", workdir)):
        found = located(runs[name], folder)
        expected = "phase:p2_kernel" if name else "phase:p3_depth"
        assert runs[name].init_from == expected and found.init_from == str(workdir / "phases" / expected[6:])
        assert found.teacher.source == str(workdir / "phases" / "p1_full")
    plain = dataclasses.replace(runs[""], init_from="exp/other")
    assert located(plain, workdir).init_from == "exp/other"
