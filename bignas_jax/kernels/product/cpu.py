"""The products of `told` and the convolution of `images` by the native kernels of the CPU (product.cc and
convolution.cc in bignas_jax/kernels/native), float32 only."""

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


def convolve(
    x: jax.Array, kernel: jax.Array, used: Used, stride: int
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """The convolution with padding k // 2, and mean and biased variance of its result.

    Args:
      x: [B, H, W, I] input.
      kernel: [k, k, I, O].
      used: the sampled channels of the output; others are not written.
      stride: along both sides.
    Returns:
      [B, ceil(H / stride), ceil(W / stride), O], and (mean [O], variance [O]).
    """
    outputs = kernel.shape[-1]
    y = _float32(x.shape[0], -(-x.shape[1] // stride), -(-x.shape[2] // stride), outputs)
    numbers = _array(used, kernel.size // outputs, outputs)
    y, mean, variance = native.call(
        "convolution", (y, _float32(outputs), _float32(outputs)), x, kernel, numbers, stride=stride
    )
    return y, (mean, variance)


def convolution_kernel_gradient(x: jax.Array, g: jax.Array, side: int, used: Used, stride: int) -> jax.Array:
    """The gradient [k, k, I, O] of the kernel of `convolve`, zeros where a channel is not sampled.

    Args:
      x: [B, H, W, I] input.
      g: the gradient of the result.
      side: k, of the kernel.
      used: as for `convolve`.
      stride: along both sides.
    """
    shape = side, side, x.shape[-1], g.shape[-1]
    numbers = _array(used, side * side * x.shape[-1], g.shape[-1])
    return native.call("convolution_kernel_gradient", _float32(*shape), x, g, numbers, stride=stride)


def _float32(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def _array(used: Used, inputs: int, outputs: int) -> jax.Array:
    """int32 [2]."""
    return jnp.stack([jnp.asarray(number, jnp.int32) for number in used.numbers(inputs, outputs)])
