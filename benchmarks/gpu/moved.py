"""The bytes that kernels of our own state, from the tables beside their code."""

import importlib
from collections.abc import Callable

from benchmarks.gpu.traffic import OwnKernel

MODULES = ("bignas_jax.kernels.norm.pallas", "bignas_jax.kernels.depthwise.pallas", "bignas_jax.kernels.split")


def moved() -> dict[str, Callable[[OwnKernel], float]]:
    """By kernel's name, a function from a call of it to the bytes that it moves: each module's `MOVED`."""
    found = {}
    for name in MODULES:
        try:
            module = importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name != name:
                raise
            continue
        found |= getattr(module, "MOVED", {})
    return found
