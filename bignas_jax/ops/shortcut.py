"""The shortcut of a block: identity inside a stage, pooling and 1x1 convolution at its start (Yu et al., 2020)."""

import jax
import jax.numpy as jnp
from flax import nnx

from bignas_jax.kernels.precision import at_least_float32
from bignas_jax.ops.pointwise import PointwiseConv
from bignas_jax.ops.size import Size


def average_pool(x: jax.Array) -> jax.Array:
    """2x2 average pool of stride 2, [B, H, W, C] -> [B, ceil(H/2), ceil(W/2), C].

    An odd side is padded with a zero at both ends. These zeros count in the mean.
    """
    batch, height, width, channels = x.shape
    pad = ((0, 0), (height % 2, height % 2), (width % 2, width % 2), (0, 0))
    x = jnp.pad(x, pad)
    rows, columns = x.shape[1] // 2, x.shape[2] // 2
    x = x[:, : 2 * rows, : 2 * columns].reshape(batch, rows, 2, columns, 2, channels)
    return jnp.mean(at_least_float32(x), (2, 4)).astype(x.dtype)


def average_pool_whole(x: jax.Array) -> jax.Array:
    """2x2 average pool of stride 2, [B, H, W, C] -> [B, ceil(H/2), ceil(W/2), C].

    The last window of an odd side holds real pixels alone, and divides by their number.
    """
    batch, height, width, channels = x.shape
    rows, columns = -(-height // 2), -(-width // 2)
    x = jnp.pad(x, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)))
    total = jnp.sum(at_least_float32(x).reshape(batch, rows, 2, columns, 2, channels), (2, 4))
    counts = [jnp.full(n, 2.0).at[-1].set(2 - side % 2) for n, side in ((rows, height), (columns, width))]
    return (total / (counts[0][:, None, None] * counts[1][:, None])).astype(x.dtype)


class Shortcut(nnx.Module):
    """The shortcut of a stage's first block, which is added to the output of the block.

    It pools if the stride is 2. It applies a 1x1 convolution without norm if the widths differ.

    Args:
      in_features: input channels of the widest architecture.
      out_features: output channels of the widest architecture.
      stride: 1 or 2.
    """

    def __init__(self, in_features: int, out_features: int, stride: int, *, rngs: nnx.Rngs):
        self.conv = PointwiseConv(in_features, out_features, rngs=rngs, mask_out=True)
        self.stride = stride

    def __call__(self, x: jax.Array, in_size: Size, out: Size) -> jax.Array:
        """[B, H, W, in_size.computed] -> [B, ceil(H / stride), ceil(W / stride), out.computed]."""
        if self.stride == 2:
            x = average_pool(x)
        if in_size.sampled is None and out.sampled is None:
            return x if in_size.computed == out.computed else self.conv(x, out, in_size)
        # Only at run time is it known whether the sampled widths agree. Unused channels are zero in both cases.
        same = (in_size.computed if in_size.sampled is None else in_size.sampled) == (
            out.computed if out.sampled is None else out.sampled
        )
        return self.conv.or_identity(x, same, out, in_size)
