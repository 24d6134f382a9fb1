"""Batch normalisation (Ioffe and Szegedy, 2015) with its activation, and a gradient of its own.

The forward pass reads its input once for both moments; the backward pass keeps only that input and two vectors,
recomputes what it needs and makes two reductions. Automatic differentiation would keep three arrays of the size
of the activations instead.
"""

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx

from bignas_jax.ops.activation import DERIVATIVES, FUNCTIONS
from bignas_jax.ops.size import Size, at_least_float32

EPSILON = 1e-5


def moments(x: jax.Array, axis_name: str | None = None) -> tuple[jax.Array, jax.Array]:
    """Mean and biased variance over all axes but the last, in float32; over the devices of `axis_name` too.

    Args:
      x: [B, H, W, C].
    Returns:
      mean [C], variance [C].
    """
    # One pass over x. Sums of squares about a value of the data itself, not about zero: no cancellation when the
    # mean is large against the deviation.
    pivot = jax.lax.stop_gradient(at_least_float32(x[0, 0, 0]))
    centred = at_least_float32(x) - pivot
    shift = jnp.mean(centred, (0, 1, 2))
    variance = jnp.maximum(jnp.mean(centred * centred, (0, 1, 2)) - shift * shift, 0)
    mean = pivot + shift
    if axis_name is not None:
        total = jax.lax.pmean(mean, axis_name)
        variance = jax.lax.pmean(variance + jnp.square(mean - total), axis_name)
        mean = total
    return mean, variance


def _affine(x, scale, bias, mean, variance):
    """Batch norm on given moments, before it is rounded to the dtype of x."""
    gain = scale * jax.lax.rsqrt(variance + EPSILON)
    return at_least_float32(x) * gain + (bias - mean * gain)


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def normalize(x, scale, bias, activation: str = "identity", axis_name: str | None = None):
    """activation(batch norm(x)) on the statistics of the batch itself.

    Args:
      x: [B, H, W, C]. scale, bias: [C], float32.
      activation: a name in `activation.FUNCTIONS`.
      axis_name: mesh axis over which the statistics are shared (synchronised batch norm), or None.
    Returns:
      y [B, H, W, C] in the dtype of x, mean [C] and biased variance [C]. The moments carry no gradient.
    """
    mean, variance = moments(x, axis_name)
    y = FUNCTIONS[activation](_affine(x, scale, bias, mean, variance))
    return y.astype(x.dtype), mean, variance


def _forward(x, scale, bias, activation, axis_name):
    y, mean, variance = normalize(x, scale, bias, activation, axis_name)
    return (y, mean, variance), (x, scale, bias, mean, variance)


def _backward(activation, axis_name, residuals, cotangents):
    x, scale, bias, mean, variance = residuals
    g = cotangents[0]
    inverse = jax.lax.rsqrt(variance + EPSILON)
    normal = (at_least_float32(x) - mean) * inverse
    g = at_least_float32(g)
    if activation != "identity":
        g = g * DERIVATIVES[activation](normal * scale + bias)
    d_bias = jnp.sum(g, (0, 1, 2))
    d_scale = jnp.sum(g * normal, (0, 1, 2))
    count = x.size // x.shape[-1]
    mean_g, mean_gn = d_bias / count, d_scale / count
    if axis_name is not None:
        mean_g, mean_gn = jax.lax.pmean((mean_g, mean_gn), axis_name)
    dx = (scale * inverse) * (g - mean_g - normal * mean_gn)
    return dx.astype(x.dtype), d_scale, d_bias


normalize.defvjp(_forward, _backward)


class BatchNorm(nnx.Module):
    """Elastic batch norm: the first channels of shared scales and biases.

    Beyond the sampled size scale and bias are zero, so that those channels leave at zero (every activation maps 0
    to 0) and send no gradient back. This is where a bucket's unused channels are switched off.

    Args:
      features: channels of the widest architecture.
      zero_scale: start with scale 0 (Goyal et al., 2017, section 5.1), else 1.
    """

    def __init__(self, features: int, *, zero_scale: bool = False):
        self.scale = nnx.Param(jnp.zeros(features) if zero_scale else jnp.ones(features))
        self.bias = nnx.Param(jnp.zeros(features))

    def __call__(self, x, size: Size, *, activation="identity", statistics=None, axis_name=None):
        """Normalises [B, H, W, size.bucket], then applies the activation.

        Args:
          statistics: (mean, variance), each [size.bucket] or longer, to normalise with; None: the batch's own.
          axis_name: mesh axis of synchronised batch norm.
        Returns:
          The output, same shape and dtype as x, and (mean, unbiased variance) [size.bucket] of this batch (of the
          given statistics where there are some).
        """
        scale = size.mask(self.scale[...][: size.bucket])
        bias = size.mask(self.bias[...][: size.bucket])
        if statistics is not None:
            mean, variance = (s[: size.bucket] for s in statistics)
            y = FUNCTIONS[activation](_affine(x, scale, bias, mean, variance))
            return y.astype(x.dtype), (mean, variance)
        y, mean, variance = normalize(x, scale, bias, activation, axis_name)
        count = x.size // x.shape[-1] * (1 if axis_name is None else jax.lax.axis_size(axis_name))
        return y, (mean, variance * (count / max(count - 1, 1)))
