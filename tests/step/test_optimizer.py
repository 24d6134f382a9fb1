"""Schedules against formulas written by hand, updates against PyTorch and TensorFlow's rule in NumPy."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from bignas_jax.config.choices import Optimizers, Schedules
from bignas_jax.config.options import Optimizer
from bignas_jax.errors import ConfigError
from bignas_jax.step.optimizer import clip, decayed, momentum, optimizer, schedule

BASE = dict(
    name="sgd", learning_rate=0.4, schedule="exponential", decay_rate=0.9, decay_epochs=2.0, staircase=False,
    end_factor=0.3, warmup_epochs=1.0, momentum=0.9, nesterov=True, rmsprop_decay=0.8, rmsprop_eps=1e-3,
    weight_decay=0.1, clip_norm=0.0, ema_decay=0.0)
STEPS_PER_EPOCH, EPOCHS = 5, 40


def rates(**changes):
    rate = schedule(Optimizer(**BASE | changes), STEPS_PER_EPOCH, EPOCHS)
    return np.array([rate(step) for step in range(STEPS_PER_EPOCH * EPOCHS + 20)])


STEP = np.arange(STEPS_PER_EPOCH * EPOCHS + 20)


@pytest.mark.parametrize("staircase", [False, True])
def test_exponential_decay_to_a_constant_end(staircase):
    periods = STEP / 10
    expected = 0.4 * np.maximum(0.9 ** (np.floor(periods) if staircase else periods), 0.3)
    expected[:5] = 0.4 * np.array([1, 2, 3, 4, 5]) / 5
    found = rates(staircase=staircase)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert found[-1] == pytest.approx(0.12) and (np.diff(found)[-60:] == 0).all()


def test_cosine_after_the_warm_up():
    done = np.clip((STEP - 5) / (200 - 5), 0, 1)
    expected = 0.4 * (0.3 + 0.7 * (1 + np.cos(np.pi * done)) / 2)
    expected[:5] = 0.4 * np.array([1, 2, 3, 4, 5]) / 5
    np.testing.assert_allclose(rates(schedule="cosine"), expected, rtol=1e-5)


@pytest.mark.parametrize("name", ["exponential", "cosine"])
def test_without_warm_up_the_first_step_has_the_whole_rate(name):
    assert rates(schedule=name, warmup_epochs=0.0)[0] == np.float32(0.4)


def test_warm_up_by_fractions_of_an_epoch():
    np.testing.assert_allclose(rates(warmup_epochs=0.4)[:3], [0.2, 0.4, 0.4 * 0.9**0.2], rtol=1e-5)


PARAMS = {"stem": {"kernel": 0}, "blocks": {0: {"squeeze_excite": {"reduce_kernel": 0, "reduce_bias": 0},
                                               "project_norm": {"scale": 0, "bias": 0}}},
          "classifier": {"kernel": 0, "bias": 0}}


def test_weight_decay_spares_norms_and_biases():
    assert decayed(PARAMS) == {
        "stem": {"kernel": True},
        "blocks": {0: {"squeeze_excite": {"reduce_kernel": True, "reduce_bias": False},
                       "project_norm": {"scale": False, "bias": False}}},
        "classifier": {"kernel": True, "bias": False}}


def weights():
    rng = np.random.default_rng(0)
    return {name: rng.standard_normal(shape).astype(np.float32)
            for name, shape in (("kernel", (3, 4)), ("bias", (4,)))}


def gradients(step):
    rng = np.random.default_rng(step + 1)
    return {name: (3 * rng.standard_normal(a.shape)).astype(np.float32) for name, a in weights().items()}


def ours(steps=6, **changes):
    transformation = optimizer(Optimizer(**BASE | changes), lambda step: 0.05 / (1 + step))
    params = weights()
    state = transformation.init(params)
    for step in range(steps):
        updates, state = transformation.update(gradients(step), state, params)
        params = optax.apply_updates(params, updates)
    return params


@pytest.mark.parametrize("momentum, nesterov", [(0.9, True), (0.9, False), (0.0, False)])
@pytest.mark.parametrize("clip_norm, clip_value", [(0.0, 0.0), (2.0, 0.0), (0.0, 1.0), (4.0, 0.5)])
def test_sgd_equals_pytorch(momentum, nesterov, clip_norm, clip_value):
    leaves = {name: torch.tensor(a, requires_grad=True) for name, a in weights().items()}
    groups = [dict(params=[leaves["kernel"]], weight_decay=0.1), dict(params=[leaves["bias"]])]
    sgd = torch.optim.SGD(groups, 1.0, momentum, nesterov=nesterov)
    for step in range(6):
        for name, gradient in gradients(step).items():
            leaves[name].grad = torch.tensor(gradient)
        if clip_norm:
            torch.nn.utils.clip_grad_norm_(leaves.values(), clip_norm)
        if clip_value:
            torch.nn.utils.clip_grad_value_(leaves.values(), clip_value)
        for group in sgd.param_groups:
            group["lr"] = 0.05 / (1 + step)
        sgd.step()
    found = ours(momentum=momentum, nesterov=nesterov, clip_norm=clip_norm, clip_value=clip_value)
    for name, leaf in leaves.items():
        np.testing.assert_allclose(found[name], leaf.detach(), rtol=1e-5, atol=1e-6)


def test_rmsprop_is_tensorflows():
    """Mean squares start at 1, epsilon stands under the root, the rate goes into the momentum."""
    params = {name: a.astype(np.float64) for name, a in weights().items()}
    squares = {name: np.ones_like(a) for name, a in params.items()}
    velocity = {name: np.zeros_like(a) for name, a in params.items()}
    for step in range(6):
        for name, gradient in gradients(step).items():
            gradient = gradient + (0.1 * params[name] if name == "kernel" else 0)
            squares[name] += (1 - 0.8) * (gradient**2 - squares[name])
            move = 0.05 / (1 + step) * gradient / np.sqrt(squares[name] + 1e-3)
            velocity[name] = 0.9 * velocity[name] + move
            params[name] = params[name] - velocity[name]
    found = ours(name="rmsprop", nesterov=False)
    for name, value in params.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=1e-6)


def test_adamw_equals_pytorch():
    leaves = {name: torch.tensor(a, requires_grad=True) for name, a in weights().items()}
    groups = [dict(params=[leaves["kernel"]], weight_decay=0.1), dict(params=[leaves["bias"]], weight_decay=0.0)]
    adamw = torch.optim.AdamW(groups, 1.0, (0.9, 0.97), 1e-6)
    for step in range(6):
        for name, gradient in gradients(step).items():
            leaves[name].grad = torch.tensor(gradient)
        for group in adamw.param_groups:
            group["lr"] = 0.05 / (1 + step)
        adamw.step()
    found = ours(name="adamw", nesterov=False, adam_decay=0.97, adam_eps=1e-6)
    for name, leaf in leaves.items():
        np.testing.assert_allclose(found[name], leaf.detach(), rtol=1e-5, atol=1e-6)


def test_clipping_precedes_weight_decay():
    """A gradient clipped to almost nothing leaves the decay whole."""
    found = ours(steps=1, clip_norm=1e-6, momentum=0.0, nesterov=False)
    np.testing.assert_allclose(found["kernel"], weights()["kernel"] * (1 - 0.05 * 0.1), rtol=1e-5)
    np.testing.assert_allclose(found["bias"], weights()["bias"], rtol=1e-5)


@pytest.mark.parametrize("factor", [0.0, 0.01, 1.0, 100.0, np.inf, np.nan])
def test_clipping_is_that_of_optax(factor):
    grads = {"a": factor * jnp.arange(6.0).reshape(2, 3), "b": factor * jnp.ones(2)}
    found, _ = clip(1.5).update(grads, clip(1.5).init(grads))
    expected, _ = optax.clip_by_global_norm(1.5).update(grads, optax.EmptyState())
    for name in grads:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-6)


@pytest.mark.parametrize("nesterov", [False, True])
def test_momentum_is_that_of_optax_and_stays_where_it_is_told_to(nesterov):
    ours, theirs = momentum(0.9, nesterov), optax.trace(0.9, nesterov)
    params = {"a": jnp.zeros(3)}
    state, expected_state = ours.init(params), theirs.init(params)
    for step in range(4):
        grads = {"a": jnp.array([1.0, -2.0, 0.5]) * (step + 1)}
        found, state = ours.update(grads, state)
        expected, expected_state = theirs.update(grads, expected_state)
        np.testing.assert_array_equal(found["a"], expected["a"])
        np.testing.assert_array_equal(state.trace["a"], expected_state.trace["a"])
    _, kept = ours.update({"a": jnp.full(3, jnp.nan)}, state, finite=jnp.bool_(False))
    np.testing.assert_array_equal(kept.trace["a"], state.trace["a"])


@pytest.mark.parametrize("name", Optimizers)
def test_every_optimizer_of_the_options_moves_the_weights(name):
    moved = ours(steps=1, name=str(name))
    assert not any(np.array_equal(moved[key], value) for key, value in weights().items())


@pytest.mark.parametrize("name", Schedules)
def test_every_schedule_of_the_options_decays(name):
    assert rates(schedule=str(name))[-1] < rates(schedule=str(name))[5]


@pytest.mark.parametrize("field, known", [("name", "sgd, rmsprop, adamw"), ("schedule", "exponential, cosine")])
def test_an_unknown_name_is_refused_and_never_another_one(field, known):
    with pytest.raises(ConfigError, match=f"config.optimizer.{field}: found 'adam', expected one of {known}"):
        Optimizer(**{field: "adam"})
    options = Optimizer()
    object.__setattr__(options, field, "adam")  # as if the options knew a name that nothing here acts on
    with pytest.raises(ValueError, match=f"config.optimizer.{field}: found 'adam', expected one of {known}"):
        optimizer(options, schedule(options, 5, 1))
