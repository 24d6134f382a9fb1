"""Depthwise convolution by the native kernels of the CPU (bignas_jax/kernels/native/depthwise.cc), float32 only.

`used` is int32 [2], the channels and the kernel side of the sampled architecture. The kernels read it at run time and
compute only these.
"""

import jax
import jax.numpy as jnp

from bignas_jax.kernels import native

LARGEST = 15  # side of a kernel; kLargest in depthwise.cc


def _result(shape: tuple[int, ...]) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def forward(x: jax.Array, kernel: jax.Array, stride: int, used: jax.Array) -> jax.Array:
    """x [B, H, W, C] and kernel [k, k, C] -> [B, ceil(H / stride), ceil(W / stride), C]."""
    batch, height, width, channels = x.shape
    shape = (batch, -(-height // stride), -(-width // stride), channels)
    return native.call("depthwise_forward", _result(shape), x, kernel, used, stride=stride)


def input_gradient(g: jax.Array, kernel: jax.Array, stride: int, shape: tuple[int, ...], used: jax.Array) -> jax.Array:
    """The gradient with respect to x, of this shape [B, H, W, C]."""
    return native.call("depthwise_input_gradient", _result(shape), g, kernel, used, stride=stride)


def kernel_gradient(x: jax.Array, g: jax.Array, size: int, stride: int, used: jax.Array) -> jax.Array:
    """The gradient with respect to the kernel: [k, k, C]."""
    shape = (size, size, x.shape[3])
    return native.call("depthwise_kernel_gradient", _result(shape), x, g, used, stride=stride)
