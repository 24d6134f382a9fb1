"""Stem: a dense 3x3 convolution on the image, elastic in its output."""

import jax
from flax import nnx

from bignas_jax.ops.pointwise import fan_out_normal
from bignas_jax.ops.size import Size


class StemConv(nnx.Module):
    """3x3 convolution without bias, with padding 1.

    Args:
      in_features: channels of the image.
      out_features: output channels of the widest architecture.
      stride: 1 or 2.
    """

    def __init__(self, in_features: int, out_features: int, stride: int, *, rngs: nnx.Rngs):
        self.kernel = nnx.Param(fan_out_normal(rngs, (3, 3, in_features, out_features), 9 * out_features))
        self.stride = stride

    def __call__(self, x: jax.Array, out: Size) -> jax.Array:
        """[B, H, W, in_features] -> [B, ceil(H / stride), ceil(W / stride), out.computed]."""
        kernel = self.kernel[...][..., : out.computed].astype(x.dtype)
        return jax.lax.conv_general_dilated(
            x,
            kernel,
            (self.stride, self.stride),
            ((1, 1), (1, 1)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
