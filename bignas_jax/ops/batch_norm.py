"""Elastic batch normalisation (Ioffe and Szegedy, 2015): the first channels of shared scales and biases."""

import jax
import jax.numpy as jnp
from flax import nnx

from bignas_jax.kernels.norm.normalize import normalize
from bignas_jax.ops.size import Size


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

    def __call__(
        self, x, size: Size, *, activation="identity", statistics=None, axis_name=None, gate=None, weights=()
    ):
        """Normalises [B, H, W, size.computed], then applies the activation, then the gate.

        Args:
          statistics: (mean, variance), each [size.computed] or longer, to normalise with; None: the batch's own.
          axis_name: mesh axis of synchronised batch norm.
          gate, weights: as for `normalize`.
        Returns:
          The output, same shape and dtype as x, and (mean, unbiased variance) [size.computed] of this batch (of the
          given statistics where there are some).
        """
        scale = size.mask(self.scale[...][: size.computed])
        bias = size.mask(self.bias[...][: size.computed])
        if statistics is not None:
            statistics = tuple(jnp.asarray(s[: size.computed]) for s in statistics)
        y, mean, variance = normalize(
            x, scale, bias, size.sampled, statistics, weights, activation, gate, axis_name
        )
        if statistics is not None:
            return y, statistics
        count = x.size // x.shape[-1] * (1 if axis_name is None else jax.lax.axis_size(axis_name))
        return y, (mean, variance * (count / max(count - 1, 1)))
