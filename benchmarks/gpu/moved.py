"""The bytes that kernels of our own state, from the tables beside their code."""

import importlib
import pkgutil
from collections.abc import Callable

import bignas_jax.kernels
from benchmarks.gpu.traffic import OwnKernel


def moved() -> dict[str, Callable[[OwnKernel], float]]:
    """By kernel's name, a function from a call of it to the bytes that it moves: `MOVED` of each module of kernels."""
    found = {}
    for module in pkgutil.walk_packages(bignas_jax.kernels.__path__, "bignas_jax.kernels."):
        if not module.name.endswith("__main__"):
            found |= getattr(importlib.import_module(module.name), "MOVED", {})
    return found
