"""ResNet50D as Once-for-All makes it elastic: bottlenecks of elastic width (He et al., 2019; Cai et al., 2020).

The stem is a 3x3 convolution, a 3x3 convolution with a shortcut that an architecture may leave out, and a 3x3
convolution to the stem's output channels. A max pooling can follow. The classifier takes the means of the last stage.
"""

import dataclasses
import math
from functools import cached_property
from typing import Any, ClassVar

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
from bignas_jax.spaces.ofa_form import is_form, read_resnet_form
from bignas_jax.spaces.staged import StagedSpace

ACTIVATION = "relu"


@dataclasses.dataclass(frozen=True)
class ResNetStage:
    """The choices of one stage.

    Attributes:
      name: its name in configs and messages.
      width: output channels to choose from, ascending; all blocks of the stage have the same.
      depth: numbers of blocks to choose from, ascending.
      kernel_size: side of the middle convolution, a tuple of one odd number.
      expand_ratio: middle channels divided by output channels, to choose from, ascending. They are given once for all
        blocks of the stage, or as a tuple with the values of each block, as many as the largest depth.
      stride: stride of the first block, 1 or 2.

    Raises:
      ValueError: a choice is malformed.
    """

    name: str
    width: tuple[int, ...]
    depth: tuple[int, ...]
    kernel_size: tuple[int, ...]
    expand_ratio: ByBlock
    stride: int

    def __post_init__(self):
        prefix = f"space.stages.{self.name}"
        check_choices(f"{prefix}.width", self.width, "multiples of 8", is_width)
        check_choices(f"{prefix}.depth", self.depth, f"integers from 1 to {DEEPEST}", lambda c: 1 <= c <= DEEPEST)
        check_choices(f"{prefix}.kernel_size", self.kernel_size, "odd integers >= 1", is_odd)
        if len(self.kernel_size) > 1:
            raise ValueError(f"{prefix}.kernel_size: found {self.kernel_size}, expected one side")
        check_by_block(f"{prefix}.expand_ratio", self.expand_ratio, self.depth[-1], "numbers > 0", lambda c: c > 0,
                       (int, float))  # fmt: skip
        check_stride(f"{prefix}.stride", self.stride)

    def ratios(self, index: int) -> tuple[float, ...]:
        """The expansion ratios that a block can have."""
        return self.expand_ratio[index] if isinstance(self.expand_ratio[0], tuple) else self.expand_ratio


@dataclasses.dataclass(frozen=True)
class ResNetSpace(StagedSpace):
    """The choices of a ResNet supernet.

    Attributes:
      resolution: sides of the square input in pixels, ascending.
      stem_width: channels of the stem's first and second convolution to choose from, ascending.
      stem_stride: stride of the stem's first convolution, 1 or 2.
      stem_pool: whether a max pooling of stride 2 ends the stem.
      stages: the stages in order. The first one is the rest of the stem: its width are the stem's output channels, its
        depth is 1, or 2 with the residual convolution, and its expand_ratio and stride are 1.
      epsilon: a number that batch norm adds to the variance.

    Raises:
      ValueError: a choice is malformed; the message begins with its field.
    """

    resolution: tuple[int, ...]
    stem_width: tuple[int, ...]
    stem_stride: int
    stem_pool: bool
    stages: tuple[ResNetStage, ...]
    epsilon: float

    stage_type: ClassVar[type] = ResNetStage

    def __post_init__(self):
        check_stride("space.stem_stride", self.stem_stride)
        check_flag("space.stem_pool", self.stem_pool)
        if len(self.stages) < 2:
            raise ValueError(f"space.stages: found {len(self.stages)}, expected at least two: the stem's and one more")
        first, prefix = self.stages[0], f"space.stages.{self.stages[0].name}"
        if first.depth not in ((1,), (2,), (1, 2)):
            raise ValueError(f"{prefix}.depth: found {first.depth}, expected some of 1, 2: it is part of the stem")
        if first.expand_ratio != (1,) or first.stride != 1:
            raise ValueError(
                f"{prefix}: found expand_ratio {first.expand_ratio} and stride {first.stride}, expected (1,) and 1: it "
                "is part of the stem"
            )
        least = self.total_stride
        check_choices("space.resolution", self.resolution, f"integers >= {least} (the product of all strides)",
                      lambda c: c >= least)  # fmt: skip
        check_choices("space.stem_width", self.stem_width, "multiples of 8", is_width)
        if isinstance(self.epsilon, bool) or not isinstance(self.epsilon, float) or not 0 < self.epsilon < 1:
            raise ValueError(f"space.epsilon: found {self.epsilon!r}, expected a number > 0 and < 1")

    @classmethod
    def family(cls) -> dict[str, str]:
        """See `Space.family`."""
        return {"family": "resnet"} if cls is ResNetSpace else super().family()

    @property
    def total_stride(self) -> int:
        """Side of the input divided by the side of the last feature map."""
        return self.stem_stride * (2 if self.stem_pool else 1) * math.prod(stage.stride for stage in self.stages)

    def read(self, values: Any) -> Architecture:
        """An architecture in the usual form, or in that of Once-for-All (`ofa_form.read_resnet_form`).

        Raises:
          ValueError: the value describes no architecture.
        """
        return read_resnet_form(self.stages, values) if is_form(values) else super().read(values)

    @cached_property
    def _starts(self) -> tuple[int, ...]:
        """The number of each stage's first block among all blocks of the supernet."""
        depths = [stage.depth[-1] for stage in self.stages]
        return tuple(sum(depths[:number]) for number in range(len(depths)))

    def layout(self, arch: Architecture, num_classes: int = 1) -> tuple[Layer, ...]:
        """The three convolutions of the stem, the bottlenecks, and the classifier.

        Args:
          arch: the architecture.
          num_classes: outputs of the classifier.
        Raises:
          ValueError: `arch` has another number of stages than the space, or more blocks in a stage.
        """
        if len(arch.depth) != len(self.stages):
            raise ValueError(f"architecture: found {len(arch.depth)} stages, the space has {len(self.stages)}")
        for stage, depth in zip(self.stages, arch.depth, strict=True):
            if depth > stage.depth[-1]:
                raise ValueError(f"architecture: found more than {stage.depth[-1]} blocks in stage {stage.name}")
        found = self._stem(arch)
        side = after_stride(arch.resolution, self.stem_stride * (2 if self.stem_pool else 1))
        for number, depth in enumerate(arch.depth[1:], 1):
            for index in range(depth):
                found.append(self._bottleneck(arch, number, index, side))
                side = after_stride(side, found[-1].stride)
        linear = Conv("conv", arch.width[-1], num_classes, 1, form="linear", bias=True, norm=False)
        return (*found, Layer("classifier", ("classifier",), (linear,), side, pools=True))

    def _stem(self, arch: Architecture) -> list[Layer]:
        mid, out, side = *arch.width[:2], after_stride(arch.resolution, self.stem_stride)

        def layer(path, into, out, stride, before, **fields):
            conv = Conv("conv", into, out, side, 3, stride, "dense", activation=ACTIVATION, out="out",
                        epsilon=self.epsilon)  # fmt: skip
            return Layer("stem", path, (conv,), before, (Dim("out", out),), **fields)

        found = [layer(("stem",), 3, mid, self.stem_stride, arch.resolution)]
        most, least = self.stages[0].depth[-1], self.stages[0].depth[0]
        if arch.depth[0] == 2:
            around = Shortcut(mid, mid, 1, side, elastic=False)
            fields = dict(shortcut=around, stage=0, index=1, optional=least == 1)
            found.append(layer(("blocks", 0), mid, mid, 1, side, **fields))
        last = ("blocks", most - 1)
        return [*found, layer(last, mid, out, 1, side, stage=0, index=0, halves=self.stem_pool)]

    def _bottleneck(self, arch: Architecture, number: int, index: int, side: int) -> Layer:
        stage, first = self.stages[number], index == 0
        stride, out = stage.stride if first else 1, arch.width[number + 1]
        into, after = arch.width[number] if first else out, after_stride(side, stride)
        kernel_size, ratio = (entry[index] if isinstance(entry, tuple) else entry
                              for entry in (arch.kernel_size[number], arch.expand_ratio[number]))  # fmt: skip
        mid, common = middle_width(out, ratio), dict(epsilon=self.epsilon)
        convs = [
            Conv("reduce", into, mid, side, activation=ACTIVATION, into="in", out="mid", **common),
            Conv("middle", mid, mid, after, kernel_size, stride, "dense", activation=ACTIVATION, into="mid", out="mid",
                 **common),
            Conv("expand", mid, out, after, into="mid", out="out", **common),
        ]  # fmt: skip
        if first:
            convs.append(Conv("downsample", into, out, after, into="in", out="out", **common))
        ends = middle_ends(stage.width, stage.ratios(index), out, ratio)
        return Layer(
            kind="bottleneck",
            path=("blocks", self._starts[number] + index),
            convs=tuple(convs),
            side=side,
            dims=(Dim("in", into), Dim("mid", mid, ends), Dim("out", out)),
            stage=number,
            index=index,
            optional=index >= stage.depth[0],
            drops=not first and number >= len(self.stages) - 2,
        )


def middle_width(out: int, ratio: float) -> int:
    """Middle channels of a bottleneck with this many output channels."""
    return make_divisible(round(out * ratio))


def middle_ends(widths: tuple[int, ...], ratios: tuple[float, ...], out: int, ratio: float) -> tuple[int, ...]:
    """Counts of a block's middle channels at which its products can stop, in a program that architectures share.

    There is one for each ratio at the largest width, and one for each width at the largest ratio. More counts would
    save little and make programs larger.

    Args:
      widths: the output channels that the stage can choose.
      ratios: the expansion ratios that the block can choose.
      out: output channels of the program's architecture.
      ratio: its expansion ratio.
    """
    most = middle_width(out, ratio)
    found = {middle_width(out, r) for r in ratios if r <= ratio} | {middle_width(w, ratio) for w in widths if w <= out}
    return tuple(sorted(end for end in found | {most} if end <= most))
