"""The products of `told` by the native kernels of the CPU (bignas_jax/kernels/native/product.cc), float32 only."""

import jax
import jax.numpy as jnp

from bignas_jax.kernels import native
from bignas_jax.kernels.product.used import Used


def multiply(
    x: jax.Array, kernel: jax.Array, used: Used, turned: bool = False, whole: bool = False, moments: bool = False
) -> tuple[jax.Array, tuple[jax.Array, jax.Array] | None]:
    """x [N, I] @ kernel [I, O]; if `turned`, x [N, O] @ kernel.T, where `used` is of x and of the result.

    Args:
      x: the input.
      kernel: [I, O], turned or not.
      used: the sampled channels.
      turned: whether the kernel is transposed; then there are no moments.
      whole: whether channels that are not sampled get zeros.
      moments: whether mean and biased variance of the result are asked for.
    Returns:
      The product, and its moments or None.
    """
    width = kernel.shape[0 if turned else 1]
    y = _float32(len(x), width)
    if moments:
        vector, numbers = _float32(width), _array(used, *kernel.shape)
        y, mean, variance = native.call("product_moments", (y, vector, vector), x, kernel, numbers, whole=whole)
        return y, (mean, variance)
    numbers = _array(used.turned() if turned else used, *kernel.shape)
    return native.call("product", y, x, kernel, numbers, turned=turned, whole=whole), None


def kernel_gradient(x: jax.Array, g: jax.Array, used: Used) -> jax.Array:
    """x.T @ g: [I, O], zeros where a channel is not sampled."""
    inputs, outputs = x.shape[1], g.shape[1]
    return native.call("product_kernel_gradient", _float32(inputs, outputs), x, g, _array(used, inputs, outputs))


def _float32(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def _array(used: Used, inputs: int, outputs: int) -> jax.Array:
    """int32 [2]."""
    return jnp.stack([jnp.asarray(number, jnp.int32) for number in used.numbers(inputs, outputs)])
