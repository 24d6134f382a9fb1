"""Batch normalisation (Ioffe and Szegedy, 2015) with its activation, a gate, and its own gradient.

The forward pass reads its input once for both moments. It keeps only this input and a few vectors for the backward
pass, which recomputes the rest and makes two reductions. Automatic differentiation would keep three arrays of the size
of the activations, and one more with a gate (squeeze-and-excitation).
"""

from collections.abc import Callable
from functools import partial
from types import ModuleType

import jax
import jax.numpy as jnp

from bignas_jax.kernels import native
from bignas_jax.kernels.norm import cpu as norm_native
from bignas_jax.kernels.norm import pallas as norm_pallas
from bignas_jax.kernels.norm import passes as norm_passes
from bignas_jax.kernels.norm import tiles
from bignas_jax.kernels.norm.passes import EPSILON, Affine
from bignas_jax.kernels.reduce import mean_over
from bignas_jax.kernels.target import current


def _passes(x: jax.Array) -> ModuleType:
    """The implementation of the passes for the device that is traced for."""
    if native.usable(x.dtype):
        return norm_native
    if current().platform == "gpu" and tiles.supports(x.shape, x.dtype):
        return norm_pallas
    return norm_passes


def moments(
    x: jax.Array,
    axis_name: str | None = None,
    used: jax.Array | None = None,
    own: tuple[jax.Array, jax.Array] | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Mean and biased variance over all axes but the last, in float32.

    Args:
      x: [B, H, W, C] input.
      axis_name: mesh axis whose devices share the moments, or None.
      used: int32 scalar, channels of the sampled architecture; None means all.
      own: the moments of this device's x where they are known, or None.
    Returns:
      mean [C] and variance [C].
    """
    mean, variance = _passes(x).moments(x, used) if own is None else own
    if axis_name is not None:
        total = mean_over(mean, axis_name)
        variance = mean_over(variance + jnp.square(mean - total), axis_name)
        mean = total
    return mean, variance


@partial(jax.custom_vjp, nondiff_argnums=(9, 10, 11, 12))
def normalize(
    x: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    used: jax.Array | None = None,
    statistics: tuple[jax.Array, jax.Array] | None = None,
    weights=(),
    keep: jax.Array | None = None,
    residual: jax.Array | None = None,
    own: tuple[jax.Array, jax.Array] | None = None,
    activation: str = "identity",
    gate: Callable | None = None,
    axis_name: str | None = None,
    epsilon: float = EPSILON,
):
    """activation(batch norm(x)) * gate * keep + residual, as far as there are such.

    Args:
      x: [B, H, W, C] input.
      scale: [C], float32, zero beyond the used channels.
      bias: [C], float32, zero beyond the used channels.
      used: int32 scalar, channels of the sampled architecture; None means all.
      statistics: mean and variance [C] to normalise with, which get no gradient; None means the batch's own.
      weights: arrays that the gate takes; they get a gradient.
      keep: float32 [B], a factor for each image, which gets no gradient; None, and always None with a gate.
      residual: [B, H, W, C], zero beyond the used channels, or None.
      own: mean and biased variance [C] of x on this device, where what made x computed them too, or None.
      activation: a name in `activation.FUNCTIONS`.
      gate: function (pooled, weights) -> [B, C], or None. pooled [B, C] is the mean of activation(batch norm(x)) over
        the positions.
      axis_name: mesh axis whose devices share the batch's statistics (synchronised batch norm), or None.
      epsilon: a number that is added to the variance.
    Returns:
      y [B, H, W, C] in the dtype of x, mean [C] and biased variance [C]. The moments carry no gradient.
    """
    arguments = x, scale, bias, used, statistics, weights, keep, residual, own
    return _forward(*arguments, activation, gate, axis_name, epsilon)[0]


def _forward(x, scale, bias, used, statistics, weights, keep, residual, own, activation, gate, axis_name, epsilon):
    passes = _passes(x)
    mean, variance = moments(x, axis_name, used, own) if statistics is None else statistics
    affine = Affine(mean, variance, scale, bias, epsilon)
    pooled = gates = None
    if gate is not None:
        pooled = passes.pooled(x, affine, used, activation)
        gates = gate(pooled, weights)
    y = passes.apply(x, affine, gates, used, activation, keep, residual)
    saved = x, affine[:4], used, statistics is None, pooled, weights, keep, residual is not None
    return (y, mean, variance), saved


def _backward(activation, gate, axis_name, epsilon, saved, cotangents):
    x, vectors, used, own_moments, pooled, weights, keep, has_residual = saved
    g, passes, affine = cotangents[0], _passes(x), Affine(*vectors, epsilon)
    gates = extra = None
    d_weights = jax.tree.map(jnp.zeros_like, weights)
    if gate is not None:
        gates, pull = jax.vjp(gate, pooled, weights)
        sums = passes.gate_sums(x, g, affine, used, activation)
        d_pooled, d_weights = pull(sums[0].astype(gates.dtype))
        extra = d_pooled / (x.shape[1] * x.shape[2])
        d_bias, d_scale = passes.gated_reduce(sums, gates, extra)
    else:
        d_bias, d_scale = passes.reduce(x, g, affine, used, activation, keep)
    sums = None
    if own_moments:
        sums = (d_bias, d_scale) if axis_name is None else mean_over((d_bias, d_scale), axis_name)
    count = x.size // x.shape[-1]
    dx = passes.input_gradient(x, g, affine, gates, extra, sums, count, used, activation, keep)
    return dx, d_scale, d_bias, None, None, d_weights, None, g if has_residual else None, None


normalize.defvjp(_forward, _backward)
