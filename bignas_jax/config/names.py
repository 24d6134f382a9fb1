"""The names of a config's fields, as they stand on a command line and in messages."""

import difflib
import re
from collections.abc import Iterable, Mapping
from typing import Any

from ml_collections import ConfigDict

from bignas_jax.config.declare import Field
from bignas_jax.config.options import declared

# Every field except those of `space`, which the space's family checks, and of `phases`, which are fields of its runs.
FIELDS: dict[str, Field] = {name: field for name, field, _ in declared()}


def field_of(name: str) -> Field | None:
    """The field of this dotted name, also where a phase gives it; None if there is none."""
    return FIELDS.get(re.sub(r"^phases\.\w+\.", "", name))


def flat(config: Mapping[str, Any] | ConfigDict, prefix: str = "") -> dict[str, Any]:
    """The values of a config by dotted name, in order."""
    values = {}
    for name, value in config.items():
        if isinstance(value, Mapping | ConfigDict) and value:
            values.update(flat(value, f"{prefix}{name}."))
        else:
            values[prefix + name] = value
    return values


def nearest(name: str, names: Iterable[str]) -> str:
    """The text ', did you mean config.<one of names>?'; '' if no name is near."""
    close = difflib.get_close_matches(name, list(names), n=1)
    return f", did you mean config.{close[0]}?" if close else ""
