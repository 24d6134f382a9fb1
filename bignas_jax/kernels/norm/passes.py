"""The passes over memory that batch norm, its activation and a gate are made of, in XLA's operations.

x, g and results of their size are [B, H, W, C]; gate, extra and pooled values [B, C]; everything else [C]. Sums are in
float32 at least. `used`, the number of sampled channels, is for the native kernels: here the channels beyond it are
zeros because their scale and bias are.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from bignas_jax.kernels.activation import DERIVATIVES, FUNCTIONS
from bignas_jax.kernels.precision import at_least_float32

BATCH_AND_SPACE, SPACE = (0, 1, 2), (1, 2)


class Affine(NamedTuple):
    """z = (x - mean) * inverse * scale + bias; `inverse` is 1 / deviation."""

    mean: jax.Array
    inverse: jax.Array
    scale: jax.Array
    bias: jax.Array


def moments(x: jax.Array, used: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
    """Mean and biased variance over all axes but the last."""
    # One pass over x. Sums of squares about a value of the data itself, not about zero: no cancellation when the
    # mean is large against the deviation.
    pivot = jax.lax.stop_gradient(at_least_float32(x[0, 0, 0]))
    centred = at_least_float32(x) - pivot
    shift = jnp.mean(centred, BATCH_AND_SPACE)
    variance = jnp.maximum(jnp.mean(centred * centred, BATCH_AND_SPACE) - shift * shift, 0)
    return pivot + shift, variance


def _normal(x: jax.Array, affine: Affine) -> jax.Array:
    return (at_least_float32(x) - affine.mean) * affine.inverse


def _z(x: jax.Array, affine: Affine) -> jax.Array:
    return _normal(x, affine) * affine.scale + affine.bias


def _spread(per_image: jax.Array) -> jax.Array:
    return at_least_float32(per_image)[:, None, None, :]


def pooled(x: jax.Array, affine: Affine, used, activation: str) -> jax.Array:
    """Mean over the positions of activation(z)."""
    return jnp.mean(FUNCTIONS[activation](_z(x, affine)), SPACE)


def apply(x: jax.Array, affine: Affine, gate: jax.Array | None, used, activation: str) -> jax.Array:
    """activation(z), times the gate where there is one, in the dtype of x."""
    y = FUNCTIONS[activation](_z(x, affine))
    return (y if gate is None else y * _spread(gate)).astype(x.dtype)


def gate_sums(x: jax.Array, g: jax.Array, affine: Affine, used, activation: str) -> jax.Array:
    """[5, B, C]: sums over the positions of g f(z), g f'(z), f'(z), and of the last two times the normalised x.

    f is the activation. The first is the gradient of the gate; `gated_reduce` makes those of bias and scale of the
    others, without another pass.
    """
    g, normal = at_least_float32(g), _normal(x, affine)
    z = normal * affine.scale + affine.bias
    slope = DERIVATIVES[activation](z)
    terms = (g * FUNCTIONS[activation](z), g * slope, slope, g * slope * normal, slope * normal)
    return jnp.stack([jnp.sum(term, SPACE) for term in terms])


def gated_reduce(sums: jax.Array, gate: jax.Array, extra: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Gradients of bias and scale from the last four of `gate_sums`."""
    with_g, without = sums[1::2], sums[2::2]  # each [2, B, C]: for the bias, for the scale
    d_bias, d_scale = jnp.sum(at_least_float32(gate) * with_g + at_least_float32(extra) * without, 1)
    return d_bias, d_scale


def _inner(x, g, affine: Affine, gate, extra, activation: str) -> jax.Array:
    """The gradient with respect to z."""
    g = at_least_float32(g)
    if gate is not None:
        g = g * _spread(gate) + _spread(extra)
    return g if activation == "identity" else g * DERIVATIVES[activation](_z(x, affine))


def reduce(x, g, affine: Affine, used, activation: str) -> tuple[jax.Array, jax.Array]:
    """Gradients of bias and scale without a gate: sums of the inner gradient, and of it times the normalised x."""
    inner = _inner(x, g, affine, None, None, activation)
    return jnp.sum(inner, BATCH_AND_SPACE), jnp.sum(inner * _normal(x, affine), BATCH_AND_SPACE)


def input_gradient(x, g, affine: Affine, gate, extra, mean_g, mean_gn, used, activation: str) -> jax.Array:
    """The gradient of x, in its dtype.

    Args:
      mean_g, mean_gn: means of the inner gradient, and of it times the normalised x; zeros if the moments are given.
    """
    inner = _inner(x, g, affine, gate, extra, activation)
    dx = (affine.scale * affine.inverse) * (inner - mean_g - _normal(x, affine) * mean_gn)
    return dx.astype(x.dtype)
