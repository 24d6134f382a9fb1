"""One supernet is trained once; every slice of it is a network that is good as it is (Yu et al., 2020, BigNAS).

Importing the package does nothing else: neither JAX nor torch is imported before something asks for them.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # for editors and type checkers
    from bignas_jax.api import open_run
    from bignas_jax.config.recipes import load_recipe as load_config
    from bignas_jax.spaces.architecture import Architecture
    from bignas_jax.spaces.cost import count
    from bignas_jax.spaces.mobilenet import SearchSpace
    from bignas_jax.spaces.registry import load_space

__version__ = "0.1.0"
__all__ = ["Architecture", "SearchSpace", "count", "load_config", "load_space", "open_run"]

# The module that each name comes from, and what it is called there.
_NAMES = {
    "Architecture": ("spaces.architecture", "Architecture"),
    "SearchSpace": ("spaces.mobilenet", "SearchSpace"),
    "count": ("spaces.cost", "count"),
    "load_config": ("config.recipes", "load_recipe"),
    "load_space": ("spaces.registry", "load_space"),
    "open_run": ("api", "open_run"),
}


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _NAMES[name]
    return getattr(importlib.import_module(f"{__name__}.{module}"), attribute)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
