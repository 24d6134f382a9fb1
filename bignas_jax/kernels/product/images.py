"""The convolution of images, told the sampled output channels, with its own gradient: the stem's, on CPUs.

XLA's gradient of the kernel is slow on CPUs where sides and batch are powers of two, up to 15 times slower than the
forward pass. The native kernel computes a product of patches, a few of which lie in the cache at a time. Where inputs
have more channels, patches repeat too much of them.
"""

from functools import partial

import jax
import jax.numpy as jnp

from bignas_jax.kernels import native
from bignas_jax.kernels.product import cpu
from bignas_jax.kernels.product.corner import dense_conv
from bignas_jax.kernels.product.used import Used

PATCH = 64  # entries at most: 7x7 pixels of one channel, 3x3 of 3 to 7


def supports(kernel: jax.Array, dtype: jnp.dtype) -> bool:
    """Whether there is a kernel for the device that is traced for.

    Args:
      kernel: [k, k, I, O].
      dtype: of the input.
    """
    return kernel[..., 0].size <= PATCH and native.usable(dtype)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def convolution(
    x: jax.Array, kernel: jax.Array, used: Used, stride: int
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """dense_conv(x, kernel, stride), and the moments of the result.

    Args:
      x: [B, H, W, I] input, float32.
      kernel: [k, k, I, O], float32.
      used: the sampled channels of the output. Others of the result hold anything, NaN included, and are not loaded of
        its gradient. All channels of the input are used.
      stride: along both sides.
    Returns:
      [B, ceil(H / stride), ceil(W / stride), O], and (mean [O], biased variance [O]), which carry no gradient.
    """
    return cpu.convolve(x, kernel, used, stride)


def _forward(x, kernel, used, stride):
    return convolution(x, kernel, used, stride), (x, kernel, used)


def _backward(stride, saved, cotangents):
    x, kernel, used = saved
    g = cotangents[0]
    d_kernel = cpu.convolution_kernel_gradient(x, g, kernel.shape[0], used, stride)
    # Of images nobody asks for it, so that XLA leaves it out.
    sampled = g if used.outputs is None else jnp.where(jnp.arange(g.shape[-1]) < used.outputs, g, 0)
    (dx,) = jax.vjp(lambda x: dense_conv(x, kernel, stride), x)[1](sampled)
    return dx, d_kernel, Used()


convolution.defvjp(_forward, _backward)
