"""A search space: the choices, what can be drawn from them, and the blocks that a choice stands for."""

import dataclasses
import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from bignas_jax.spaces.architecture import Architecture

ACTIVATIONS = ("swish", "h_swish", "relu")


def make_divisible(value: float, divisor: int = 8) -> int:
    """`value` rounded half up to a multiple of `divisor`, at least `divisor` and at least 0.9 `value`.

    The rounding of channel counts in the MobileNet family (Sandler et al., 2018, reference code).
    """
    rounded = max(divisor, int(value + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * value else rounded


def _check_choices(field: str, choices: Any, expected: str, allowed) -> None:
    ok = isinstance(choices, tuple) and choices and all(
        isinstance(c, int) and not isinstance(c, bool) and allowed(c) for c in choices)
    if not ok or list(choices) != sorted(set(choices)):
        raise ValueError(f"{field}: found {choices!r}, expected a tuple of {expected}, ascending, no repeats")


def _check_flag(field: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise ValueError(f"{field}: found {value!r}, expected True or False")


def _check_stride(field: str, value: Any) -> None:
    if isinstance(value, bool) or value not in (1, 2):
        raise ValueError(f"{field}: found {value!r}, expected 1 or 2")


def _is_width(value: int) -> bool:
    return value >= 8 and value % 8 == 0


def _is_odd(value: int) -> bool:
    return value >= 1 and value % 2 == 1


@dataclasses.dataclass(frozen=True)
class Stage:
    """The choices of one stage; every block of the stage shares the kernel size and the expansion ratio.

    Attributes:
      name: its name in configs and messages.
      width, depth, kernel_size, expand_ratio: the values to choose from, ascending.
      stride: 1 or 2, that of the first block.
      se: whether its blocks have squeeze-and-excitation.

    Raises:
      ValueError: a choice is malformed.
    """

    name: str
    width: tuple[int, ...]
    depth: tuple[int, ...]
    kernel_size: tuple[int, ...]
    expand_ratio: tuple[int, ...]
    stride: int
    se: bool

    def __post_init__(self):
        prefix = f"space.stages.{self.name}"
        _check_choices(f"{prefix}.width", self.width, "multiples of 8", _is_width)
        _check_choices(f"{prefix}.depth", self.depth, "integers >= 1", lambda c: c >= 1)
        _check_choices(f"{prefix}.kernel_size", self.kernel_size, "odd integers >= 1", _is_odd)
        _check_choices(f"{prefix}.expand_ratio", self.expand_ratio, "integers >= 1", lambda c: c >= 1)
        if 1 in self.expand_ratio and len(self.expand_ratio) > 1:
            # A ratio of 1 has no expansion convolution: such a block is another network, not a slice.
            raise ValueError(f"{prefix}.expand_ratio: found {self.expand_ratio!r}, expected 1 to stand alone")
        _check_stride(f"{prefix}.stride", self.stride)
        _check_flag(f"{prefix}.se", self.se)


@dataclasses.dataclass(frozen=True)
class Block:
    """One inverted-residual block of an architecture. Widths are channels; `se_width` 0 means none.

    `stage` counts from 0, and so does `index`, the block's position inside its stage.
    """

    stage: int
    index: int
    in_width: int
    mid_width: int
    out_width: int
    se_width: int
    kernel_size: int
    stride: int
    expand_ratio: int


@dataclasses.dataclass(frozen=True)
class SearchSpace:
    """The choices of a supernet (Yu et al., 2020, BigNAS; the family of MobileNetV3 and EfficientNet).

    Attributes:
      resolution: sides of the square input in pixels, ascending.
      stem_width: channels of the stem; `stem_stride` is 1 or 2.
      stages: the stages in order.
      head_width: channels of the features that the classifier sees.
      v3_head: whether the head expands before the pooling and projects after it (Howard et al., 2019,
        MobileNetV3, section 5.1).
      activation: 'swish', 'h_swish' or 'relu'.

    Raises:
      ValueError: a choice is malformed; the message begins with its field.
    """

    resolution: tuple[int, ...]
    stem_width: tuple[int, ...]
    stem_stride: int
    stages: tuple[Stage, ...]
    head_width: tuple[int, ...]
    v3_head: bool
    activation: str

    def __post_init__(self):
        _check_stride("space.stem_stride", self.stem_stride)
        if not self.stages:
            raise ValueError("space.stages: found none, expected at least one stage")
        least = self.total_stride
        _check_choices("space.resolution", self.resolution,
                       f"integers >= {least} (the product of all strides)", lambda c: c >= least)
        _check_choices("space.stem_width", self.stem_width, "multiples of 8", _is_width)
        _check_choices("space.head_width", self.head_width, "multiples of 8", _is_width)
        _check_flag("space.v3_head", self.v3_head)
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"space.activation: found {self.activation!r},"
                             f" expected one of {', '.join(ACTIVATIONS)}")

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "SearchSpace":
        """The space of a config's `space` part, or of `to_dict()`. Stages sort naturally: mb10 follows mb9.

        Raises:
          ValueError: a field is missing, unknown or malformed.
        """
        config = config.to_dict() if hasattr(config, "to_dict") else config  # a ConfigDict is no Mapping
        values = _fields_of(cls, "space", config)
        if not isinstance(values["stages"], Mapping):
            raise ValueError(f"space.stages: found {values['stages']!r}, expected a mapping of name to stage")
        stages = [Stage(name=name, **_fields_of(Stage, f"space.stages.{name}", stage, without="name"))
                  for name, stage in sorted(values["stages"].items(), key=lambda item: _natural_key(item[0]))]
        return cls(**{**values, "stages": tuple(stages)})

    def to_dict(self) -> dict[str, Any]:
        """A dictionary that JSON can hold and `from_config` reads."""
        def plain(values):
            return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items() if k != "name"}

        stages = {stage.name: plain(dataclasses.asdict(stage)) for stage in self.stages}
        flat = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return plain({**flat, "stages": stages})

    @property
    def total_stride(self) -> int:
        """Input side over the side of the last feature map."""
        return self.stem_stride * math.prod(stage.stride for stage in self.stages)

    @cached_property
    def _genes(self) -> tuple[tuple[str, tuple[int, ...]], ...]:
        """(label, choices) of every independent choice, in the order of `_pack` and `_unpack`."""
        genes = [("resolution", self.resolution), ("stem width", self.stem_width)]
        for stage in self.stages:
            for name in ("width", "depth", "kernel_size", "expand_ratio"):
                genes.append((f"stage {stage.name} {name}", getattr(stage, name)))
        return (*genes, ("head width", self.head_width))

    @property
    def choices(self) -> tuple[tuple[str, tuple[int, ...]], ...]:
        """(label, values) of every independent choice, in the order of `indices`."""
        return self._genes

    @cached_property
    def groups(self) -> dict[str, tuple[int, ...]]:
        """Positions in `choices` by part of the network: resolution, stem, each stage by its name, head."""
        stages = {stage.name: tuple(range(2 + 4 * n, 6 + 4 * n)) for n, stage in enumerate(self.stages)}
        return {"resolution": (0,), "stem": (1,), **stages, "head": (len(self._genes) - 1,)}

    def indices(self, arch: Architecture) -> tuple[int, ...]:
        """`arch` as the position of each of its values among the choices; `at` is the inverse.

        Raises:
          ValueError: `arch` is not in the space.
        """
        self.check(arch)
        return tuple(values.index(v) for v, (_, values) in zip(self._unpack(arch), self._genes, strict=True))

    def at(self, indices: Sequence[int]) -> Architecture:
        """The architecture with these positions among the choices.

        Raises:
          ValueError: another number of positions. IndexError: a position has no value.
        """
        return self._pack(tuple(values[i] for i, (_, values) in zip(indices, self._genes, strict=True)))

    def _pack(self, values: tuple[int, ...]) -> Architecture:
        resolution, stem, *middle, head = values
        width, depth, kernel_size, expand_ratio = (tuple(middle[start::4]) for start in range(4))
        return Architecture(resolution=resolution, width=(stem, *width, head), depth=depth,
                            kernel_size=kernel_size, expand_ratio=expand_ratio)

    def _unpack(self, arch: Architecture) -> tuple:
        stages = zip(arch.width[1:-1], arch.depth, arch.kernel_size, arch.expand_ratio, strict=True)
        return (arch.resolution, arch.width[0], *itertools.chain(*stages), arch.width[-1])

    @cached_property
    def biggest(self) -> Architecture:
        """The architecture with every choice at its largest; the supernet has its shapes."""
        return self._pack(tuple(choices[-1] for _, choices in self._genes))

    @cached_property
    def smallest(self) -> Architecture:
        """The architecture with every choice at its smallest."""
        return self._pack(tuple(choices[0] for _, choices in self._genes))

    @property
    def size(self) -> int:
        """The number of architectures. Kernel size and expansion ratio count once a stage."""
        return math.prod(len(choices) for _, choices in self._genes)

    def enumerate(self) -> Iterator[Architecture]:
        """Every architecture once, from the smallest to the biggest; for spaces of modest `size`."""
        return map(self._pack, itertools.product(*(choices for _, choices in self._genes)))

    def sample(self, rng: np.random.Generator) -> Architecture:
        """An architecture with each choice drawn uniformly and independently."""
        return self._pack(tuple(choices[rng.integers(len(choices))] for _, choices in self._genes))

    def mutate(self, arch: Architecture, rng: np.random.Generator, probability: float) -> Architecture:
        """`arch` with each choice moved, with `probability`, to another of its values, drawn uniformly.

        Raises:
          ValueError: `arch` is not in the space, or `probability` is outside 0..1.
        """
        self.check(arch)
        if not 0 <= probability <= 1:
            raise ValueError(f"mutate: found probability {probability!r}, expected a number from 0 to 1")
        values = []
        for value, (_, choices) in zip(self._unpack(arch), self._genes, strict=True):
            others = [c for c in choices if c != value]
            move = rng.random() < probability
            values.append(others[rng.integers(len(others))] if move and others else value)
        return self._pack(tuple(values))

    def crossover(self, a: Architecture, b: Architecture, rng: np.random.Generator) -> Architecture:
        """An architecture that takes each choice from `a` or from `b`, with even odds.

        Raises:
          ValueError: `a` or `b` is not in the space.
        """
        self.check(a)
        self.check(b)
        pairs = zip(self._unpack(a), self._unpack(b), strict=True)
        return self._pack(tuple(pair[rng.integers(2)] for pair in pairs))

    def why_not(self, arch: Architecture) -> str | None:
        """Why `arch` is not in the space (what was found, what is allowed), or None if it is."""
        if len(arch.depth) != len(self.stages):
            return f"found {len(arch.depth)} stages, the space has {len(self.stages)}"
        for value, (label, choices) in zip(self._unpack(arch), self._genes, strict=True):
            if value not in choices:
                return f"{label}: found {value}, allowed {', '.join(map(str, choices))}"
        return None

    def __contains__(self, arch: Architecture) -> bool:
        return self.why_not(arch) is None

    def check(self, arch: Architecture) -> None:
        """Raises ValueError with the reason and the allowed values if `arch` is not in the space."""
        reason = self.why_not(arch)
        if reason is not None:
            raise ValueError(f"architecture not in the search space: {reason}")


def _natural_key(name: str) -> list:
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def _fields_of(cls, prefix: str, values: Mapping[str, Any], without: str = "") -> dict[str, Any]:
    """The values of a dataclass's fields, lists as tuples; refuses missing and unknown ones by name."""
    if not isinstance(values, Mapping):
        raise ValueError(f"{prefix}: found {values!r}, expected a mapping")
    names = [field.name for field in dataclasses.fields(cls) if field.name != without]
    for name in names:
        if name not in values:
            raise ValueError(f"{prefix}.{name}: found nothing, expected a value")
    for name in values:
        if name not in names:
            raise ValueError(f"{prefix}.{name}: found an unknown field, expected one of {', '.join(names)}")
    return {name: tuple(values[name]) if isinstance(values[name], list) else values[name] for name in names}


def head_mid_width(arch: Architecture) -> int:
    """Channels between the two convolutions of the v3 head: six times the last stage's."""
    return make_divisible(6 * arch.width[-2])


def middle_ends(space: SearchSpace, block: Block) -> tuple[int, ...]:
    """How many of a block's middle channels its convolutions can stop after, where architectures share a program.

    One number for each expansion ratio of the stage up to the block's own, at the block's width, ascending. Narrower
    widths of a ratio share its number: more of them would save little and make programs larger.
    """
    ratios = [ratio for ratio in space.stages[block.stage].expand_ratio if ratio < block.expand_ratio]
    return (*(make_divisible(block.in_width * ratio) for ratio in ratios), block.mid_width)


def blocks(space: SearchSpace, arch: Architecture) -> tuple[Block, ...]:
    """The active blocks of `arch` in order.

    Raises:
      ValueError: `arch` has another number of stages than the space.
    """
    if len(arch.depth) != len(space.stages):
        raise ValueError(f"architecture: found {len(arch.depth)} stages, the space has {len(space.stages)}")
    result = []
    in_width = arch.width[0]
    for number, stage in enumerate(space.stages):
        out_width = arch.width[number + 1]
        for index in range(arch.depth[number]):
            kernel_size, ratio = (entry[index] if isinstance(entry, tuple) else entry
                                  for entry in (arch.kernel_size[number], arch.expand_ratio[number]))
            mid_width = in_width if ratio == 1 else make_divisible(in_width * ratio)
            result.append(Block(
                stage=number, index=index, in_width=in_width, mid_width=mid_width, out_width=out_width,
                se_width=make_divisible(mid_width // 4) if stage.se else 0, kernel_size=kernel_size,
                stride=stage.stride if index == 0 else 1, expand_ratio=ratio))
            in_width = out_width
    return tuple(result)


def single(space: SearchSpace, arch: Architecture) -> SearchSpace:
    """The space whose one architecture is `arch`; stages keep their names, strides and squeeze-and-excitation.

    Raises:
      ValueError: `arch` is not in `space`, or its blocks differ inside a stage.
    """
    arch = per_stage(arch)
    space.check(arch)
    chosen = zip(arch.width[1:-1], arch.depth, arch.kernel_size, arch.expand_ratio, strict=True)
    stages = tuple(
        dataclasses.replace(stage, width=(width,), depth=(depth,), kernel_size=(kernel_size,), expand_ratio=(ratio,))
        for stage, (width, depth, kernel_size, ratio) in zip(space.stages, chosen, strict=True)
    )
    return dataclasses.replace(
        space, resolution=(arch.resolution,), stem_width=arch.width[:1], stages=stages, head_width=arch.width[-1:]
    )


def per_stage(arch: Architecture) -> Architecture:
    """`arch` with one integer a stage where it lists equal ones for the stage's blocks.

    Raises:
      ValueError: the blocks of a stage differ.
    """

    def shared(name: str) -> tuple[int, ...]:
        entries = []
        for position, entry in enumerate(getattr(arch, name)):
            values = set(entry) if isinstance(entry, tuple) else {entry}
            if len(values) > 1:
                raise ValueError(
                    f"architecture: {name}[{position}]: found {list(entry)}, expected one value for all blocks of the "
                    "stage (a space chooses once a stage)"
                )
            entries.append(values.pop())
        return tuple(entries)

    return dataclasses.replace(arch, kernel_size=shared("kernel_size"), expand_ratio=shared("expand_ratio"))


def block_positions(space: SearchSpace, arch: Architecture) -> tuple[int, ...]:
    """For each block of `arch` in order, its position among the supernet's blocks."""
    positions = {(b.stage, b.index): n for n, b in enumerate(blocks(space, space.biggest))}
    return tuple(positions[block.stage, block.index] for block in blocks(space, arch))
