"""Elastic depthwise convolution: channels, kernel size and stride."""

import jax
import jax.numpy as jnp
from flax import nnx

from bignas_jax.kernels.depthwise.choice import depthwise_conv
from bignas_jax.kernels.transform import centre, matrix_name, transformed
from bignas_jax.ops import rounding
from bignas_jax.ops.size import Size


class DepthwiseConv(nnx.Module):
    """Depthwise convolution with elastic channels, kernel size and stride; no bias.

    A smaller kernel is the centre of the largest one (as in AttentiveNAS, Wang et al., 2021), or it is made from the
    next larger one by a trained matrix (as in Once-for-All; `kernels.transform`).

    Args:
      features: channels of the widest architecture.
      kernel_size: side of the largest kernel.
      stride: 1 or 2.
      transforms: the smaller sides that are made by a matrix, descending. The matrices start as the identity, which
        gives the centre.
    """

    def __init__(
        self, features: int, kernel_size: int, stride: int, transforms: tuple[int, ...] = (), *, rngs: nnx.Rngs
    ):
        deviation = (2.0 / kernel_size**2) ** 0.5
        self.kernel = nnx.Param(deviation * jax.random.normal(rngs.params(), (kernel_size, kernel_size, features)))
        self.stride = stride
        self.transforms = transforms
        for side in transforms:
            setattr(self, matrix_name(side), nnx.Param(jnp.eye(side * side)))

    def __call__(self, x: jax.Array, kernel_size: Size, channels: Size | None = None) -> jax.Array:
        """[B, H, W, C] -> [B, ceil(H / stride), ceil(W / stride), C].

        Args:
          x: [B, H, W, C] input.
          kernel_size: `computed` is the side that is computed. Taps outside the centre of side `sampled` are zero.
          channels: the channels of x, which are zero beyond the sampled ones; None means that all are sampled.
        """
        side, count = kernel_size.sampled, None if channels is None else channels.sampled
        used = None
        if side is not None or count is not None:
            side = kernel_size.computed if side is None else side
            used = jnp.stack([x.shape[-1] if count is None else count, side]).astype(jnp.int32)
        kernel = self._kernel(x.shape[-1], kernel_size.computed)
        if kernel_size.sampled is not None:
            distance = jnp.abs(jnp.arange(kernel_size.computed) - kernel_size.computed // 2)
            inside = distance <= kernel_size.sampled // 2
            for smaller in self.transforms:
                if smaller < kernel_size.computed:
                    pad = (kernel_size.computed - smaller) // 2
                    other = jnp.pad(self._kernel(x.shape[-1], smaller), ((pad, pad), (pad, pad), (0, 0)))
                    kernel = jnp.where(kernel_size.sampled == smaller, other, kernel)
            kernel = jnp.where((inside[:, None] & inside[None, :])[:, :, None], kernel, 0)
        tape = rounding.tape()
        if tape is not None:
            x, kernel = tape.values(x), tape.depthwise_weights(kernel)
        return depthwise_conv(x, kernel, self.stride, used)

    def _kernel(self, features: int, side: int) -> jax.Array:
        """The kernel of the first channels and this side: [side, side, features], float32."""
        kernel = self.kernel[...][:, :, :features]
        matrices = {smaller: getattr(self, matrix_name(smaller))[...] for smaller in self.transforms}
        with jax.default_matmul_precision("float32"):  # products of weights are few, and children have them baked in
            return centre(transformed(kernel, matrices, side), side)
