"""Elastic 1x1 convolution: a matrix product over the channels.

A program that architectures share computes a product of its full shape or, where channels come with `Size.ends`, one
of several smaller ones, as the sampled architecture needs: `product_of_corner`.
"""

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx

from bignas_jax.ops.size import Size, at_least_float32


def fan_out_normal(rngs: nnx.Rngs, shape: tuple[int, ...], fan_out: int) -> jax.Array:
    """Normal with variance 2 / fan_out (He et al., 2015, equation 14)."""
    return jax.random.normal(rngs.params(), shape) * (2.0 / fan_out) ** 0.5


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def product_of_corner(
    x: jax.Array, kernel: jax.Array, chosen: jax.Array, corners: tuple[tuple[int, int], ...]
) -> jax.Array:
    """x @ kernel where only a corner of the kernel matters: the first of x's channels, or of the result's.

    One branch of a `jax.lax.switch` for each corner, forwards and backwards. The gradient is written out, since that
    of a switch keeps what every branch would need.

    Args:
      x: [N, I]. kernel: [I, O]. chosen: int32 scalar, which of `corners`.
      corners: (rows, columns) of the kernel, each at most (I, O).
    Returns:
      [N, O] in the dtype of x, zero beyond the corner's columns.
    """
    def branch(rows, columns):
        def product(x, kernel):
            y = x[:, :rows] @ kernel[:rows, :columns].astype(x.dtype)
            return _widen(y, (len(x), kernel.shape[1]))

        return product

    return jax.lax.switch(chosen, [branch(*corner) for corner in corners], x, kernel)


def _corner_forward(x, kernel, chosen, corners):
    return product_of_corner(x, kernel, chosen, corners), (x, kernel, chosen)


def _corner_backward(corners, residuals, g):
    x, kernel, chosen = residuals

    def branch(rows, columns):
        def gradients(x, kernel, g):
            corner, g = kernel[:rows, :columns].astype(x.dtype), g[:, :columns]
            d_kernel = (x[:, :rows].T @ g).astype(kernel.dtype)
            return _widen(g @ corner.T, x.shape), _widen(d_kernel, kernel.shape)

        return gradients

    return *jax.lax.switch(chosen, [branch(*corner) for corner in corners], x, kernel, g), None


product_of_corner.defvjp(_corner_forward, _corner_backward)


def _widen(x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """`x` in the corner of zeros of this shape."""
    return jnp.pad(x, [(0, wide - side) for side, wide in zip(x.shape, shape, strict=True)])


class PointwiseConv(nnx.Module):
    """1x1 convolution without bias whose first input and output channels are shared by all architectures.

    Unused input channels need no mask: they arrive as zeros. Unused output channels leave as arbitrary finite
    numbers, for the batch norm behind to switch off, unless `mask_out` is set.
    """

    def __init__(self, in_features: int, out_features: int, *, rngs: nnx.Rngs, mask_out: bool = False):
        self.kernel = nnx.Param(fan_out_normal(rngs, (in_features, out_features), out_features))
        self.mask_out = mask_out

    def __call__(self, x: jax.Array, out: Size, into: Size | None = None) -> jax.Array:
        """[B, H, W, I] -> [B, H, W, out.bucket], I being the input's bucket.

        Args:
          into: the channels of x, if they have `ends` to choose from; those of `out` do otherwise.
        """
        kernel, flat = self.kernel[...][: x.shape[-1], : out.bucket], x.reshape(-1, x.shape[-1])
        if self.mask_out:
            kernel = out.mask(kernel)
        if into is not None and into.stops:
            y = product_of_corner(flat, kernel, into.end, tuple((end, out.bucket) for end in into.ends))
        elif out.stops:
            y = product_of_corner(flat, kernel, out.end, tuple((x.shape[-1], end) for end in out.ends))
        else:
            y = flat @ kernel.astype(x.dtype)
        return y.reshape(*x.shape[:-1], out.bucket)


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
