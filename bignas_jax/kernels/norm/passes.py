"""The passes over memory of batch norm, its activation and a gate, in XLA's operations.

x, g and results of their size are [B, H, W, C]. gate, extra and pooled values are [B, C]; keep is [B]. Everything else
is [C]. Sums are float32 or wider. Only the kernels for CPUs and GPUs need `used`, the number of sampled channels. Here
it is not read: the channels beyond it are zero because their scale and bias are zero.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from bignas_jax.kernels.activation import DERIVATIVES, FUNCTIONS
from bignas_jax.kernels.precision import at_least_float32

BATCH_AND_SPACE, SPACE = (0, 1, 2), (1, 2)


EPSILON = 1e-5


class Affine(NamedTuple):
    """The vectors [C] of z = (x - mean) * inverse * scale + bias.

    Attributes:
      mean: [C].
      variance: [C].
      scale: [C].
      bias: [C].
      epsilon: a number that is added to the variance.
    """

    mean: jax.Array
    variance: jax.Array
    scale: jax.Array
    bias: jax.Array
    epsilon: float = EPSILON

    @property
    def inverse(self) -> jax.Array:
        """[C]: 1 / standard deviation."""
        return jax.lax.rsqrt(self.variance + self.epsilon)


def moments(x: jax.Array, used: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
    """Mean and biased variance over all axes but the last."""
    # One pass over x. A value of the data itself is subtracted before squaring: the squares do not cancel when the
    # mean is much larger than the deviation.
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


def over_images(keep: jax.Array) -> jax.Array:
    """[B] -> [B, 1, 1, 1]."""
    return at_least_float32(keep)[:, None, None, None]


def pooled(x: jax.Array, affine: Affine, used, activation: str) -> jax.Array:
    """[B, C]: the mean of activation(z) over the positions."""
    return jnp.mean(FUNCTIONS[activation](_z(x, affine)), SPACE)


def apply(x, affine: Affine, gate, used, activation: str, keep=None, residual=None) -> jax.Array:
    """activation(z) * gate * keep + residual in the dtype of x; each of the last three may be None."""
    y = FUNCTIONS[activation](_z(x, affine))
    y = y if gate is None else y * _spread(gate)
    y = y if keep is None else y * over_images(keep)
    return (y if residual is None else y + at_least_float32(residual)).astype(x.dtype)


def gate_sums(x: jax.Array, g: jax.Array, affine: Affine, used, activation: str) -> jax.Array:
    """Five sums over the positions, from which the gradients of the gate, the bias and the scale follow.

    Returns:
      [5, B, C]: the sums of g f(z), g f'(z), f'(z), g f'(z) n and f'(z) n, where f is the activation and n the
      normalised x. The first is the gradient of the gate. `gated_reduce` computes the gradients of bias and scale from
      the others, without another pass.
    """
    g, normal = at_least_float32(g), _normal(x, affine)
    z = normal * affine.scale + affine.bias
    slope = DERIVATIVES[activation](z)
    terms = (g * FUNCTIONS[activation](z), g * slope, slope, g * slope * normal, slope * normal)
    return jnp.stack([jnp.sum(term, SPACE) for term in terms])


def gated_reduce(sums: jax.Array, gate: jax.Array, extra: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Gradients of bias and scale, from the last four of `gate_sums`.

    Args:
      sums: [5, B, C], the result of `gate_sums`.
      gate: [B, C].
      extra: [B, C], the gradient that reaches each position through the mean that the gate is computed from.
    """
    with_g, without = sums[1::2], sums[2::2]  # each [2, B, C]: for the bias, for the scale
    d_bias, d_scale = jnp.sum(at_least_float32(gate) * with_g + at_least_float32(extra) * without, 1)
    return d_bias, d_scale


def _inner(x, g, affine: Affine, gate, extra, keep, activation: str) -> jax.Array:
    """The gradient with respect to z."""
    g = at_least_float32(g)
    if gate is not None:
        g = g * _spread(gate) + _spread(extra)
    if keep is not None:
        g = g * over_images(keep)
    return g if activation == "identity" else g * DERIVATIVES[activation](_z(x, affine))


def reduce(x, g, affine: Affine, used, activation: str, keep=None) -> tuple[jax.Array, jax.Array]:
    """Gradients of bias and scale without a gate.

    They are the sum of the gradient with respect to z, and the sum of this gradient times the normalised x.
    """
    inner = _inner(x, g, affine, None, None, keep, activation)
    return jnp.sum(inner, BATCH_AND_SPACE), jnp.sum(inner * _normal(x, affine), BATCH_AND_SPACE)


def input_gradient(x, g, affine: Affine, gate, extra, sums, count: int, used, activation: str, keep=None) -> jax.Array:
    """The gradient with respect to x, in the dtype of x.

    Args:
      x: [B, H, W, C] input of batch norm.
      g: [B, H, W, C], the gradient with respect to the output.
      affine: the vectors of the forward pass.
      gate: [B, C], or None.
      extra: [B, C], as for `gated_reduce`; None without a gate.
      sums: two vectors [C]: the sum of the gradient with respect to z, and the sum of this gradient times the
        normalised x. None if the moments were given, which then have no gradient.
      count: positions that the moments are a mean of.
      used: not read here.
      activation: a name in `activation.FUNCTIONS`.
      keep: [B], or None.
    """
    inner = _inner(x, g, affine, gate, extra, keep, activation)
    if sums is not None:
        inner = inner - sums[0] / count - _normal(x, affine) * (sums[1] / count)
    dx = (affine.scale * affine.inverse) * inner
    return dx.astype(x.dtype)
