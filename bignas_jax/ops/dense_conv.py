"""Elastic dense convolution: the stem's, and the middle one of a bottleneck."""

import jax
from flax import nnx

from bignas_jax.kernels.product import images
from bignas_jax.kernels.product.corner import conv_of_corner, dense_conv
from bignas_jax.kernels.product.used import Used
from bignas_jax.ops import rounding
from bignas_jax.ops.pointwise import fan_out_normal
from bignas_jax.ops.size import Size


class DenseConv(nnx.Module):
    """Square convolution without bias, with padding k // 2. All architectures share its first channels.

    Unused input channels need no mask: they are zero in the input. Unused output channels hold arbitrary finite
    numbers, which the batch norm behind it switches off.

    Args:
      in_features: input channels of the widest architecture.
      out_features: output channels of the widest architecture.
      kernel_size: side of the kernel, odd.
      stride: 1 or 2.
    """

    def __init__(self, in_features: int, out_features: int, kernel_size: int, stride: int, *, rngs: nnx.Rngs):
        shape = (kernel_size, kernel_size, in_features, out_features)
        self.kernel = nnx.Param(fan_out_normal(rngs, shape, kernel_size**2 * out_features))
        self.stride = stride

    def __call__(self, x: jax.Array, out: Size, into: Size | None = None) -> jax.Array:
        """[B, H, W, I] -> [B, ceil(H / stride), ceil(W / stride), out.computed].

        Args:
          x: [B, H, W, I] input; I is the number of input channels that are computed.
          out: the output channels.
          into: the channels of x, or None. If it is `out` and these have `ends` to choose from, the convolution stops
            at the same end on both sides.
        """
        kernel = self.kernel[...][:, :, : x.shape[-1], : out.computed]
        tape = rounding.tape()
        if tape is not None:
            x, kernel = tape.values(x), tape.weights(kernel, into)
        if into is out and out.stops:
            return conv_of_corner(x, kernel, out.end, out.ends, self.stride)
        return dense_conv(x, kernel, self.stride)

    def before_norm(self, x: jax.Array, out: Size) -> tuple[jax.Array, tuple[jax.Array, jax.Array] | None]:
        """The same where nothing but an elastic batch norm takes the result: unused channels may hold anything.

        Args:
          x: [B, H, W, I] input, all of whose channels are used, or zeros.
          out: the output channels.
        Returns:
          The result, and its moments (mean, biased variance), if the same kernel gives them; otherwise None.
        """
        kernel = self.kernel[...][:, :, : x.shape[-1], : out.computed]
        if rounding.tape() is None and images.supports(kernel, x.dtype):
            return images.convolution(x, kernel, Used(None, out.sampled), self.stride)
        return self(x, out), None
