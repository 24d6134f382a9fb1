"""The layers of a network as plain values. Everything that depends on the form of a network is computed from them.

`space.layout(arch)` gives the layers of an architecture in order. Cost, weight names, slices, statistics, exports and
the parts whose latency is measured follow from them.
"""

import dataclasses
import math
from collections.abc import Iterable

from bignas_jax.kernels.transform import matrix_name

Path = tuple[str | int, ...]
# Forms of a kernel, in order: [k, k, in, out]; [k, k, channels]; [in, out] at every position; [in, out] on the means.
FORMS = ("dense", "depthwise", "pointwise", "linear")
EPSILON = 1e-5  # of batch norm, unless a family has another one


@dataclasses.dataclass(frozen=True)
class Dim:
    """A size of a layer that differs between architectures, such as its middle channels.

    Attributes:
      name: its name in the layer, such as 'mid'.
      size: its value in this architecture.
      ends: channel counts at which a product over these channels can stop, in a program that architectures share;
        ascending, the last one is `size`. () means (size,).
    """

    name: str
    size: int
    ends: tuple[int, ...] = ()

    def end_for(self, size: int) -> int:
        """The first of `ends` that is at least `size` channels."""
        return next(end for end in self.ends or (self.size,) if end >= size)


@dataclasses.dataclass(frozen=True)
class Conv:
    """A convolution or a matrix product, with the norm, activation and squeeze-and-excitation that follow it.

    Attributes:
      name: the name of its module in the layer's module; the batch norm behind it is called `<name>_norm`.
      in_width: input channels.
      out_width: output channels.
      side: side of its square output, in pixels.
      kernel_size: side of its kernel.
      stride: its stride along both sides.
      form: the form of its kernel, one of FORMS.
      bias: whether it has a bias.
      norm: whether batch norm follows.
      activation: the activation behind the norm, a name in `kernels.activation.FUNCTIONS`.
      squeeze: squeezed channels of the squeeze-and-excitation behind the activation; 0 means that there is none.
      into: name of the layer's dimension that is its input channels; '' if they are fixed.
      out: name of the layer's dimension that is its output channels; '' if they are fixed.
      epsilon: a number that the norm adds to the variance.
      zero_scale: whether the norm's scale starts at 0 and not at 1.
      transforms: smaller sides of a depthwise kernel that are made from the next larger one by a trained matrix,
        descending. () means that a smaller kernel is the centre of the largest.
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
    epsilon: float = EPSILON
    zero_scale: bool = False
    transforms: tuple[int, ...] = ()

    @property
    def depthwise(self) -> bool:
        """Whether each channel is convolved alone. If so, `in_width` and `out_width` are equal."""
        return self.form == "depthwise"

    @property
    def kernel_shape(self) -> tuple[int, ...]:
        """The shape of its kernel in the supernet's parameters."""
        sides, channels = (self.kernel_size, self.kernel_size), (self.in_width, self.out_width)
        return {"dense": (*sides, *channels), "depthwise": (*sides, self.out_width)}.get(self.form, channels)


@dataclasses.dataclass(frozen=True)
class Shortcut:
    """The input of a layer, which is added to its output.

    It is pooled 2x2 if the stride is 2, and projected if the widths differ.

    Attributes:
      in_width: input channels.
      out_width: output channels.
      stride: 1 or 2.
      side: side of the square input, in pixels.
      elastic: whether the widths differ in some architecture. If so, the supernet has weights for a projection.
    """

    in_width: int
    out_width: int
    stride: int
    side: int
    elastic: bool

    @property
    def projects(self) -> bool:
        """Whether the widths differ."""
        return self.in_width != self.out_width


@dataclasses.dataclass(frozen=True)
class Weight:
    """A tensor of a layer.

    Attributes:
      path: where it lies in the supernet's parameters.
      shape: its shape.
    """

    path: Path
    shape: tuple[int, ...]

    @property
    def name(self) -> str:
        """Its name in checkpoints."""
        return weight_name(self.path)


@dataclasses.dataclass(frozen=True)
class Layer:
    """A layer: the stem, a block, the head or the classifier.

    Attributes:
      kind: the name of the module that computes it (`nets.kinds`) and of the form in which it is exported;
        `package.module:Class` names a class of the user's own.
      path: where its weights lie in the supernet's parameters, such as ('blocks', 3).
      convs: its convolutions in order.
      side: side of its square input, in pixels.
      dims: its elastic sizes, in the order in which a shared program gets them.
      shortcut: the shortcut around its convolutions, or None.
      halves: whether a max pooling of 3x3 with stride 2 and padding 1 follows its convolutions.
      pools: whether it takes the mean over all positions: a classifier before its product, another layer at its end.
      stage: the number of a block's stage, from 0; None for other layers.
      index: a block's position in its stage, from 0; None for other layers.
      optional: whether some architectures of the space do not have it.
      drops: whether drop-connect may skip it for an image.
    """

    kind: str
    path: Path
    convs: tuple[Conv, ...]
    side: int
    dims: tuple[Dim, ...] = ()
    shortcut: Shortcut | None = None
    halves: bool = False
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
        """Input channels."""
        return self.convs[0].in_width

    @property
    def out_width(self) -> int:
        """Output channels."""
        return self.convs[-1].out_width

    @property
    def stride(self) -> int:
        """Side of the input over side of the output, before any pooling to the mean."""
        return math.prod(conv.stride for conv in self.convs) * (2 if self.halves else 1)

    @property
    def sizes(self) -> dict[str, int]:
        """The elastic sizes by name."""
        return {dim.name: dim.size for dim in self.dims}

    def conv_label(self, conv: Conv) -> str:
        """The name of a convolution in files: 'stem', 'blocks.3.expand'."""
        return self.label if conv.name == "conv" else f"{self.label}.{conv.name}"

    def statistics(self) -> dict[str, int]:
        """Channels of each of its batch norms, by the name of the statistics, such as 'block3.expand' or 'stem'."""
        return {self.statistics_name(conv): conv.out_width for conv in self.convs if conv.norm}

    def statistics_name(self, conv: Conv) -> str:
        """The name of the statistics of the batch norm behind a convolution."""
        return self.conv_label(conv).replace("blocks.", "block")

    def weights(self) -> tuple[Weight, ...]:
        """Its tensors, with their shapes in the supernet's parameters."""
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
    found += [Weight((*path, matrix_name(side)), (side**2, side**2)) for side in conv.transforms]
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
    """The name in checkpoints of the tensor at a path: 'blocks.3.expand_norm.scale', or 'stem_norm.scale'.

    A layer outside the blocks has one convolution. The names of its tensors hold the name of the layer alone.
    """
    layer, *rest = path
    if len(rest) == 2 and rest[0] in ("conv", "conv_norm"):
        return f"{layer}{rest[0].removeprefix('conv')}.{rest[1]}"
    return ".".join(map(str, path))


def after_stride(side: int, stride: int) -> int:
    """The side of a feature map after a convolution with padding k // 2, or after a pooling, in pixels."""
    return -(-side // stride)


def feature_layers(layout: Iterable[Layer]) -> dict[str, Layer]:
    """The layers whose outputs are the feature maps of a network, by name: 'stride4', 'stride8', ...

    They are the last layer of each stride from 4 up, before the head.
    """
    found, stride = {}, 1
    for layer in layout:
        if layer.stage is None and layer.path != ("stem",):
            break
        stride *= layer.stride
        if stride >= 4:
            found[f"stride{stride}"] = layer
    return found


def weights(layout: Iterable[Layer]) -> tuple[Weight, ...]:
    """The tensors of all layers."""
    return tuple(weight for layer in layout for weight in layer.weights())


def statistics(layout: Iterable[Layer]) -> dict[str, int]:
    """Channels of all batch norms in order, by the name of the statistics."""
    return {name: width for layer in layout for name, width in layer.statistics().items()}
