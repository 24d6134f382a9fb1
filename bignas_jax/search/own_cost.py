"""A cost of the user's own: a function of a child's layers, named as `package.module:function`."""

import hashlib
import math
from typing import Any

from bignas_jax.errors import ConfigError
from bignas_jax.plugins import find, source
from bignas_jax.spaces.architecture import Architecture
from bignas_jax.spaces.space import Space

FIELD = "config.search.own_cost"


class OwnCost:
    """The cost of an architecture that the user's function gives.

    The function is called once for an architecture, as `function(layout)`. `layout` is the tuple of the child's layers
    (`spaces.layers.Layer`) in order, from the stem to the classifier, with its own sizes. It returns a number >= 0, and
    the same one for the same layers: a search that was stopped calls it again.

    Args:
      name: `package.module:function`.
      space: the search space.
      num_classes: classes of the classifier.

    Raises:
      ConfigError: there is no such module or function, or it is none; one line.
    """

    def __init__(self, name: str, space: Space, num_classes: int):
        self.name, self._space, self._num_classes = name, space, num_classes
        try:
            self._function = find(name, {}, FIELD, "function")
        except ConfigError:
            raise
        except Exception as error:  # of the user's module
            raise ConfigError(f"{FIELD}: {name} cannot be imported ({_said(error)}): mend its module") from error
        if not callable(self._function):
            raise ConfigError(f"{FIELD}: found {self._function!r} as {name}, expected a function of a child's layers")

    @property
    def about(self) -> dict[str, str]:
        """Its name, and a digest of its module's text: what the costs of a result rest on."""
        return {"name": self.name, "source": hashlib.sha256(source(self._function).encode()).hexdigest()[:12]}

    def __call__(self, arch: Architecture) -> float:
        """The cost of an architecture.

        Raises:
          ConfigError: the function failed, or gave no number >= 0; one line with the architecture.
          ValueError: `arch` is not in the space.
        """
        layout = self._space.restricted(only=arch).layout(arch, self._num_classes)
        try:
            value = self._function(layout)
        except Exception as error:  # whatever the user's function raises
            raise ConfigError(f"{FIELD}: {self.name} failed on {arch.to_json()} ({_said(error)}): mend it") from error
        cost = _number(value)
        if not (math.isfinite(cost) and cost >= 0):
            raise ConfigError(
                f"{FIELD}: found {value!r} from {self.name} for {arch.to_json()}, expected a finite number >= 0"
            )
        return cost


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".removesuffix(": ")


def _number(value: Any) -> float:
    """The value as a float; NaN if it is no number. An array of one number is one."""
    if isinstance(value, str | bytes | bool):
        return math.nan
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan
