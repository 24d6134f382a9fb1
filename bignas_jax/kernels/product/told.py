"""Matrix products of activations and a kernel, told the sampled sizes, with their own gradient.

The kernels are in Pallas for GPUs (`pallas`), and in C++ for CPUs (`cpu`). They load and compute the sampled channels
alone. What they write of channels that are not sampled is nothing (whatever was in memory stays) or, with `whole`,
zeros: batch norm behind them, and the gradient of what comes before, load no more than the sampled channels either.
"""

from functools import partial
from types import ModuleType

import jax
import jax.numpy as jnp

from bignas_jax.kernels import native
from bignas_jax.kernels.product import cpu, pallas
from bignas_jax.kernels.product.used import Used
from bignas_jax.kernels.target import current


def kernels(shape: tuple[int, ...], outputs: int, dtype: jnp.dtype) -> ModuleType | None:
    """The kernels for the device that is traced for; None if it has none.

    Args:
      shape: of the input [B, H, W, I].
      outputs: channels of the result.
      dtype: of both.
    """
    if native.usable(dtype):
        return cpu
    if current().platform == "gpu" and pallas.supports(shape, outputs, dtype):
        return pallas
    return None


@partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def product(
    x: jax.Array, kernel: jax.Array, used: Used, by: ModuleType, whole: bool = False, moments: bool = False
) -> tuple[jax.Array, tuple[jax.Array, jax.Array] | None]:
    """x @ kernel in the dtype of x, summed in float32.

    Args:
      x: [N, I] input.
      kernel: [I, O].
      used: the sampled channels of the input and of the output. Others are not loaded.
      by: what `kernels` gave.
      whole: whether other channels of the result, and of the gradient of x, are zeros; otherwise they hold anything,
        NaN included.
      moments: whether mean and biased variance of the result are asked for.
    Returns:
      [N, O], and (mean [O], variance [O]) in float32, which carry no gradient, or None.
    """
    return by.multiply(x, kernel, used, whole=whole, moments=moments)


def _forward(x, kernel, used, by, whole, moments):
    return product(x, kernel, used, by, whole, moments), (x, kernel, used)


def _backward(by, whole, moments, saved, cotangents):
    x, kernel, used = saved
    g = cotangents[0]
    dx, _ = by.multiply(g, kernel, used.turned(), turned=True, whole=whole)
    return dx, by.kernel_gradient(x, g, used).astype(kernel.dtype), Used()


product.defvjp(_forward, _backward)
