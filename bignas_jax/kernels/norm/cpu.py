"""The functions of `passes` by the native kernels of the CPU (bignas_jax/kernels/native/norm.cc), float32 only.

`used`, an int32 scalar, is the number of sampled channels; None means all. The kernels compute only these; the results
of all other channels are zeros.
"""

import jax
import jax.numpy as jnp

from bignas_jax.kernels import native
from bignas_jax.kernels.norm.passes import Affine, gated_reduce, over_images

__all__ = ["apply", "gate_sums", "gated_reduce", "input_gradient", "moments", "pooled", "reduce"]


def _like(x: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, jnp.float32)


def _shape(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def _flat(x: jax.Array) -> jax.Array:
    """[B, H, W, C] -> [B, H W, C]."""
    return x.reshape(x.shape[0], -1, x.shape[-1])


def _vectors(affine: Affine) -> tuple[jax.Array, ...]:
    """The vectors in the order that the kernels take them."""
    return affine.mean, affine.inverse, affine.scale, affine.bias


def _count(used: jax.Array | None, x: jax.Array) -> jax.Array:
    return jnp.reshape(jnp.int32(x.shape[-1] if used is None else used), (1,)).astype(jnp.int32)


def moments(x: jax.Array, used: jax.Array) -> tuple[jax.Array, jax.Array]:
    """See `passes.moments`."""
    vector = _shape(x.shape[-1])
    mean, variance = native.call("norm_moments", (vector, vector), _flat(x), _count(used, x))
    return mean, variance


def pooled(x: jax.Array, affine: Affine, used: jax.Array, activation: str) -> jax.Array:
    """See `passes.pooled`."""
    shape = _shape(x.shape[0], x.shape[-1])
    arrays = _flat(x), *_vectors(affine), _count(used, x)
    return native.call("norm_pooled", shape, *arrays, activation=_number(activation))


def apply(x, affine: Affine, gate, used, activation: str, keep=None, residual=None) -> jax.Array:
    """See `passes.apply`."""
    flat, added = _flat(x), residual is not None
    if keep is not None:
        gate = jnp.broadcast_to(keep[:, None], (len(x), x.shape[-1])) if gate is None else gate * keep[:, None]
    y = native.call(
        "norm_apply", _like(flat), flat, *_vectors(affine), affine.bias if gate is None else gate,
        residual.reshape(flat.shape).astype(jnp.float32) if added else flat, _count(used, x),
        activation=_number(activation), gated=gate is not None, added=added,
    )  # fmt: skip
    return y.reshape(x.shape)


def gate_sums(x: jax.Array, g: jax.Array, affine: Affine, used: jax.Array, activation: str) -> jax.Array:
    """See `passes.gate_sums`."""
    shape = _shape(5, x.shape[0], x.shape[-1])
    return native.call(
        "norm_gate_sums", shape, _flat(x), _flat(g), *_vectors(affine), _count(used, x), activation=_number(activation)
    )


def reduce(x, g, affine: Affine, used, activation: str, keep=None) -> tuple[jax.Array, jax.Array]:
    """See `passes.reduce`."""
    vector, arrays = _shape(x.shape[-1]), (_flat(x), _flat(_kept(g, keep)), *_vectors(affine))
    d_bias, d_scale = native.call(
        "norm_reduce", (vector, vector), *arrays, _count(used, x), activation=_number(activation)
    )
    return d_bias, d_scale


def _kept(g: jax.Array, keep: jax.Array | None) -> jax.Array:
    return g if keep is None else g * over_images(keep)


def input_gradient(x, g, affine: Affine, gate, extra, sums, count: int, used, activation: str, keep=None) -> jax.Array:
    """See `passes.input_gradient`."""
    flat = _flat(x)
    means = [jnp.zeros_like(affine.bias)] * 2 if sums is None else [total / count for total in sums]
    gates = (affine.bias, affine.bias) if gate is None else (gate, extra)  # not read without a gate
    dx = native.call(
        "norm_input_gradient", _like(flat), flat, _flat(_kept(g, keep)), *_vectors(affine), *gates, *means,
        _count(used, x),
        activation=_number(activation), gated=gate is not None,
    )  # fmt: skip
    return dx.reshape(x.shape)


def _number(activation: str) -> int:
    return native.ACTIVATIONS.index(activation)
