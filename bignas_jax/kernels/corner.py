"""A matrix product in which a sampled architecture uses only a corner of the kernel."""

from functools import partial

import jax
import jax.numpy as jnp


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
            d_kernel = (x[:, :rows].T @ g).astype(kernel.dtype)
            return _widen(g @ corner.T, x.shape), _widen(d_kernel, kernel.shape)

        return gradients

    return *jax.lax.switch(chosen, [branch(*corner) for corner in corners], x, kernel, g), None


product_of_corner.defvjp(_corner_forward, _corner_backward)


def _widen(x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """`x`, padded at its end with zeros to this shape."""
    return jnp.pad(x, [(0, wide - side) for side, wide in zip(x.shape, shape, strict=True)])
