"""Train states of a few small arrays, for tests of checkpoints."""

import jax
import numpy as np

from bignas_jax.config.options import Optimizer
from bignas_jax.programs.devices import make_mesh, replicate
from bignas_jax.step.optimizer import optimizer
from bignas_jax.step.state import TrainState

PARAMS = {
    "stem": {"conv": {"kernel": np.arange(54, dtype=np.float32).reshape(3, 3, 3, 2)}},
    "blocks": {0: {"expand": {"kernel": np.ones((2, 4), np.float32)}}},
    "classifier": {"kernel": np.ones((4, 3), np.float32), "bias": np.zeros(3, np.float32)},
}
MESH = make_mesh(1, {})
SGD = Optimizer()


def state(step, options=SGD):
    """A train state whose every array tells its step."""
    params = jax.tree.map(lambda a: a + step, PARAMS)
    opt_state = jax.tree.map(lambda a: a + np.asarray(step, a.dtype), optimizer(options, lambda _: 0.1).init(params))
    numbers = (np.int32(step), np.int32(0), np.int32(0))
    return replicate(MESH, TrainState(params, opt_state, jax.tree.map(lambda a: 2 * a, params), *numbers))
