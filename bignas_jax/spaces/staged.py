"""Spaces of networks with a stem, stages of blocks, and often a head: their choices, config form and restrictions."""

import dataclasses
import re
from collections.abc import Mapping
from functools import cached_property
from typing import Any, ClassVar, Self

from bignas_jax.spaces.architecture import Architecture
from bignas_jax.spaces.space import (
    HEAD,
    KINDS,
    RESOLUTION,
    STEM,
    Choice,
    Space,
    fields_of,
    listed,
    plain_mapping,
)


class StagedSpace(Space):
    """A space with the choices of a stem, of stages, and of a head if it has one.

    A subclass is a dataclass with the fields `resolution`, `stem_width`, `stages` (dataclasses with the fields `name`,
    `width`, `depth`, `kernel_size` and `expand_ratio`) and, if there is a head, `head_width`.
    """

    resolution: tuple[int, ...]
    stem_width: tuple[int, ...]
    stages: tuple[Any, ...]

    stage_type: ClassVar[type]

    @property
    def _head_widths(self) -> tuple[int, ...]:
        """The widths of the head, () if there is none."""
        return getattr(self, "head_width", ())

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """The space of a config's `space` part, or of `to_dict()`.

        Args:
          config: the fields of the space. Its stages are sorted by the numbers in their names: mb10 follows mb9.
        Raises:
          ValueError: a field is missing, unknown or malformed.
        """
        values = fields_of(cls, "space", plain_mapping(config))
        if not isinstance(values["stages"], Mapping):
            raise ValueError(f"space.stages: found {values['stages']!r}, expected a mapping of name to stage")
        kind = cls.stage_type
        stages = [kind(name=name, **fields_of(kind, f"space.stages.{name}", stage, without="name"))
                  for name, stage in sorted(values["stages"].items(), key=lambda item: natural_key(item[0]))]
        return cls(**{**values, "stages": tuple(stages)})

    def to_dict(self) -> dict[str, Any]:
        """A dictionary that JSON can hold and `from_config` reads."""
        def plain(value):
            return {field.name: listed(getattr(value, field.name)) for field in dataclasses.fields(value)}

        stages = {stage.name: plain(stage) for stage in self.stages}
        for stage in stages.values():
            del stage["name"]
        return {**self.family(), **plain(self), "stages": stages}

    @cached_property
    def choices(self) -> tuple[Choice, ...]:
        """All choices, in the order of genes."""
        found = [Choice("resolution", RESOLUTION, None, self.resolution), Choice("width", STEM, None, self.stem_width)]
        for stage in self.stages:
            for kind in KINDS[1:]:
                values = getattr(stage, kind)
                if isinstance(values[0], tuple):
                    found += [Choice(kind, stage.name, block, own) for block, own in enumerate(values)]
                else:
                    found.append(Choice(kind, stage.name, None, values))
        return (*found, *([Choice("width", HEAD, None, self._head_widths)] if self._head_widths else []))

    def restricted(
        self,
        only: Architecture | None = None,
        max_resolution: int = 0,
        largest: Mapping[str, int] | None = None,
    ) -> Self:
        """See `Space.restricted`."""
        if only is not None:
            return self._alone(only)
        most = dict(largest or {})
        if unknown := [kind for kind in most if kind not in KINDS]:
            raise ValueError(f"largest: found {', '.join(unknown)}, expected some of {', '.join(KINDS)}")
        if few := [kind for kind, number in most.items() if number < 1]:
            raise ValueError(f"largest: found fewer than 1 value of {', '.join(few)}, expected at least 1")

        def kept(kind: str, values: tuple) -> tuple:
            if isinstance(values[0], tuple):
                return tuple(kept(kind, own) for own in values)
            return values[-most.get(kind, len(values)):]

        resolutions = kept("resolution", tuple(r for r in self.resolution if not max_resolution or r <= max_resolution))
        stages = tuple(
            dataclasses.replace(stage, **{kind: kept(kind, getattr(stage, kind)) for kind in KINDS[1:]})
            for stage in self.stages
        )
        return dataclasses.replace(
            self, resolution=resolutions, stem_width=kept("width", self.stem_width), stages=stages,
            **({"head_width": kept("width", self._head_widths)} if self._head_widths else {}),
        )  # fmt: skip

    def _alone(self, arch: Architecture) -> Self:
        """The space with the architecture `arch` alone."""
        self.check(arch)

        def fixed(entry: int | tuple[int, ...]) -> tuple:
            return tuple((value,) for value in entry) if isinstance(entry, tuple) else (entry,)

        chosen = zip(arch.width[1 : 1 + len(arch.depth)], arch.depth, arch.kernel_size, arch.expand_ratio, strict=True)
        stages = tuple(
            dataclasses.replace(stage, width=(width,), depth=(depth,), kernel_size=fixed(kernel_size),
                                expand_ratio=fixed(ratio))
            for stage, (width, depth, kernel_size, ratio) in zip(self.stages, chosen, strict=True)
        )  # fmt: skip
        return dataclasses.replace(
            self, resolution=(arch.resolution,), stem_width=arch.width[:1], stages=stages,
            **({"head_width": arch.width[-1:]} if self._head_widths else {}),
        )  # fmt: skip


def natural_key(name: str) -> list:
    """A key that sorts names by the numbers in them: mb10 follows mb9."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]
