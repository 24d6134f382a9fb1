"""The families of networks by name."""

from collections.abc import Mapping
from typing import Any

from bignas_jax.plugins import find
from bignas_jax.spaces.mobilenet import SearchSpace
from bignas_jax.spaces.ofa import OfaSpace
from bignas_jax.spaces.resnet import ResNetSpace
from bignas_jax.spaces.space import Space, plain_mapping

DEFAULT = "mobilenet"
FAMILIES: dict[str, type[Space]] = {DEFAULT: SearchSpace, "ofa": OfaSpace, "resnet": ResNetSpace}


def space_of(config: Any) -> Space:
    """The space of a config's `space` part, or of `Space.to_dict`.

    Args:
      config: the fields of the family, and `family`, a name in FAMILIES or `package.module:Class`. Without `family` it
        is MobileNet's.
    Raises:
      ValueError: there is no such family; a field is missing, unknown or malformed.
    """
    values = plain_mapping(config)
    if not isinstance(values, Mapping):
        raise ValueError(f"space: found {values!r}, expected a mapping")
    family = find(str(values.get("family", DEFAULT)), FAMILIES, "space.family")
    return family.from_config({name: value for name, value in values.items() if name != "family"})


def load_space(config: Any) -> Space:
    """The search space of a config.

    Args:
      config: a config with a part `space`, as `load_config` gives it.
    Raises:
      ValueError: as in `space_of`.
    """
    return space_of(config["space"])
