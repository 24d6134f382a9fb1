"""Kernels in C++ for the CPU, which XLA's programs call by `jax.ffi`: for operations that XLA itself computes slowly.

The C++ compiler of the machine builds them for its own processor, from the sources in this folder. `make setup`
(`python -m bignas_jax.kernels.native`) builds them ahead; otherwise they are built before the first program is traced.
Without a compiler everything works with XLA's operations alone.
"""

import ctypes
import functools
import os
import sys
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from bignas_jax.kernels.native.toolchain import BuildError, build
from bignas_jax.kernels.target import current

SWITCH = "BIGNAS_JAX_NATIVE"  # environment variable: 0 switches the kernels off
ACTIVATIONS = ("identity", "swish", "h_swish", "relu", "relu6")  # by their number in common.h
TARGETS = (
    "convolution",
    "convolution_kernel_gradient",
    "depthwise_forward",
    "depthwise_input_gradient",
    "depthwise_kernel_gradient",
    "norm_moments",
    "norm_pooled",
    "norm_apply",
    "norm_gate_sums",
    "norm_reduce",
    "norm_input_gradient",
    "product",
    "product_moments",
    "product_kernel_gradient",
    "unwritten",
)

# JAX makes this value a part of the key of every jit cache: a function is traced again under another value.
_off = jax.make_user_context(False)


def off():
    """A context without native kernels: for programs that leave this machine, and for comparisons."""
    return _off(True)


def usable(dtype: jnp.dtype) -> bool:
    """Whether a program that is traced now, on arrays of this dtype, may call the kernels."""
    return dtype == jnp.float32 and not _off.value and current().platform == "cpu" and load()


def identity() -> str:
    """The name of the library of kernels that a program traced now may call; empty if it may call none."""
    return (library() or "") if usable(jnp.float32) else ""


def load() -> bool:
    """Builds the kernels if they are missing, and registers them with XLA.

    Returns:
      Whether that worked; if not, one line on stderr says why.
    """
    return library() is not None


@functools.cache
def library() -> str | None:
    """The name of the shared library whose kernels are registered; None if there is none."""
    if os.environ.get(SWITCH) == "0":
        return None
    try:
        path = build()
        library = ctypes.CDLL(str(path))
    except (BuildError, OSError) as error:
        print(f"no native kernels, the CPU computes slower: {error}", file=sys.stderr)
        return None
    for target in TARGETS:
        handler = jax.ffi.pycapsule(getattr(library, f"bignas_{target}"))
        jax.ffi.register_ffi_target(f"bignas_{target}", handler, platform="cpu")
    return path.name


def call(target: str, results, *arguments: jax.Array, **attributes):
    """Calls a kernel.

    Args:
      target: a name in TARGETS.
      results: shape and dtype of the result, a jax.ShapeDtypeStruct, or a tuple of them.
      *arguments: the arrays that the kernel takes, in order.
      **attributes: Python ints and bools, as the kernel declares them.
    Returns:
      One array, or one for each of the results.
    """
    function = jax.ffi.ffi_call(f"bignas_{target}", results, vmap_method="sequential")
    return function(*arguments, **attributes)


def unwritten(shapes: Sequence[jax.ShapeDtypeStruct]) -> list[jax.Array]:
    """Arrays that hold anything, NaN included: no time goes into what is never read."""
    return list(call("unwritten", tuple(shapes))) if shapes else []
