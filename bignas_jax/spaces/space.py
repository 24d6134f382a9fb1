"""The base of every search space: its choices, the architectures that they allow, and the layers of an architecture."""

import abc
import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, Self

import numpy as np

from bignas_jax.spaces.architecture import Architecture
from bignas_jax.spaces.layers import Layer

KINDS = ("resolution", "width", "depth", "kernel_size", "expand_ratio")
RESOLUTION, STEM, HEAD = "resolution", "stem", "head"


@dataclasses.dataclass(frozen=True)
class Choice:
    """One independent choice of a space.

    Attributes:
      kind: one of KINDS.
      part: the part of the network: 'resolution', 'stem', the name of a stage, or 'head'.
      block: the block of the stage that it belongs to, from 0; None if it belongs to the whole part.
      values: the values to choose from, ascending.
    """

    kind: str
    part: str
    block: int | None
    values: tuple[int | float, ...]

    @property
    def label(self) -> str:
        """Its name in messages, such as 'stage mb2 kernel_size'."""
        if self.part == RESOLUTION:
            return self.part
        if self.part in (STEM, HEAD):
            return f"{self.part} {self.kind}"
        return f"stage {self.part} {self.kind}" + ("" if self.block is None else f" of block {self.block + 1}")

    def __len__(self) -> int:
        return len(self.values)


class Space(abc.ABC):
    """The choices of a supernet. A family of networks is a subclass; its instances are frozen, hashable values.

    A subclass defines `choices`, `layout` and `restricted`. This class defines everything that follows from the choices
    alone. Genes are another form of an architecture: for each choice, the position of its value. The genes of blocks
    that do not run are 0.
    """

    @property
    @abc.abstractmethod
    def choices(self) -> tuple[Choice, ...]:
        """All choices: the resolution, the stem's width, the choices of each stage in order, the head's width if any.

        A stage has 'width', 'depth', 'kernel_size' and 'expand_ratio'. It has the last two once, or for each block. Its
        depth stands before the choices of its blocks.
        """

    @abc.abstractmethod
    def layout(self, arch: Architecture, num_classes: int = 1) -> tuple[Layer, ...]:
        """The layers of an architecture in order, from the stem to the classifier.

        Args:
          arch: the architecture.
          num_classes: outputs of the classifier.
        Raises:
          ValueError: `arch` has another number of stages than the space.
        """

    @abc.abstractmethod
    def restricted(
        self,
        only: Architecture | None = None,
        max_resolution: int = 0,
        largest: Mapping[str, int] | None = None,
    ) -> Self:
        """The part of the space within these limits. Stages keep their names.

        Args:
          only: the one architecture that is kept; None means no such limit.
          max_resolution: the largest resolution that is kept, in pixels; 0 means no such limit.
          largest: how many of the largest values of a kind of choice are kept, such as {'depth': 2}. Kinds that are not
            named keep all values.
        Raises:
          ValueError: `only` is not in the space, or nothing is left.
        """

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """The space of a config's `space` part without its `family`, or of `to_dict()`.

        Raises:
          ValueError: a field is missing, unknown or malformed.
        """
        return cls(**fields_of(cls, "space", plain_mapping(config)))

    def to_dict(self) -> dict[str, Any]:
        """A dictionary that JSON can hold and `registry.space_of` reads: the family and the fields."""
        return self.family() | {field.name: listed(getattr(self, field.name)) for field in dataclasses.fields(self)}

    def read(self, values: Any) -> Architecture:
        """The architecture that a JSON value describes. A family can also read the form of another system.

        It is not checked whether it is in the space.

        Raises:
          ValueError: the value describes no architecture.
        """
        return Architecture.from_dict(values)

    @classmethod
    def family(cls) -> dict[str, str]:
        """The entry of a config's `space` part that names this class."""
        return {"family": f"{cls.__module__}:{cls.__qualname__}"}

    @cached_property
    def groups(self) -> dict[str, tuple[int, ...]]:
        """Positions in `choices` by part of the network: 'resolution', 'stem', the name of each stage, 'head'."""
        found: dict[str, tuple[int, ...]] = {}
        for position, choice in enumerate(self.choices):
            found[choice.part] = (*found.get(choice.part, ()), position)
        return found

    @cached_property
    def _stages(self) -> tuple[str, ...]:
        return tuple(part for part in self.groups if part not in (RESOLUTION, STEM, HEAD))

    @cached_property
    def _keys(self) -> tuple[tuple[str, str, int | None], ...]:
        return tuple((choice.kind, choice.part, choice.block) for choice in self.choices)

    @cached_property
    def _depths(self) -> tuple[int | None, ...]:
        """For each choice of one block, the position of its stage's depth in `choices`; None for other choices."""
        at = {choice.part: n for n, choice in enumerate(self.choices) if choice.kind == "depth"}
        return tuple(None if choice.block is None else at[choice.part] for choice in self.choices)

    @cached_property
    def _by_block(self) -> bool:
        return any(choice.block is not None for choice in self.choices)

    def active(self, genes: Sequence[int]) -> tuple[bool, ...]:
        """For each choice, whether it matters. With the depths among these genes, choices of idle blocks do not."""
        return tuple(
            depth is None or choice.block < self.choices[depth].values[genes[depth]]
            for choice, depth in zip(self.choices, self._depths, strict=True)
        )

    def indices(self, arch: Architecture) -> tuple[int, ...]:
        """The genes of `arch`. `at` is the inverse.

        Raises:
          ValueError: `arch` is not in the space.
        """
        self.check(arch)
        values = zip(self._unpack(arch), self.choices, strict=True)
        return tuple(0 if value is None else choice.values.index(value) for value, choice in values)

    def at(self, genes: Sequence[int]) -> Architecture:
        """The architecture with these genes. The genes of blocks that do not run are dropped.

        Args:
          genes: for each choice, the position of its value.
        Raises:
          ValueError: there are more or fewer genes than choices.
          IndexError: a gene is not the position of a value.
        """
        return self._pack(tuple(choice.values[i] for i, choice in zip(genes, self.choices, strict=True)))

    def _pack(self, values: Sequence[int]) -> Architecture:
        found = dict(zip(self._keys, values, strict=True))
        depth = tuple(found["depth", stage, None] for stage in self._stages)

        def entries(kind: str) -> tuple:
            return tuple(
                found[kind, stage, None] if (kind, stage, None) in found
                else tuple(found[kind, stage, block] for block in range(blocks))
                for stage, blocks in zip(self._stages, depth, strict=True)
            )  # fmt: skip

        return Architecture(
            resolution=found["resolution", RESOLUTION, None],
            width=tuple(found["width", part, None] for part in (STEM, *self._stages, HEAD) if part in self.groups),
            kernel_size=entries("kernel_size"),
            expand_ratio=entries("expand_ratio"),
            depth=depth,
        )

    def _unpack(self, arch: Architecture) -> list:
        """The value of each choice; None if its block does not run."""
        stage_of = {name: number for number, name in enumerate(self._stages)}
        found = []
        for kind, part, block in self._keys:
            if part == RESOLUTION:
                found.append(arch.resolution)
            elif part in (STEM, HEAD):
                found.append(arch.width[0 if part == STEM else -1])
            else:
                number = stage_of[part]
                entry = getattr(arch, kind)[number + 1 if kind == "width" else number]
                if block is not None:
                    runs = block < arch.depth[number]
                    entry = (entry[block] if isinstance(entry, tuple) else entry) if runs else None
                found.append(entry)
        return found

    @cached_property
    def biggest(self) -> Architecture:
        """The architecture with every choice at its largest. The supernet has its shapes."""
        return self._pack(tuple(choice.values[-1] for choice in self.choices))

    @cached_property
    def smallest(self) -> Architecture:
        """The architecture with every choice at its smallest."""
        return self._pack(tuple(choice.values[0] for choice in self.choices))

    @cached_property
    def resolutions(self) -> tuple[int, ...]:
        """Sides of the square input in pixels, ascending."""
        return next(choice.values for choice in self.choices if choice.kind == "resolution")

    @cached_property
    def size(self) -> int:
        """The number of architectures. The choices of blocks that do not run do not count."""
        total = 1
        for positions in self.groups.values():
            choices = [self.choices[position] for position in positions]
            own = [choice for choice in choices if choice.block is not None]
            total *= math.prod(len(choice) for choice in choices if choice.block is None and choice.kind != "depth")
            depths = [depth for choice in choices if choice.kind == "depth" for depth in choice.values] or [0]
            total *= sum(math.prod(len(choice) for choice in own if choice.block < depth) for depth in depths)
        return total

    def enumerate(self) -> Iterator[Architecture]:
        """Every architecture once, from the smallest to the biggest. Use it if `size` is small enough."""
        return map(self.at, self._genes(()))

    def _genes(self, before: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
        """All genes that begin with these, in order. The genes of idle blocks are 0."""
        if not self._by_block:
            yield from itertools.product(*(range(len(choice)) for choice in self.choices))
            return
        if len(before) == len(self.choices):
            yield before
            return
        choice, depth = self.choices[len(before)], self._depths[len(before)]
        idle = depth is not None and choice.block >= self.choices[depth].values[before[depth]]
        for gene in range(1 if idle else len(choice)):
            yield from self._genes((*before, gene))

    def sample(self, rng: np.random.Generator) -> Architecture:
        """An architecture with each choice drawn uniformly and independently."""
        return self._pack(tuple(choice.values[rng.integers(len(choice))] for choice in self.choices))

    def mutate(self, arch: Architecture, rng: np.random.Generator, probability: float) -> Architecture:
        """`arch` with some of its choices changed.

        Each choice changes with this probability, to another of its values, drawn uniformly. The choices of a block
        that begins to run are always drawn.

        Args:
          arch: the architecture to start from.
          rng: NumPy's generator of random numbers.
          probability: the probability that a choice changes, from 0 to 1.
        Raises:
          ValueError: `arch` is not in the space, or `probability` is outside 0..1.
        """
        self.check(arch)
        if not 0 <= probability <= 1:
            raise ValueError(f"mutate: found probability {probability!r}, expected a number from 0 to 1")
        values = []
        for value, choice in zip(self._unpack(arch), self.choices, strict=True):
            others = [c for c in choice.values if c != value]
            move = value is None or rng.random() < probability
            values.append(others[rng.integers(len(others))] if move and others else value)
        return self._pack(values)

    def crossover(self, a: Architecture, b: Architecture, rng: np.random.Generator) -> Architecture:
        """An architecture that takes each choice from `a` or from `b`, with equal probability.

        If a block runs in only one of them, its choices come from this one.

        Raises:
          ValueError: `a` or `b` is not in the space.
        """
        self.check(a)
        self.check(b)
        values = []
        for choice, *pair in zip(self.choices, self._unpack(a), self._unpack(b), strict=True):
            taken = rng.integers(2)
            known = [pair[taken], pair[1 - taken], choice.values[0]]
            values.append(next(value for value in known if value is not None))
        return self._pack(values)

    def why_not(self, arch: Architecture) -> str | None:
        """The reason why `arch` is not in the space, with the values found and allowed; None if it is in the space."""
        if len(arch.depth) != len(self._stages):
            return f"found {len(arch.depth)} stages, the space has {len(self._stages)}"
        widths = sum(choice.kind == "width" for choice in self.choices)
        if len(arch.width) != widths:
            head = "a head" if HEAD in self.groups else "no head"
            return f"width: found {len(arch.width)} entries, expected {widths}: the space has {head}"
        for value, choice in zip(self._unpack(arch), self.choices, strict=True):
            if value is not None and value not in choice.values:
                once = " (one value for all blocks of the stage)" if isinstance(value, tuple) else ""
                return f"{choice.label}: found {value}, allowed {', '.join(map(str, choice.values))}{once}"
        return None

    def __contains__(self, arch: Architecture) -> bool:
        return self.why_not(arch) is None

    def check(self, arch: Architecture) -> None:
        """Raises ValueError, with the reason and the allowed values, if `arch` is not in the space."""
        reason = self.why_not(arch)
        if reason is not None:
            raise ValueError(f"architecture not in the search space: {reason}")


def listed(value: Any) -> Any:
    """A value with lists in place of tuples, as in JSON."""
    return [listed(v) for v in value] if isinstance(value, tuple | list) else value


def tupled(value: Any) -> Any:
    """A value with tuples in place of lists."""
    return tuple(tupled(v) for v in value) if isinstance(value, tuple | list) else value


def plain_mapping(config: Any) -> Any:
    """A ConfigDict, which is not a Mapping, as a dictionary. Other values are returned as they are."""
    return config.to_dict() if hasattr(config, "to_dict") else config


def fields_of(cls: type, prefix: str, values: Any, without: str = "") -> dict[str, Any]:
    """The values of a dataclass's fields, with tuples in place of lists.

    Args:
      cls: the dataclass.
      prefix: the text before a field's name in messages, such as 'space.stages.mb2'.
      values: a mapping of field name to value.
      without: the name of a field that `values` does not hold.
    Raises:
      ValueError: a field is missing or unknown, or `values` is no mapping.
    """
    if not isinstance(values, Mapping):
        raise ValueError(f"{prefix}: found {values!r}, expected a mapping")
    names = [field.name for field in dataclasses.fields(cls) if field.name != without]
    for name in names:
        if name not in values:
            raise ValueError(f"{prefix}.{name}: found nothing, expected a value")
    for name in values:
        if name not in names:
            raise ValueError(f"{prefix}.{name}: found an unknown field, expected one of {', '.join(names)}")
    return {name: tupled(values[name]) for name in names}
