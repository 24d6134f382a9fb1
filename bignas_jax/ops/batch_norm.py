"""Elastic batch normalisation (Ioffe and Szegedy, 2015): the first channels of shared scales and biases."""

import jax
import jax.numpy as jnp
from flax import nnx

from bignas_jax.kernels.activation import FUNCTIONS
from bignas_jax.kernels.norm.normalize import EPSILON, normalize
from bignas_jax.kernels.precision import at_least_float32
from bignas_jax.ops import rounding, squeeze_excite
from bignas_jax.ops.size import Size


class BatchNorm(nnx.Module):
    """Elastic batch norm: the first channels of shared scales and biases.

    This module switches off the channels of a bucket that the sampled architecture does not use. Their scale and bias
    are zero, so that they are zero in the output (every activation maps 0 to 0) and send no gradient back.

    Args:
      features: channels of the widest architecture.
      zero_scale: whether the scale starts at 0 (Goyal et al., 2017, section 5.1) and not at 1.
      epsilon: a number that is added to the variance.
    """

    def __init__(self, features: int, *, zero_scale: bool = False, epsilon: float = EPSILON):
        self.scale = nnx.Param(jnp.zeros(features) if zero_scale else jnp.ones(features))
        self.bias = nnx.Param(jnp.zeros(features))
        self.epsilon = epsilon

    def __call__(
        self, x, size: Size, *, activation="identity", statistics=None, axis_name=None, gate=None, weights=(),
        keep=None, residual=None, moments=None,
    ):  # fmt: skip
        """Normalises x, then applies the activation, then the gate, the images' factors and the residual.

        Args:
          x: [B, H, W, size.computed] input.
          size: the channels of x.
          activation: a name in `kernels.activation.FUNCTIONS`.
          statistics: (mean, variance) to normalise with, each [size.computed] or longer; None means the batch's own.
          axis_name: mesh axis of synchronised batch norm, or None.
          gate: as for `normalize`.
          weights: as for `normalize`.
          keep: as for `normalize`.
          residual: as for `normalize`.
          moments: mean and biased variance of x, which the product before this may have given, or None.
        Returns:
          The output, of the shape and dtype of x, and (mean, unbiased variance) of this batch, each [size.computed].
          If statistics were given, they are returned instead.
        """
        scale = size.mask(self.scale[...][: size.computed])
        bias = size.mask(self.bias[...][: size.computed])
        if statistics is not None:
            statistics = tuple(jnp.asarray(s[: size.computed]) for s in statistics)
            tape = rounding.tape()
            if tape is not None:
                affine = scale, bias, *statistics, self.epsilon
                return _rounded(x, affine, size, activation, gate, weights, residual, tape), statistics
        y, mean, variance = normalize(
            x, scale, bias, size.sampled, statistics, weights, keep, residual, moments, activation, gate, axis_name,
            self.epsilon,
        )
        if statistics is not None:
            return y, statistics
        count = x.size // x.shape[-1] * (1 if axis_name is None else jax.lax.axis_size(axis_name))
        return y, (mean, variance * (count / max(count - 1, 1)))


def _rounded(x, affine, size: Size, activation: str, gate, weights, residual, tape: rounding.Tape) -> jax.Array:
    """What `BatchNorm.__call__` computes with given statistics, where the output of the norm is rounded to 8 bits."""
    scale, bias, mean, variance, epsilon = affine
    gain = scale * jax.lax.rsqrt(variance + epsilon)
    y = FUNCTIONS[activation](tape.values(at_least_float32(x) * gain + (bias - mean * gain)))
    if gate is squeeze_excite.gate:
        y = y * squeeze_excite.rounded_gate(jnp.mean(y, (1, 2)), weights, tape, size)[:, None, None]
    elif gate is not None:
        y = y * gate(jnp.mean(y, (1, 2)), weights)[:, None, None]
    return (y if residual is None else y + residual).astype(x.dtype)
