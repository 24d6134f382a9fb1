"""Elastic 1x1 convolution: a matrix product over the channels.

A program that architectures share computes a product of its full shape or, where channels come with `Size.ends`, one
of several smaller ones, as the sampled architecture needs: `product_of_corner`.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from bignas_jax.kernels.corner import product_of_corner
from bignas_jax.kernels.precision import at_least_float32
from bignas_jax.ops.size import Size


def fan_out_normal(rngs: nnx.Rngs, shape: tuple[int, ...], fan_out: int) -> jax.Array:
    """Normal with variance 2 / fan_out (He et al., 2015, equation 14)."""
    return jax.random.normal(rngs.params(), shape) * (2.0 / fan_out) ** 0.5


class PointwiseConv(nnx.Module):
    """1x1 convolution without bias whose first input and output channels are shared by all architectures.

    Unused input channels need no mask: they arrive as zeros. Unused output channels leave as arbitrary finite
    numbers, for the batch norm behind to switch off, unless `mask_out` is set.
    """

    def __init__(self, in_features: int, out_features: int, *, rngs: nnx.Rngs, mask_out: bool = False):
        self.kernel = nnx.Param(fan_out_normal(rngs, (in_features, out_features), out_features))
        self.mask_out = mask_out

    def __call__(self, x: jax.Array, out: Size, into: Size | None = None) -> jax.Array:
        """[B, H, W, I] -> [B, H, W, out.computed], I being the input channels that are computed.

        Args:
          into: the channels of x, if they have `ends` to choose from; those of `out` do otherwise.
        """
        kernel, flat = self.kernel[...][: x.shape[-1], : out.computed], x.reshape(-1, x.shape[-1])
        if self.mask_out:
            kernel = out.mask(kernel)
        if into is not None and into.stops:
            y = product_of_corner(flat, kernel, into.end, tuple((end, out.computed) for end in into.ends))
        elif out.stops:
            y = product_of_corner(flat, kernel, out.end, tuple((x.shape[-1], end) for end in out.ends))
        else:
            y = flat @ kernel.astype(x.dtype)
        return y.reshape(*x.shape[:-1], out.computed)


class Linear(nnx.Module):
    """The classifier: elastic in its input, fixed in its output; computed in float32.

    Starts as normal(0, 0.01) with zero bias (Goyal et al., 2017, section 5.1).
    """

    def __init__(self, in_features: int, out_features: int, *, rngs: nnx.Rngs):
        self.kernel = nnx.Param(0.01 * jax.random.normal(rngs.params(), (in_features, out_features)))
        self.bias = nnx.Param(jnp.zeros(out_features))

    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, I] -> [B, out_features], float32; unused input channels are zero."""
        return at_least_float32(x) @ self.kernel[...][: x.shape[-1]] + self.bias[...]
