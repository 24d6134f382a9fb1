"""Depthwise convolution with its own gradient. It uses the implementation that is fastest on the device.

No implementation is fast everywhere. XLA's grouped convolution is slow with one channel a group, above all on CPUs
(JAX issues 13800 and 23713). Each implementation has a forward pass and two gradients. The implementation of each of
these three is chosen on its own, when it is traced.
"""

import contextlib
import dataclasses
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from bignas_jax.kernels import native
from bignas_jax.kernels.depthwise import cpu as depthwise_native
from bignas_jax.kernels.depthwise import grouped as depthwise_grouped
from bignas_jax.kernels.depthwise import pallas as depthwise_pallas
from bignas_jax.kernels.depthwise import shifted as depthwise_shifted
from bignas_jax.kernels.depthwise import table as depthwise_table
from bignas_jax.kernels.target import anywhere, current


@dataclasses.dataclass(frozen=True)
class Implementation:
    """One way to compute a depthwise convolution with padding k // 2, k odd, stride 1 or 2, summed in float32.

    Attributes:
      forward: (x, kernel, stride) -> y. x is [B, H, W, C]; kernel is [k, k, C] float32; y is
        [B, ceil(H / stride), ceil(W / stride), C] in the dtype of x.
      input_gradient: (g, kernel, stride, shape) -> dx. g has the shape of y; dx has `shape` [B, H, W, C] and the
        dtype of g.
      kernel_gradient: (x, g, size, stride) -> d_kernel, float32 [size, size, C].
    """

    forward: Callable
    input_gradient: Callable
    kernel_gradient: Callable


IMPLEMENTATIONS = {
    "shifted": Implementation(
        depthwise_shifted.forward, depthwise_shifted.input_gradient, depthwise_shifted.kernel_gradient
    ),
    "shifted_loop": Implementation(
        depthwise_shifted.forward, depthwise_shifted.input_gradient, depthwise_shifted.kernel_gradient_in_loop
    ),
    "grouped": Implementation(
        depthwise_grouped.forward, depthwise_grouped.input_gradient, depthwise_grouped.kernel_gradient
    ),
    "pallas": Implementation(
        depthwise_pallas.forward, depthwise_pallas.input_gradient, depthwise_pallas.kernel_gradient
    ),
}

# As the Pallas kernels, they also take `used`: the channels and the kernel side of the sampled architecture, which are
# known at run time.
NATIVE = Implementation(
    depthwise_native.forward, depthwise_native.input_gradient, depthwise_native.kernel_gradient
)

# JAX makes this value a part of the key of every jit cache: a function is traced again under another value.
_forced = jax.make_user_context(None)


def using(implementation: str):
    """A context in which every depthwise convolution uses one implementation.

    Args:
      implementation: a name in IMPLEMENTATIONS.
    Raises:
      ValueError: there is no implementation of that name.
    """
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(f"found depthwise implementation {implementation!r}, expected one of {list(IMPLEMENTATIONS)}")
    return _forced(implementation)


def forced() -> str | None:
    """The implementation of the `using` context that is active now; None outside of one."""
    return _forced.value


@contextlib.contextmanager
def portable():
    """A context for programs that leave this machine: they are traced as operations of StableHLO, no custom calls.

    Exports are traced in it, because they may run on another platform than this one.
    """
    with anywhere(), native.off(), using("shifted"):
        yield


def choose(
    platform: str,
    shape: tuple[int, ...],
    size: int,
    stride: int,
    dtype: jnp.dtype,
    direction: str = "forward",
    kind: str = "",
) -> str:
    """The implementation that computes one direction of a convolution on a platform.

    Args:
      platform: 'cpu', 'gpu' or another platform of `kernels.target`.
      shape: [B, H, W, C] of the input; B may be symbolic.
      size: side k of the kernel.
      stride: 1 or 2.
      dtype: dtype of the input.
      direction: 'forward', 'input_gradient' or 'kernel_gradient'.
      kind: the kind of device, a key of the table of measurements.
    Returns:
      A name in IMPLEMENTATIONS.
    """
    if platform == "cpu":
        return "shifted_loop"
    usable = ["shifted", "grouped"]
    if platform == "gpu" and depthwise_pallas.supports(shape, size, stride, dtype):
        usable.append("pallas")
    return depthwise_table.fastest(kind, shape, size, stride, dtype, direction, usable)


def _chosen(direction: str, shape: tuple[int, ...], size: int, stride: int, dtype: jnp.dtype, used) -> Callable:
    if _forced.value is None and size <= depthwise_native.LARGEST and native.usable(dtype):
        used = jnp.array([shape[3], size], jnp.int32) if used is None else used
        return partial(getattr(NATIVE, direction), used=used)
    target = current()
    name = _forced.value or choose(target.platform, shape, size, stride, dtype, direction, target.kind)
    run = getattr(IMPLEMENTATIONS[name], direction)
    return partial(run, used=used) if name == "pallas" else run


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def depthwise_conv(x: jax.Array, kernel: jax.Array, stride: int, used: jax.Array | None = None) -> jax.Array:
    """Depthwise convolution with padding k // 2, summed in float32.

    Args:
      x: [B, H, W, C] input.
      kernel: [k, k, C], float32, k odd.
      stride: 1 or 2.
      used: int32 [2], the channels and the kernel side of the sampled architecture; None means all. Channels of x and
        taps of the kernel outside of them are zero.
    Returns:
      [B, ceil(H / stride), ceil(W / stride), C] in the dtype of x.
    """
    return _forward(x, kernel, stride, used)[0]


def _forward(x, kernel, stride, used):
    run = _chosen("forward", x.shape, kernel.shape[0], stride, x.dtype, used)
    return run(x, kernel, stride), (x, kernel, used)


def _backward(stride, residuals, g):
    x, kernel, used = residuals
    size = kernel.shape[0]
    dx = _chosen("input_gradient", x.shape, size, stride, x.dtype, used)(g, kernel, stride, x.shape)
    d_kernel = _chosen("kernel_gradient", x.shape, size, stride, x.dtype, used)(x, g, size, stride)
    return dx.astype(x.dtype), d_kernel.astype(kernel.dtype), None


depthwise_conv.defvjp(_forward, _backward)
