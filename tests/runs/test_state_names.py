"""Names of an optimizer's arrays: each its own, and in the order of the leaves."""

import jax
import numpy as np
import optax
import pytest

from bignas_jax.config.choices import Optimizers
from bignas_jax.config.options import Optimizer
from bignas_jax.runs.state_names import state_names
from bignas_jax.step.optimizer import optimizer

PARAMS = {
    "stem": {"conv": {"kernel": np.arange(54, dtype=np.float32).reshape(3, 3, 3, 2)}},
    "blocks": {0: {"expand": {"kernel": np.ones((2, 4), np.float32)}}},
    "classifier": {"kernel": np.ones((4, 3), np.float32), "bias": np.zeros(3, np.float32)},
}


@pytest.mark.parametrize("options", [
    Optimizer(), Optimizer(name=Optimizers.RMSPROP, nesterov=False), Optimizer(momentum=0.0), Optimizer(clip_norm=1.0)
])  # fmt: skip
def test_optimizer_states_are_named_in_the_order_of_their_leaves(options):
    opt_state = optimizer(options, lambda _: 0.1).init(PARAMS)
    names = state_names(opt_state)
    assert len(set(names)) == len(names) == len(jax.tree.leaves(opt_state))
    renamed = jax.tree.unflatten(jax.tree.structure(opt_state), names)
    traces = [s for s in jax.tree.leaves(renamed, is_leaf=lambda s: hasattr(s, "trace")) if hasattr(s, "trace")]
    for trace in traces:
        assert trace.trace["blocks"][0]["expand"]["kernel"].endswith("trace.blocks.0.expand.kernel")


def test_states_of_one_name_are_told_apart():
    names = state_names(optax.adamw(optax.constant_schedule(0.1)).init({"w": np.zeros(2)}))
    assert names == ["ScaleByAdamState.count", "mu.w", "nu.w", "ScaleByScheduleState.count"]
    twice = (optax.TraceState({"w": 1.0}), optax.TraceState({"w": 2.0}))
    assert state_names(twice) == ["TraceState.trace.w#1", "TraceState.trace.w#2"]
