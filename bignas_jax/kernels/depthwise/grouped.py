"""Depthwise convolution as XLA's grouped convolution with one channel a group, and its transposes.

On GPUs XLA passes it to cuDNN. On CPUs it is slow (JAX issues 13800 and 23713). The library that computes it sums
products of bfloat16 in float32.
"""

import jax

from bignas_jax.kernels.precision import at_least_float32


def forward(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """x [B, H, W, C] and kernel [k, k, C] -> [B, ceil(H / stride), ceil(W / stride), C] in the dtype of x."""
    size, _, channels = kernel.shape
    half = size // 2
    return jax.lax.conv_general_dilated(
        x, kernel[:, :, None].astype(x.dtype), (stride, stride), [(half, half)] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=channels,
    )


def input_gradient(g: jax.Array, kernel: jax.Array, stride: int, shape: tuple[int, ...]) -> jax.Array:
    """The gradient with respect to x, of this shape [B, H, W, C], in the dtype of g."""
    (dx,) = jax.linear_transpose(lambda x: forward(x, kernel, stride), jax.ShapeDtypeStruct(shape, g.dtype))(g)
    return dx


def kernel_gradient(x: jax.Array, g: jax.Array, size: int, stride: int) -> jax.Array:
    """The gradient with respect to the kernel: [k, k, C], float32 or wider."""
    kernel = jax.ShapeDtypeStruct((size, size, x.shape[3]), x.dtype)
    (d_kernel,) = jax.linear_transpose(lambda kernel: forward(x, kernel, stride), kernel)(g.astype(x.dtype))
    return at_least_float32(d_kernel)
