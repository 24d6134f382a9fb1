"""An architecture: one choice of everything that a search space leaves open."""

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any

from bignas_jax.errors import FileError
from bignas_jax.files import parse_json

PerStage = tuple[float | tuple[float, ...], ...]


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _check_size(field: str, value: Any) -> None:
    if not _is_int(value) or value < 1:
        raise ValueError(f"architecture: {field}: found {value!r}, expected an integer >= 1")


def _check_ratio(field: str, value: Any) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 < value < math.inf:
        raise ValueError(f"architecture: {field}: found {value!r}, expected a number > 0")


def _as_sizes(field: str, value: Any) -> tuple:
    if not isinstance(value, list | tuple):
        raise ValueError(f"architecture: {field}: found {value!r}, expected a list of integers")
    return tuple(value)


@dataclasses.dataclass(frozen=True)
class Architecture:
    """One architecture, a frozen and hashable value. Sizes are plain integers; a ratio may be a fraction.

    Attributes:
      resolution: side of the square input in pixels.
      width: output channels of the stem, of each stage, and of the head if there is one; `len(depth) + 2` entries, or
        `len(depth) + 1` without a head.
      kernel_size: side of the depthwise kernel, one entry a stage.
      expand_ratio: middle channels of a block divided by its input channels (of a bottleneck: by its output channels),
        one entry a stage.
      depth: number of blocks, one entry a stage.

    An entry of `kernel_size` or `expand_ratio` may be a tuple with one number for each block of its stage. A tuple of
    equal numbers is stored as this number, so that a network can be written in one way only.

    Raises:
      ValueError: a size is not a positive integer, a ratio is no positive number, or the lengths disagree.
    """

    resolution: int
    width: tuple[int, ...]
    kernel_size: PerStage
    expand_ratio: PerStage
    depth: tuple[int, ...]

    def __post_init__(self):
        _check_size("resolution", self.resolution)
        for name in ("width", "depth"):
            sizes = _as_sizes(name, getattr(self, name))
            object.__setattr__(self, name, sizes)
            for position, size in enumerate(sizes):
                _check_size(f"{name}[{position}]", size)
        stages = len(self.depth)
        if stages < 1:
            raise ValueError("architecture: depth: found no entry, expected one a stage")
        if len(self.width) not in (stages + 1, stages + 2):
            raise ValueError(f"architecture: width: found {len(self.width)} entries, expected {stages + 2}"
                             f" (stem, {stages} stages as in depth, head), or {stages + 1} without a head")
        for name in ("kernel_size", "expand_ratio"):
            object.__setattr__(self, name, self._checked_per_stage(name))

    def _checked_per_stage(self, name: str) -> PerStage:
        entries = _as_sizes(name, getattr(self, name))
        if len(entries) != len(self.depth):
            raise ValueError(f"architecture: {name}: found {len(entries)} entries, expected {len(self.depth)}"
                             " (one a stage, as in depth)")
        checked, check = [], _check_ratio if name == "expand_ratio" else _check_size
        for position, (entry, depth) in enumerate(zip(entries, self.depth, strict=True)):
            field = f"{name}[{position}]"
            if not isinstance(entry, list | tuple):
                check(field, entry)
                checked.append(entry)
                continue
            if len(entry) != depth:
                raise ValueError(f"architecture: {field}: found {len(entry)} entries,"
                                 f" expected {depth} (one a block, as in depth[{position}])")
            for block, size in enumerate(entry):
                check(f"{field}[{block}]", size)
            checked.append(entry[0] if len(set(entry)) == 1 else tuple(entry))
        return tuple(checked)

    def to_dict(self) -> dict[str, Any]:
        """A dictionary of numbers and (nested) lists, in the JSON form that is usual in the field."""
        def listed(entries):
            return [list(e) if isinstance(e, tuple) else e for e in entries]

        return {
            "resolution": self.resolution,
            "width": list(self.width),
            "kernel_size": listed(self.kernel_size),
            "expand_ratio": listed(self.expand_ratio),
            "depth": list(self.depth),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Architecture":
        """The inverse of `to_dict`.

        Args:
          values: a mapping with the names of the attributes as its keys.
        Raises:
          ValueError: a key is missing or unknown, or a value is malformed; the message names it.
        """
        names = [field.name for field in dataclasses.fields(cls)]
        if not isinstance(values, Mapping):
            raise ValueError(f"architecture: found {values!r}, expected an object with {', '.join(names)}")
        missing = [name for name in names if name not in values]
        unknown = [str(key) for key in values if key not in names]
        for kind, keys in (("missing", missing), ("unknown", unknown)):
            if keys:
                raise ValueError(f"architecture: found {kind} keys {', '.join(keys)},"
                                 f" expected exactly {', '.join(names)}")
        return cls(**{name: values[name] for name in names})

    def to_json(self) -> str:
        """One line of JSON with the keys resolution, width, kernel_size, expand_ratio and depth."""
        return json.dumps(self.to_dict())

    @classmethod
    def from_json(cls, text: str) -> "Architecture":
        """The inverse of `to_json`.

        Raises:
          ValueError: the text is not JSON, or does not describe an architecture.
        """
        return cls.from_dict(json_value(text))


def json_value(text: str) -> Any:
    """The value that a text of JSON describes.

    Raises:
      ValueError: the text is not JSON.
    """
    try:
        return parse_json(text)
    except FileError as error:
        raise ValueError(f"architecture: {error}, expected an object such as"
                         ' {"resolution": 224, "width": [...], ...}') from error
