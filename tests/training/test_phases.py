"""Progressive shrinking: a start from a smaller space, the schedule of phases, and runs that are stopped in any."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx
from ml_collections import ConfigDict
from saved_run import tiny_config
from tiny import graphdef

from bignas_jax.config import fields as configs
from bignas_jax.config.options import Options
from bignas_jax.programs.devices import replicate
from bignas_jax.programs.weights import build
from bignas_jax.runs.checkpoint import Checkpoints
from bignas_jax.runs.identity import claim
from bignas_jax.runs.session import Session
from bignas_jax.spaces.registry import space_of
from bignas_jax.step.state import TrainState
from bignas_jax.training.origin import Origin, resolve

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
