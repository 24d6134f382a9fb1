"""The Pallas kernels of batch norm against XLA's passes; a CPU interprets them."""

from collections import namedtuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bignas_jax.kernels.norm import normalize as norm
from bignas_jax.kernels.norm import pallas, passes, tiles

Call, Array = namedtuple("Call", "name operands results integers"), namedtuple("Array", "shape bytes")

CASES = [  # batch, side, channels, used, dtype
    (3, 5, 24, 24, jnp.bfloat16),
    (2, 7, 40, 24, jnp.float32),
    (1, 3, 200, 130, jnp.bfloat16),
]


def arrays(shape, used, dtype, seed=0):
    rng = np.random.default_rng(seed)
    sampled = np.arange(shape[-1]) < used

    def normal(*shape, shift=0.0):
        return jnp.asarray(rng.normal(shift, 1.0, shape), jnp.float32)

    x, residual, g = (normal(*shape, shift=shift).astype(dtype) for shift in (3.0, 0.0, 0.0))
    scale, bias = (jnp.where(sampled, normal(shape[-1]), 0) for _ in range(2))
    keep = jnp.asarray(rng.integers(0, 2, shape[0]) * 1.25, jnp.float32)
    weights = normal(shape[-1], 8) / 4, normal(8, shape[-1]) / 4
    return x, scale, bias, keep, jnp.where(sampled, residual, 0).astype(dtype), weights, g


def gate(pooled, weights):
    return jax.nn.sigmoid(jax.nn.relu(pooled @ weights[0]) @ weights[1])


def run(implementation, monkeypatch, shape, used, dtype, activation, gated, rest, given):
    """The results of `normalize` and the gradients of all that have one, up to the used channels."""
    x, scale, bias, keep, residual, weights, g = arrays(shape, used, dtype)
    keep, residual = (keep, residual) if rest else (None, None)
    statistics = (jnp.full(shape[-1], 2.5), jnp.full(shape[-1], 1.5)) if given else None
    monkeypatch.setattr(norm, "_passes", lambda x: implementation)

    def value(x, scale, bias, weights, residual):
        arguments = x, scale, bias, jnp.int32(used), statistics, weights, keep, residual
        return norm.normalize(*arguments, None, activation, gate if gated else None)

    y, pull, *moments = _vjp(value, x, scale, bias, weights if gated else (), residual)
    found = {"y": y, "mean": moments[0], "variance": moments[1]}
    found |= dict(zip(("dx", "d_scale", "d_bias", "d_weights", "d_residual"), pull(g), strict=True))
    for name in ("mean", "variance", "d_scale", "d_bias"):
        found[name] = found[name][:used]
    return found


def _vjp(value, *arguments):
    y, pull, moments = jax.vjp(lambda *a: (value(*a)[0], value(*a)[1:]), *arguments, has_aux=True)
    return y, pull, *moments


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("form", ["plain", "gated", "residual", "given"])
def test_they_compute_what_the_passes_of_xla_do(monkeypatch, case, form):
    batch, side, channels, used, dtype = case
    shape = batch, side, side + 1, channels
    activation = {"plain": "relu", "gated": "swish", "residual": "identity", "given": "h_swish"}[form]
    rest = shape, used, dtype, activation, form == "gated", form == "residual", form == "given"
    expected, found = run(passes, monkeypatch, *rest), run(pallas, monkeypatch, *rest)
    tolerance = 2e-5 if dtype == jnp.float32 else 2e-2
    for name in expected:
        for a, b in zip(jax.tree.leaves(expected[name]), jax.tree.leaves(found[name]), strict=True):
            a, b = (np.asarray(v, np.float32) for v in (a, b))
            np.testing.assert_allclose(b, a, rtol=tolerance, atol=tolerance * max(1, np.abs(a).max()), err_msg=name)


@pytest.mark.parametrize("name", sorted(pallas.MOVED))
def test_kernels_load_and_store_what_they_state(monkeypatch, name):
    """Counts the entries that a kernel's masks let through, in every program of its grid."""
    shape, used = (2, 5, 7, 40), 24
    touched = {"load": 0, "store": 0}
    (x, g), vectors = jnp.ones((2, *shape), jnp.bfloat16), [jnp.ones(40)] * 4
    affine, per_image = passes.Affine(*vectors), jnp.ones((2, 40))
    arguments = {
        "norm_moments": (pallas.moments, x),
        "norm_pooled": (pallas.pooled, x, affine),
        "norm_apply": (pallas.apply, x, affine, per_image),
        "norm_gate_sums": (pallas.gate_sums, x, g, affine),
        "norm_reduce": (pallas.reduce, x, g, affine),
        "norm_input_gradient": (pallas.input_gradient, x, g, affine, per_image, per_image, vectors[:2], 70),
    }
    calls = []

    def counted(kind, function):
        def touch(ref, *rest, mask, **further):
            # Vectors and arrays [B, C] come from the cache; the arrays as large as x make the bytes.
            if ref.ref.aval.size == x.size:
                size = ref.ref.aval.dtype.itemsize
                jax.debug.callback(lambda n: touched.update({kind: touched[kind] + int(n) * size}), jnp.sum(mask))
            return function(ref, *rest, mask=mask, **further)

        return touch

    def recorded(name, kernel, grid, results, *arrays):
        if name in pallas.MOVED:
            small = [tuple(np.asarray(a).tolist()) for a in arrays if a.dtype == jnp.int32]
            flat = [Array((a.size,), a.nbytes) for a in arrays]
            made = [Array((int(np.prod(s)),), int(np.prod(s)) * jnp.dtype(d).itemsize) for s, d in results]
            calls.append(Call(name, flat, made, small))
        return tiles.run(name, kernel, grid, results, *arrays)

    monkeypatch.setattr(tiles.plgpu, "load", counted("load", tiles.plgpu.load))
    monkeypatch.setattr(tiles.plgpu, "store", counted("store", tiles.plgpu.store))
    monkeypatch.setattr(pallas, "run", recorded)
    function, *operands = arguments[name]
    activation = () if name == "norm_moments" else ("swish",)
    jax.block_until_ready(function(*operands, jnp.int32(used), *activation))
    jax.effects_barrier()
    (call,) = calls
    wide = x.size * 2
    small = sum(a.bytes for a in (*call.operands, *call.results) if a.bytes != wide)
    # Each program of the moments loads its first position twice; the second time it comes from the cache.
    pivots = call.results[0].bytes // 4 // 40 * used * 2 if name == "norm_moments" else 0
    assert touched["load"] + touched["store"] - pivots + small == pallas.MOVED[name](call)
