"""The update on vectors, as GPUs make it, against the update of each array."""

import dataclasses
from collections import namedtuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bignas_jax.config.options import Optimizer
from bignas_jax.step import update as module
from bignas_jax.step.flat import Flat
from bignas_jax.step.optimizer import optimizer
from bignas_jax.step.state import TrainState
from bignas_jax.step.update import make_update

OPTIMIZERS = {
    "momentum": dict(name="sgd", momentum=0.9, nesterov=True, weight_decay=0.01, clip_norm=0.5),
    "plain": dict(name="sgd", momentum=0.0, nesterov=False, weight_decay=0.01, clip_norm=0.0),
    "adamw": dict(name="adamw", momentum=0.9, weight_decay=0.01, clip_norm=1.0),
    "rmsprop": dict(name="rmsprop", momentum=0.9, weight_decay=0.01, clip_norm=1.0),
}


def tree(seed, lead=()):
    rng = np.random.default_rng(seed)

    def normal(*shape):
        return jnp.asarray(rng.normal(size=(*lead, *shape)), jnp.float32)

    block = {"project": {"kernel": normal(5, 3)}, "norm": {"scale": normal(3), "bias": normal(3)}}
    return {"stem": {"kernel": normal(3, 3, 3, 4)}, "blocks": {0: block}, "classifier": {"bias": normal(2)}}


def updated(monkeypatch, platform, values, ema, finite, resolves=False):
    monkeypatch.setattr(module, "current", lambda: namedtuple("Target", "platform")(platform))
    transformation = optimizer(dataclasses.replace(Optimizer(), **values), lambda step: 0.1)
    params, zero = tree(0), jnp.int32(0)
    state = TrainState(params, transformation.init(params), tree(1) if ema else None, zero, zero, zero)
    for step in range(3):
        grads = (tree(step + 20, (1,)), tree(step + 2, (1,))) if resolves else (tree(step + 2, (1,)),)
        if not finite and step == 1:
            grads[0]["classifier"]["bias"] = grads[0]["classifier"]["bias"].at[0, 0].set(jnp.nan)
        metrics = [jnp.array([[2.0, 0.5]])] * 4
        state, named = make_update(
            transformation, lambda step: 0.1, 0.9 if ema else 0.0, 1, (), 4, 1, state, grads, metrics
        )
    return state, named


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("finite", [True, False])
def test_vectors_are_updated_as_arrays_are(monkeypatch, name, finite):
    rest = OPTIMIZERS[name], name == "momentum", finite, name == "plain"
    expected, found = (updated(monkeypatch, platform, *rest) for platform in ("cpu", "gpu"))
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    assert int(found[0].skipped) == (0 if finite else 1)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-6, atol=1e-7)


def test_weight_decay_finds_its_vector():
    flat = Flat.of(tree(0))
    joined = flat.join(tree(0))
    assert joined["kernel"].size == 3 * 3 * 3 * 4 + 15 and joined["rest"].size == 8
    for a, b in zip(jax.tree.leaves(flat.split(joined)), jax.tree.leaves(tree(0)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_weights_of_several_dtypes_are_refused():
    mixed = tree(0) | {"classifier": {"bias": jnp.zeros(2, jnp.bfloat16)}}
    with pytest.raises(ValueError, match="found weights of the dtypes \\['bfloat16', 'float32'\\], expected one"):
        Flat.of(mixed)
