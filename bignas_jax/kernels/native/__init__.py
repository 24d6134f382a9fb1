"""Kernels in C++ for the CPU, called from XLA's programs by `jax.ffi`: what XLA is slow at there.

They are built from the sources in this folder by the machine's own C++ compiler, for its own processor: by
`make setup` (`python -m bignas_jax.kernels.native`), or else before the first program is traced. Without a compiler
everything works as before, on XLA's operations alone.
"""

import ctypes
import functools
import os
import sys

import jax
import jax.numpy as jnp

from bignas_jax.kernels.native.toolchain import BuildError, build

SWITCH = "BIGNAS_JAX_NATIVE"  # environment variable: 0 switches the kernels off
ACTIVATIONS = ("identity", "swish", "h_swish", "relu")  # by their number in common.h
TARGETS = (
    "depthwise_forward",
    "depthwise_input_gradient",
    "depthwise_kernel_gradient",
    "norm_moments",
    "norm_pooled",
    "norm_apply",
    "norm_gate_sums",
    "norm_reduce",
    "norm_input_gradient",
)

# Part of the key of every jit cache: a function traced under one value is traced again under another.
_off = jax.make_user_context(False)


def off():
    """A context in which no native kernel is traced: for programs that leave this machine, and for comparisons."""
    return _off(True)


def usable(dtype: jnp.dtype) -> bool:
    """Whether a program that is traced now, on arrays of this dtype, may call the kernels."""
    return dtype == jnp.float32 and not _off.value and jax.default_backend() == "cpu" and load()


def identity() -> str:
    """Of the kernels that a program traced now may call; empty if there are none."""
    return (library() or "") if usable(jnp.float32) else ""


def load() -> bool:
    """Registers the kernels with XLA, building them if need be; False, and one line on why, if that is impossible."""
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
    """A call of one of TARGETS.

    Args:
      results: jax.ShapeDtypeStruct, one or a tuple.
      attributes: Python ints and bools, as the kernel declares them.
    """
    function = jax.ffi.ffi_call(f"bignas_{target}", results, vmap_method="sequential")
    return function(*arguments, **attributes)
