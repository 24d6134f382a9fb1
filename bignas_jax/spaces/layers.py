"""The layers of a network as plain values: the one description that everything else is read from.

`space.layout(arch)` gives the layers of an architecture in order. Cost, weight names, slices, statistics, exports and
latency parts are folds over them.
"""

import dataclasses
import math
from collections.abc import Iterable

Path = tuple[str | int, ...]
# Forms of a kernel: [k, k, in, out]; [k, k, channels]; [in, out] on every position; [in, out] on the means.
FORMS = ("dense", "depthwise", "pointwise", "linear")


@dataclasses.dataclass(frozen=True)
class Dim:
    """A size of a layer that differs between architectures, such as its middle channels.

    Attributes:
      name: in the layer, such as 'mid'.
      size: of this architecture.
      ends: channel counts, ascending, the last one `size`, after which a product over these channels may stop in a
        program that architectures share; () means (size,).
    """

    name: str
    size: int
    ends: tuple[int, ...] = ()

    def end_for(self, size: int) -> int:
        """The first of `ends` that holds `size` channels."""
        return next(end for end in self.ends or (self.size,) if end >= size)


@dataclasses.dataclass(frozen=True)
class Conv:
    """A convolution or a matrix product, and what follows it directly.

    Attributes:
      form: of its kernel, one of FORMS.
      name: of its module in the layer's module; the batch norm behind it is called `<name>_norm`.
      into, out: names of the layer's dimensions that are its input and output channels; '' for fixed channels.
      in_width, out_width: channels. kernel_size, stride: of both sides.
      side: of its square output, in pixels.
      bias: whether it has one. norm: whether batch norm follows.
      activation: behind the norm; a name in `kernels.activation.FUNCTIONS`.
      squeeze: channels that squeeze-and-excitation behind the activation reduces to; 0 means that there is none.
    """

    name: str
    in_width: int
    out_width: int
    side: int
    kernel_size: int = 1
    stride: int = 1
    form: str = "pointwise"
    bias: bool = False
    norm: bool = True
    activation: str = "identity"
    squeeze: int = 0
    into: str = ""
    out: str = ""

    @property
    def depthwise(self) -> bool:
        """Whether each channel is convolved alone; `in_width` and `out_width` are equal then."""
        return self.form == "depthwise"

    @property
    def kernel_shape(self) -> tuple[int, ...]:
        """Of its kernel in the supernet's layout."""
        sides, channels = (self.kernel_size, self.kernel_size), (self.in_width, self.out_width)
        return {"dense": (*sides, *channels), "depthwise": (*sides, self.out_width)}.get(self.form, channels)


@dataclasses.dataclass(frozen=True)
class Shortcut:
    """What a layer adds to its output: its input, pooled 2x2 where the stride is 2, projected where the widths differ.

    Attributes:
      in_width, out_width: channels. stride: 1 or 2. side: of the square input, in pixels.
      elastic: whether the widths can differ in some architecture, so that the supernet has weights for a projection.
    """

    in_width: int
    out_width: int
    stride: int
    side: int
    elastic: bool

    @property
    def projects(self) -> bool:
        return self.in_width != self.out_width


@dataclasses.dataclass(frozen=True)
class Weight:
    """A tensor of a layer. `path` leads to it in the supernet's parameters; `name` is what checkpoints call it."""

    path: Path
    shape: tuple[int, ...]

    @property
    def name(self) -> str:
        return weight_name(self.path)


@dataclasses.dataclass(frozen=True)
class Layer:
    """A layer: the stem, a block, the head, the classifier.

    Attributes:
      kind: which module computes it (`nets.kinds`), and how exports write it; `package.module:Class` for one of the
        user's own.
      path: leads to its weights in the supernet's parameters, such as ('blocks', 3).
      convs: in order. shortcut: around them, or None.
      dims: its elastic sizes, in the order in which a shared program is told them.
      side: of its square input, in pixels.
      pools: whether it ends with the mean over all positions.
      stage, index: of a block, both from 0; None for other layers.
      optional: whether some architectures of the space lack it.
      drops: whether drop-connect may leave it out for an image.
    """

    kind: str
    path: Path
    convs: tuple[Conv, ...]
    side: int
    dims: tuple[Dim, ...] = ()
    shortcut: Shortcut | None = None
    pools: bool = False
    stage: int | None = None
    index: int | None = None
    optional: bool = False
    drops: bool = False

    @property
    def label(self) -> str:
        """Its name in files: 'stem', 'blocks.3'."""
        return ".".join(map(str, self.path))

    @property
    def in_width(self) -> int:
        return self.convs[0].in_width

    @property
    def out_width(self) -> int:
        return self.convs[-1].out_width

    @property
    def stride(self) -> int:
        return math.prod(conv.stride for conv in self.convs)

    @property
    def sizes(self) -> dict[str, int]:
        """The elastic sizes by name."""
        return {dim.name: dim.size for dim in self.dims}

    def conv_label(self, conv: Conv) -> str:
        """The name of a convolution in files: 'stem', 'blocks.3.expand'."""
        return self.label if conv.name == "conv" else f"{self.label}.{conv.name}"

    def statistics(self) -> dict[str, int]:
        """Name to channels of the batch-norm statistics, such as 'block3.expand' or 'stem'."""
        return {self.statistics_name(conv): conv.out_width for conv in self.convs if conv.norm}

    def statistics_name(self, conv: Conv) -> str:
        return self.conv_label(conv).replace("blocks.", "block")

    def weights(self) -> tuple[Weight, ...]:
        """The tensors, in the supernet's layouts."""
        found = []
        for conv in self.convs:
            found += _conv_weights((*self.path, conv.name), conv)
            if conv.squeeze:
                found += _squeeze_weights((*self.path, "squeeze_excite"), conv.out_width, conv.squeeze)
        if self.shortcut is not None and self.shortcut.elastic:
            path = (*self.path, "shortcut", "conv", "kernel")
            found.append(Weight(path, (self.shortcut.in_width, self.shortcut.out_width)))
        return tuple(found)


def _conv_weights(path: Path, conv: Conv) -> list[Weight]:
    found = [Weight((*path, "kernel"), conv.kernel_shape)]
    if conv.bias:
        found.append(Weight((*path, "bias"), (conv.out_width,)))
    if conv.norm:
        norm = (*path[:-1], f"{path[-1]}_norm")
        found += [Weight((*norm, part), (conv.out_width,)) for part in ("scale", "bias")]
    return found


def _squeeze_weights(path: Path, width: int, reduced: int) -> list[Weight]:
    return [
        Weight((*path, "reduce_kernel"), (width, reduced)),
        Weight((*path, "reduce_bias"), (reduced,)),
        Weight((*path, "expand_kernel"), (reduced, width)),
        Weight((*path, "expand_bias"), (width,)),
    ]


def weight_name(path: Path) -> str:
    """What checkpoints call the tensor at a path: 'blocks.3.expand_norm.scale', or 'stem_norm.scale'.

    A layer outside the blocks has one convolution, whose tensors bear the layer's name alone.
    """
    layer, *rest = path
    if len(rest) == 2 and rest[0] in ("conv", "conv_norm"):
        return f"{layer}{rest[0].removeprefix('conv')}.{rest[1]}"
    return ".".join(map(str, path))


def after_stride(side: int, stride: int) -> int:
    """The side of a map behind a convolution with padding k // 2, or behind a pooling."""
    return -(-side // stride)


def weights(layout: Iterable[Layer]) -> tuple[Weight, ...]:
    """The tensors of all layers."""
    return tuple(weight for layer in layout for weight in layer.weights())


def statistics(layout: Iterable[Layer]) -> dict[str, int]:
    """Name to channels of all batch-norm statistics, in order."""
    return {name: width for layer in layout for name, width in layer.statistics().items()}
