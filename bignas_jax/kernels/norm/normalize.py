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
from bignas_jax.kernels.norm import passes as norm_passes
from bignas_jax.kernels.norm.passes import Affine, gated_reduce

EPSILON = 1e-5


def _passes(dtype: jnp.dtype) -> ModuleType:
    return norm_native if native.usable(dtype) else norm_passes


def moments(x: jax.Array, axis_name: str | None = None, used: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
    """Mean and biased variance over all axes but the last, in float32.

    Args:
      x: [B, H, W, C] input.
      axis_name: mesh axis whose devices share the moments, or None.
      used: int32 scalar, channels of the sampled architecture; None means all.
    Returns:
      mean [C] and variance [C].
    """
    used = jnp.int32(x.shape[-1]) if used is None else used
    mean, variance = _passes(x.dtype).moments(x, used)
    if axis_name is not None:
        total = jax.lax.pmean(mean, axis_name)
        variance = jax.lax.pmean(variance + jnp.square(mean - total), axis_name)
        mean = total
    return mean, variance


@partial(jax.custom_vjp, nondiff_argnums=(6, 7, 8, 9))
def normalize(
    x: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    used: jax.Array | None = None,
    statistics: tuple[jax.Array, jax.Array] | None = None,
    weights=(),
    activation: str = "identity",
    gate: Callable | None = None,
    axis_name: str | None = None,
    epsilon: float = EPSILON,
):
    """activation(batch norm(x)), multiplied by a gate if there is one.

    Args:
      x: [B, H, W, C] input.
      scale: [C], float32, zero beyond the used channels.
      bias: [C], float32, zero beyond the used channels.
      used: int32 scalar, channels of the sampled architecture; None means all.
      statistics: mean and variance [C] to normalise with, which get no gradient; None means the batch's own.
      weights: arrays that the gate takes; they get a gradient.
      activation: a name in `activation.FUNCTIONS`.
      gate: function (pooled, weights) -> [B, C], or None. pooled [B, C] is the mean of activation(batch norm(x)) over
        the positions.
      axis_name: mesh axis whose devices share the batch's statistics (synchronised batch norm), or None.
      epsilon: a number that is added to the variance.
    Returns:
      y [B, H, W, C] in the dtype of x, mean [C] and biased variance [C]. The moments carry no gradient.
    """
    return _forward(x, scale, bias, used, statistics, weights, activation, gate, axis_name, epsilon)[0]


def _forward(x, scale, bias, used, statistics, weights, activation, gate, axis_name, epsilon):
    passes = _passes(x.dtype)
    used = jnp.int32(x.shape[-1]) if used is None else used
    mean, variance = moments(x, axis_name, used) if statistics is None else statistics
    affine = Affine(mean, jax.lax.rsqrt(variance + epsilon), scale, bias)
    pooled = gates = None
    if gate is not None:
        pooled = passes.pooled(x, affine, used, activation)
        gates = gate(pooled, weights)
    y = passes.apply(x, affine, gates, used, activation)
    return (y, mean, variance), (x, affine, used, statistics is None, pooled, weights)


def _backward(activation, gate, axis_name, epsilon, residuals, cotangents):
    x, affine, used, own_moments, pooled, weights = residuals
    g, passes = cotangents[0], _passes(x.dtype)
    gates = extra = None
    d_weights = jax.tree.map(jnp.zeros_like, weights)
    if gate is not None:
        gates, pull = jax.vjp(gate, pooled, weights)
        sums = passes.gate_sums(x, g, affine, used, activation)
        d_pooled, d_weights = pull(sums[0].astype(gates.dtype))
        extra = d_pooled / (x.shape[1] * x.shape[2])
        d_bias, d_scale = gated_reduce(sums, gates, extra)
    else:
        d_bias, d_scale = passes.reduce(x, g, affine, used, activation)
    if own_moments:
        count = x.size // x.shape[-1]
        mean_g, mean_gn = d_bias / count, d_scale / count
        if axis_name is not None:
            mean_g, mean_gn = jax.lax.pmean((mean_g, mean_gn), axis_name)
    else:
        mean_g = mean_gn = jnp.zeros_like(d_bias)
    dx = passes.input_gradient(x, g, affine, gates, extra, mean_g, mean_gn, used, activation)
    return dx, d_scale, d_bias, None, None, d_weights


normalize.defvjp(_forward, _backward)
