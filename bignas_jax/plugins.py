"""What a config names: an entry of a registry, or a class of the user's own as `package.module:Class`."""

import importlib
import inspect
import sys
from collections.abc import Mapping
from typing import Any, TypeVar

from bignas_jax.errors import ConfigError

T = TypeVar("T")


def find(name: str, registry: Mapping[str, T], field: str, what: str = "class") -> T:
    """The entry of that name, or the class (or `what` else it is) that `package.module:Class` names.

    Args:
      field: where the name stands, such as `config.sandwich.loss`, for messages.
    Raises:
      ConfigError: there is no such entry, module or class.
    """
    if ":" not in name:
        if name not in registry:
            raise ConfigError(
                f"{field}: found {name!r}, expected one of {', '.join(registry)}, or a class of your own as "
                "package.module:Class"
            )
        return registry[name]
    module, _, attribute = name.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except ImportError as error:
        raise ConfigError(f"{field}: cannot import {module!r} of {name!r} ({error}): is it on PYTHONPATH?") from error
    except AttributeError as error:
        raise ConfigError(f"{field}: found no {attribute!r} in the module {module}, expected a {what}") from error


def source(plugged: Any) -> str:
    """The text of the module that a class or function comes from; '' where it has none.

    A program that was compiled from a user's class is kept under a name that this text is part of.
    """
    module = sys.modules.get(getattr(plugged, "__module__", ""))
    try:
        return inspect.getsource(module) if module is not None else ""
    except (OSError, TypeError):
        return ""
