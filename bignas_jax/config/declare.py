"""How the fields of a config are declared: a field's type, default, values and their words, and a group of fields."""

import dataclasses
import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, Self

from bignas_jax.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Field:
    """The values that a field may hold.

    Attributes:
      kind: the type. A tuple holds numbers. A float may be given as an integer.
      ok: a further condition on the value.
      expected: type and condition in words, for messages and `--help`.
    """

    kind: type
    ok: Callable[[Any], bool]
    expected: str

    def holds(self, value: Any) -> bool:
        """Whether the field may hold this value."""
        return _has_type(self.kind, value) and self.ok(value)

    def canonical(self, value: Any) -> Any:
        """The value in the field's type: an integer becomes a float, or a list becomes a tuple of floats."""
        if not _has_type(self.kind, value):
            return value
        if self.kind is tuple:
            return tuple(float(v) for v in value)
        return float(value) if self.kind is float else value


def _has_type(kind: type, value: Any) -> bool:
    if kind is tuple:
        return isinstance(value, tuple | list) and all(_has_type(float, v) for v in value)
    if kind is float:  # an integer beyond all floats is not finite either
        return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < math.inf
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def option(kind: type, ok: Callable[[Any], bool], expected: str, default: Any = dataclasses.MISSING) -> Any:
    """A field of a group. If it has no default, the recipe must give it."""
    return dataclasses.field(default=default, metadata={"field": Field(kind, ok, expected)})


def integer(least: int, default: Any = dataclasses.MISSING, below: int = 2**31) -> Any:
    """An integer. It has an end, as what is counted up to it, or stored in 32 bits, would not."""
    words = f"an integer >= {least} and < {'2**31' if below == 2**31 else below}"
    return option(int, lambda v: least <= v < below, words, default)


def number(ok: Callable[[float], bool], expected: str, default: Any = dataclasses.MISSING) -> Any:
    return option(float, ok, f"a number {expected}", default)


def plugged(*names: str, default: Any = dataclasses.MISSING) -> Any:
    """A field for one of these names, or for a class of the user's own."""
    words = f"one of {', '.join(names)}, or a class of your own as package.module:Class"
    return option(str, lambda v: v in names or bool(re.fullmatch(r"[\w.]+:\w+", v)), words, default)


def positive(default: Any = dataclasses.MISSING) -> Any:
    return number(lambda v: v > 0, "> 0", default)


def not_negative(default: Any = dataclasses.MISSING) -> Any:
    return number(lambda v: v >= 0, ">= 0", default)


def fraction(default: Any = dataclasses.MISSING) -> Any:
    return number(lambda v: 0 <= v <= 1, "from 0 to 1", default)


def rate(default: Any = dataclasses.MISSING) -> Any:
    return number(lambda v: 0 <= v < 1, ">= 0 and < 1", default)


def numbers(length: int, ok: Callable[[tuple], bool], expected: str, default: Any = dataclasses.MISSING) -> Any:
    return option(tuple, lambda v: len(v) == length and ok(v), expected, default)


def switch(default: Any = dataclasses.MISSING) -> Any:
    return option(bool, lambda v: True, "True or False", default)


def one_of(*names: str, default: Any = dataclasses.MISSING) -> Any:
    return option(str, lambda v: v in names, "one of " + ", ".join(names), default)


def text(default: Any = dataclasses.MISSING, ok: Callable[[str], bool] = lambda v: True,
          expected: str = "a string") -> Any:
    return option(str, ok, expected, default)


def name() -> Any:
    return text(ok=bool, expected="a string that is not empty")


class Group:
    """Options that belong together. Each field is checked when the group is made.

    Attributes:
      prefix: the text before the names of its fields in a config, with the dot.

    Raises:
      ConfigError: a field has a value that it may not hold; the message names the field.
    """

    prefix: ClassVar[str] = ""

    def __init_subclass__(cls, part: str = ""):
        cls.prefix = f"{part}." if part else ""

    def __post_init__(self):
        for option in dataclasses.fields(self):
            field, value = option.metadata.get("field"), getattr(self, option.name)
            if field is not None and not field.holds(value):
                raise ConfigError(f"config.{self.prefix}{option.name}: found {value!r}, expected {field.expected}")

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Self:
        """The group from its part of a config. Values are brought to the types of their fields (`Field.canonical`).

        Args:
          values: a mapping or a ConfigDict. Fields that it does not have get their defaults.
        Raises:
          ConfigError: a field is missing or unknown, or has a value that it may not hold.
        """
        if not hasattr(values, "items"):
            raise ConfigError(f"config.{cls.prefix.removesuffix('.')}: found {values!r}, expected a group of fields")
        found, left = {}, dict(values.items())
        for name, field, inner, default in members(cls):
            if name in left:
                value = left.pop(name)
                found[name] = field.canonical(value) if field else inner.of(value) if inner else plain(value)
            elif default is dataclasses.MISSING:
                others = "a group of fields" if inner else "the choices of a search space"
                expected = field.expected if field else others
                raise ConfigError(f"config.{cls.prefix}{name}: found nothing, expected {expected}")
        for name in left:
            raise ConfigError(f"config.{cls.prefix}{name}: found an unknown field")
        return cls(**found)

    def to_dict(self) -> dict[str, Any]:
        """The group as its part of a config: nested dictionaries, sorted by name as in a ConfigDict."""
        values = {option.name: getattr(self, option.name) for option in dataclasses.fields(self)}
        return {
            name: value.to_dict() if isinstance(value, Group) else plain(value)
            for name, value in sorted(values.items())
        }


def members(group: type[Group]) -> Iterator[tuple[str, Field | None, type[Group] | None, Any]]:
    """Name, field, group type and default of each option of a group.

    An option is a field, or another group, or the space, or the phases. The field is None unless the option is a field,
    and the type is None unless it is a group.
    """
    for option in dataclasses.fields(group):
        inner = option.type if isinstance(option.type, type) and issubclass(option.type, Group) else None
        made = option.default_factory is not dataclasses.MISSING
        yield option.name, option.metadata.get("field"), inner, option.default_factory() if made else option.default


def plain(value: Any) -> Any:
    """A config, or a part of it, as dictionaries that are sorted by name, with tuples in place of lists."""
    if isinstance(value, Mapping) or hasattr(value, "items"):
        return {name: plain(v) for name, v in sorted(value.items(), key=lambda item: str(item[0]))}
    return tuple(plain(v) for v in value) if isinstance(value, list | tuple) else value
