"""Matrix products and convolutions of activations and a kernel, with their gradients: of all, and of a corner of it.

The gradient of the kernel is summed and written in the kernel's own dtype. Automatic differentiation would round it to
the dtype of the activations and convert it in a pass of its own.
"""

from functools import partial

import jax
import jax.numpy as jnp


@jax.custom_vjp
def product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """x @ kernel in the dtype of x.

    Args:
      x: [N, I] input.
      kernel: [I, O].
    """
    return x @ kernel.astype(x.dtype)


def _product_forward(x, kernel):
    return product(x, kernel), (x, kernel)


def _product_backward(saved, g):
    x, kernel = saved
    return g @ kernel.astype(x.dtype).T, _kernel_gradient(x, g, kernel.dtype)


product.defvjp(_product_forward, _product_backward)


def _kernel_gradient(x: jax.Array, g: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """x.T @ g, summed and written in this dtype."""
    return jax.lax.dot_general(x, g, (((0,), (0,)), ((), ())), preferred_element_type=dtype)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def product_of_corner(
    x: jax.Array, kernel: jax.Array, chosen: jax.Array, corners: tuple[tuple[int, int], ...]
) -> jax.Array:
    """x @ kernel, computed with a corner of the kernel: its first rows and columns.

    Each corner is a branch of a `jax.lax.switch`, in the forward and in the backward pass. The gradient is written by
    hand: automatic differentiation of a switch stores the values that every branch needs.

    Args:
      x: [N, I] input.
      kernel: [I, O].
      chosen: int32 scalar, position in `corners`.
      corners: (rows, columns) of each corner, at most (I, O).
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
            d_kernel = _kernel_gradient(x[:, :rows], g, kernel.dtype)
            return _widen(g @ corner.T, x.shape), _widen(d_kernel, kernel.shape)

        return gradients

    return *jax.lax.switch(chosen, [branch(*corner) for corner in corners], x, kernel, g), None


product_of_corner.defvjp(_corner_forward, _corner_backward)


def _widen(x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """`x`, padded at its end with zeros to this shape."""
    return jnp.pad(x, [(0, wide - side) for side, wide in zip(x.shape, shape, strict=True)])


def dense_conv(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """Convolution with padding k // 2, in the dtype of x.

    Args:
      x: [B, H, W, I] input.
      kernel: [k, k, I, O].
      stride: along both sides.
    Returns:
      [B, ceil(H / stride), ceil(W / stride), O].
    """
    pad = kernel.shape[0] // 2
    return jax.lax.conv_general_dilated(
        x, kernel.astype(x.dtype), (stride, stride), ((pad, pad), (pad, pad)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )  # fmt: skip


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def conv_of_corner(
    x: jax.Array, kernel: jax.Array, chosen: jax.Array, ends: tuple[int, ...], stride: int
) -> jax.Array:
    """dense_conv(x, kernel, stride), computed with the first input and output channels alone.

    Args:
      x: [B, H, W, C] input.
      kernel: [k, k, C, C].
      chosen: int32 scalar, position in `ends`.
      ends: counts of channels, at most C; the chosen one applies to input and output.
      stride: along both sides.
    Returns:
      [B, ceil(H / stride), ceil(W / stride), C] in the dtype of x, zero beyond the chosen channels.
    """
    def branch(end):
        def conv(x, kernel):
            y = dense_conv(x[..., :end], kernel[:, :, :end, :end], stride)
            return _widen(y, (*y.shape[:-1], kernel.shape[-1]))

        return conv

    return jax.lax.switch(chosen, [branch(end) for end in ends], x, kernel)


def _conv_forward(x, kernel, chosen, ends, stride):
    return conv_of_corner(x, kernel, chosen, ends, stride), (x, kernel, chosen)


def _conv_backward(ends, stride, residuals, g):
    x, kernel, chosen = residuals

    def branch(end):
        def gradients(x, kernel, g):
            _, pull = jax.vjp(lambda x, k: dense_conv(x, k, stride), x[..., :end], kernel[:, :, :end, :end])
            d_x, d_kernel = pull(g[..., :end])
            return _widen(d_x, x.shape), _widen(d_kernel, kernel.shape)

        return gradients

    return *jax.lax.switch(chosen, [branch(end) for end in ends], x, kernel, g), None


conv_of_corner.defvjp(_conv_forward, _conv_backward)
