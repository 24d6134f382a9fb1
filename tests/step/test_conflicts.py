"""Conflict-aware gradients, tensor by tensor and as an option of the step."""

import dataclasses

import jax
import numpy as np
import pytest
from sandwich_cases import BATCH, MEAN, RATE, STD, batches
from tiny import assert_close

from bignas_jax.config.options import Optimizer
from bignas_jax.programs.devices import make_mesh
from bignas_jax.step.conflicts import combined
from bignas_jax.step.optimizer import optimizer
from bignas_jax.step.recipe import Recipe
from bignas_jax.step.train_step import TrainStep

RECIPE = Recipe(num_random=1, mean=MEAN, std=STD, seed=3)
PLAIN = Optimizer(momentum=0.0, weight_decay=0.0, nesterov=False)


def test_what_conflicts_is_projected_out_of_the_biggests_gradient():
    rng = np.random.default_rng(0)
    biggest, smaller = ({"a": rng.standard_normal((3, 4)), "b": rng.standard_normal(5)} for _ in range(2))
    for name in ("a", "b"):
        sign = np.sign(np.vdot(biggest[name], smaller[name]))
        biggest[name] *= sign if name == "a" else -sign  # they agree in a, and conflict in b
    found = combined(biggest, smaller)
    np.testing.assert_allclose(found["a"], biggest["a"] + smaller["a"], rtol=1e-5, atol=1e-6)
    left = np.asarray(found["b"]) - smaller["b"]
    assert abs(np.vdot(left, smaller["b"])) < 1e-4 < 1e-2 < abs(np.vdot(biggest["b"], smaller["b"]))
    off = combined(biggest, smaller, resolve=False)
    np.testing.assert_allclose(off["b"], biggest["b"] + smaller["b"], rtol=1e-5, atol=1e-6)


def test_a_small_gradient_is_not_blown_up_and_none_is_no_division_by_zero():
    biggest, smaller = np.array([-10.0, 1.0], np.float32), np.array([1.0, 0.0], np.float32)
    np.testing.assert_allclose(combined(biggest, smaller), [-10 + 3, 1])  # 2 times at most
    np.testing.assert_allclose(combined(biggest, 0 * smaller), biggest)


@pytest.fixture(scope="module")
def gradients(tiny):
    """The gradients of each member at step 0, and the weights after steps that resolve conflicts, or do so later."""

    space = dataclasses.replace(tiny.space, resolution=tiny.space.resolution[:1])  # one program of each kind

    def made(devices, **changes):
        mesh = make_mesh(devices, {"batch_size": BATCH})
        step = TrainStep(space, tiny.graphdef, dataclasses.replace(RECIPE, **changes),
                         optimizer(PLAIN, lambda _: RATE), mesh)  # fmt: skip
        state = step.init(tiny.params)
        sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
        batch = jax.device_put(batches()[0], sharding)
        step.compile(state, batch, progress=False)
        return step, state, batch

    plain, state, batch = made(1)
    found, teacher = [], None
    zeros = jax.tree.map(lambda a: np.zeros((1, *a.shape), a.dtype), tiny.params)
    for number, member in enumerate(plain.members.choose(0, None)):
        given = None if number == 0 else jax.device_put(zeros)
        grads, _, predicted = plain.learn(state.params, batch, member, 0, teacher, given, number)
        teacher = predicted if number == 0 else teacher
        found.append(jax.tree.map(lambda g: np.asarray(g[0]), grads))

    def moved(devices, start):
        """The gradient that a step's update came from: what the weights moved by, over the rate."""
        step, state, batch = made(devices, resolve_conflicts_from=start, sync_batch_norm=True)
        state, _ = step(state, batch, 0)
        return jax.tree.map(lambda new, old: (np.asarray(old) - np.asarray(new)) / RATE, state.params, tiny.params)

    return found, moved


def test_a_step_moves_by_the_combined_gradient(gradients):
    (biggest, *smaller), moved = gradients
    total = jax.tree.map(lambda *g: sum(g), *smaller)
    dots = [float(np.vdot(s, g)) for s, g in zip(*map(jax.tree.leaves, (biggest, total)), strict=True)]
    assert sum(dot < 0 for dot in dots) >= 3 and sum(dot > 0 for dot in dots) >= 3
    resolved, summed = (combined(biggest, total, resolve) for resolve in (True, False))
    apart = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), resolved, summed)
    assert max(jax.tree.leaves(apart)) > 5e-3
    # Conflicts are those of the whole batch's gradients, on whatever number of devices.
    assert_close(moved(4, 0), resolved, rtol=1e-3, atol=1e-4)
    assert_close(moved(1, 1), summed, rtol=1e-3, atol=1e-4)
