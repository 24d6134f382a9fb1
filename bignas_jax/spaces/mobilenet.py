"""The family of MobileNetV3 and EfficientNet: inverted residual blocks (Yu et al., 2020, BigNAS)."""

import dataclasses
import math
from functools import cached_property
from typing import ClassVar

from bignas_jax.spaces.architecture import Architecture
from bignas_jax.spaces.checks import (
    DEEPEST,
    ByBlock,
    check_by_block,
    check_choices,
    check_flag,
    check_stride,
    is_odd,
    is_width,
    make_divisible,
)
from bignas_jax.spaces.layers import Conv, Dim, Layer, Shortcut, after_stride
from bignas_jax.spaces.staged import StagedSpace

ACTIVATIONS = ("swish", "h_swish", "relu", "relu6")


@dataclasses.dataclass(frozen=True)
class Stage:
    """The choices of one stage.

    Attributes:
      name: its name in configs and messages.
      width: output channels to choose from, ascending.
      depth: numbers of blocks to choose from, ascending.
      kernel_size: sides of the depthwise kernel to choose from, ascending. They are given once for all blocks of the
        stage, or as a tuple with the values of each block, as many as the largest depth.
      expand_ratio: expansion ratios to choose from, given as for `kernel_size`.
      stride: stride of the first block, 1 or 2.
      se: whether its blocks have squeeze-and-excitation.

    Raises:
      ValueError: a choice is malformed.
    """

    name: str
    width: tuple[int, ...]
    depth: tuple[int, ...]
    kernel_size: ByBlock
    expand_ratio: ByBlock
    stride: int
    se: bool

    def __post_init__(self):
        prefix = f"space.stages.{self.name}"
        check_choices(f"{prefix}.width", self.width, "multiples of 8", is_width)
        check_choices(f"{prefix}.depth", self.depth, f"integers from 1 to {DEEPEST}", lambda c: 1 <= c <= DEEPEST)
        most = self.depth[-1]
        check_by_block(f"{prefix}.kernel_size", self.kernel_size, most, "odd integers >= 1", is_odd)
        check_by_block(f"{prefix}.expand_ratio", self.expand_ratio, most, "integers >= 1", lambda c: c >= 1)
        for index in range(most):
            ratios = self.of_block("expand_ratio", index)
            if 1 in ratios and len(ratios) > 1:
                # A block with a ratio of 1 has no expansion convolution: it is not a slice of a block that has one.
                raise ValueError(f"{prefix}.expand_ratio: found {ratios!r}, expected 1 to stand alone")
        check_stride(f"{prefix}.stride", self.stride)
        check_flag(f"{prefix}.se", self.se)

    def by_block(self, kind: str) -> bool:
        """Whether each block has its own choice of this kind, 'kernel_size' or 'expand_ratio'."""
        return isinstance(getattr(self, kind)[0], tuple)

    def of_block(self, kind: str, index: int) -> tuple[int, ...]:
        """The values of this kind, 'kernel_size' or 'expand_ratio', that a block can have."""
        values = getattr(self, kind)
        return values[index] if self.by_block(kind) else values


@dataclasses.dataclass(frozen=True)
class Block:
    """One inverted residual block of an architecture.

    Attributes:
      stage: the number of its stage, from 0.
      index: its position in the stage, from 0.
      in_width: input channels.
      mid_width: expanded channels.
      out_width: output channels.
      se_width: squeezed channels of squeeze-and-excitation; 0 means that there is none.
      kernel_size: side of the depthwise kernel.
      stride: 1 or 2.
      expand_ratio: expanded channels divided by input channels, before rounding.
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
class SearchSpace(StagedSpace):
    """The choices of a supernet (Yu et al., 2020, BigNAS; the family of MobileNetV3 and EfficientNet).

    Attributes:
      resolution: sides of the square input in pixels, ascending.
      stem_width: channels of the stem to choose from, ascending.
      stem_stride: 1 or 2.
      stages: the stages in order.
      head_width: channels of the classifier's input to choose from, ascending.
      v3_head: whether the head expands before the pooling and projects after it (Howard et al., 2019,
        MobileNetV3, section 5.1).
      activation: 'swish', 'h_swish', 'relu' or 'relu6'.

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

    stage_type: ClassVar[type[Stage]] = Stage

    def __post_init__(self):
        check_stride("space.stem_stride", self.stem_stride)
        if not self.stages:
            raise ValueError("space.stages: found none, expected at least one stage")
        least = self.total_stride
        check_choices("space.resolution", self.resolution,
                       f"integers >= {least} (the product of all strides)", lambda c: c >= least)
        check_choices("space.stem_width", self.stem_width, "multiples of 8", is_width)
        check_choices("space.head_width", self.head_width, "multiples of 8", is_width)
        check_flag("space.v3_head", self.v3_head)
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"space.activation: found {self.activation!r},"
                             f" expected one of {', '.join(ACTIVATIONS)}")

    @classmethod
    def family(cls) -> dict[str, str]:
        """See `Space.family`. A config that names no family is of this one."""
        return {} if cls is SearchSpace else super().family()

    @property
    def total_stride(self) -> int:
        """Side of the input divided by the side of the last feature map."""
        return self.stem_stride * math.prod(stage.stride for stage in self.stages)

    def layout(self, arch: Architecture, num_classes: int = 1) -> tuple[Layer, ...]:
        """The stem, the blocks, the head, its second part if it has one, and the classifier.

        Args:
          arch: the architecture.
          num_classes: outputs of the classifier.
        Raises:
          ValueError: `arch` has another number of stages than the space, or more blocks in a stage.
        """
        side = after_stride(arch.resolution, self.stem_stride)
        stem = Conv("conv", 3, arch.width[0], side, 3, self.stem_stride, "dense", activation=self.activation, out="out")
        found = [Layer("stem", ("stem",), (stem,), arch.resolution, (Dim("out", arch.width[0]),))]
        for block in blocks(self, arch):
            found.append(self._block(block, side))
            side = after_stride(side, block.stride)
        return (*found, *self._head(arch, side), _classifier(arch.width[-1], num_classes))

    @cached_property
    def _positions(self) -> dict[tuple[int, int], int]:
        """The number of each block among all blocks of the supernet, by its stage and its position in the stage."""
        places = [(n, index) for n, stage in enumerate(self.stages) for index in range(stage.depth[-1])]
        return {place: number for number, place in enumerate(places)}

    def _block(self, block: "Block", side: int) -> Layer:
        stage, out_side = self.stages[block.stage], after_stride(side, block.stride)
        if block.index >= stage.depth[-1]:
            raise ValueError(f"architecture: found more than {stage.depth[-1]} blocks in stage {stage.name}")
        into, mid, out = block.in_width, block.mid_width, block.out_width
        convs = (
            Conv("depthwise", mid, mid, out_side, block.kernel_size, block.stride, "depthwise",
                 activation=self.activation, squeeze=block.se_width, into="mid", out="mid"),
            Conv("project", mid, out, out_side, into="mid", out="out", zero_scale=True),
        )  # fmt: skip
        if block.expand_ratio != 1:
            convs = (Conv("expand", into, mid, side, activation=self.activation, into="in", out="mid"), *convs)
        return Layer(
            kind="mbconv",
            path=("blocks", self._positions[block.stage, block.index]),
            convs=convs,
            side=side,
            dims=(Dim("in", into), Dim("mid", mid, middle_ends(self, block)), Dim("out", out),
                  Dim("se", block.se_width), Dim("kernel", block.kernel_size)),
            shortcut=Shortcut(into, out, block.stride, side, elastic=block.index == 0),
            stage=block.stage,
            index=block.index,
            optional=block.index >= stage.depth[0],
            drops=block.stage >= len(self.stages) - 2 and block.stride == 1 and into == out,
        )  # fmt: skip

    def _head(self, arch: Architecture, side: int) -> list[Layer]:
        last, head = arch.width[-2:]
        mid = head_mid_width(arch) if self.v3_head else head
        first = Conv("conv", last, mid, side, activation=self.activation, out="out")
        found = [Layer("head", ("head",), (first,), side, (Dim("out", mid),), pools=True)]
        if self.v3_head:
            second = Conv("conv", mid, head, 1, norm=False, activation=self.activation, out="out")
            found.append(Layer("mix", ("head_project",), (second,), 1, (Dim("out", head),)))
        return found


def _classifier(width: int, num_classes: int) -> Layer:
    linear = Conv("conv", width, num_classes, 1, form="linear", bias=True, norm=False)
    return Layer("classifier", ("classifier",), (linear,), 1)


def head_mid_width(arch: Architecture) -> int:
    """Channels between the two convolutions of the v3 head: six times the channels of the last stage, rounded."""
    return make_divisible(6 * arch.width[-2])


def middle_ends(space: SearchSpace, block: Block) -> tuple[int, ...]:
    """Counts of a block's middle channels at which its products can stop, in a program that architectures share.

    There is one count for each expansion ratio that the block can choose up to its own, at the block's input width,
    ascending. Narrower input widths use the same counts: more counts would save little and make programs larger.
    """
    choices = space.stages[block.stage].of_block("expand_ratio", block.index)
    ratios = [ratio for ratio in choices if ratio < block.expand_ratio]
    return (*(make_divisible(block.in_width * ratio) for ratio in ratios), block.mid_width)


def blocks(space: SearchSpace, arch: Architecture) -> tuple[Block, ...]:
    """The blocks of `arch` that run, in order.

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
