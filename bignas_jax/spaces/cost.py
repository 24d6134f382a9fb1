"""The cost of an architecture. Multiply-adds and parameters are counted here and nowhere else."""

import dataclasses

from bignas_jax.spaces.architecture import Architecture
from bignas_jax.spaces.layers import Conv, Layer, after_stride
from bignas_jax.spaces.space import Space


@dataclasses.dataclass(frozen=True)
class Cost:
    """The cost of an architecture.

    Attributes:
      macs: multiply-adds of one image's forward pass.
      params: the number of trained parameters.
    """

    macs: int
    params: int


def _conv_macs(conv: Conv, in_width: int, out_width: int) -> int:
    """Multiply-adds of a convolution and of the squeeze-and-excitation behind it."""
    weights = conv.kernel_size**2 * (1 if conv.depthwise else in_width) * out_width
    return weights * conv.side**2 + 2 * conv.out_width * conv.squeeze


def _conv_params(conv: Conv) -> int:
    weights = conv.kernel_size**2 * (1 if conv.depthwise else conv.in_width) * conv.out_width
    gate = (conv.out_width + 1) * conv.squeeze + (conv.squeeze + 1) * conv.out_width if conv.squeeze else 0
    return weights + conv.out_width * (conv.bias + 2 * conv.norm) + gate


def _layer(layer: Layer) -> Cost:
    macs = sum(_conv_macs(conv, conv.in_width, conv.out_width) for conv in layer.convs)
    params = sum(map(_conv_params, layer.convs))
    if layer.shortcut is not None and layer.shortcut.projects:
        macs, params = macs + _shortcut_macs(layer), params + layer.shortcut.in_width * layer.shortcut.out_width
    return Cost(macs, params)


def _shortcut_macs(layer: Layer) -> int:
    shortcut = layer.shortcut
    return shortcut.in_width * shortcut.out_width * after_stride(shortcut.side, shortcut.stride) ** 2


def count(space: Space, arch: Architecture, num_classes: int) -> Cost:
    """Multiply-adds and parameters of `arch` at its own resolution.

    Multiply-adds are counted in convolutions (also of shortcuts), in squeeze-and-excitation and in the classifier, and
    nowhere else. Parameters include batch norm's scales and biases. A shortcut counts if it projects.

    Args:
      space: the search space.
      arch: the architecture.
      num_classes: outputs of the classifier.
    Raises:
      ValueError: `arch` has another number of stages than the space.
    """
    costs = [_layer(layer) for layer in space.layout(arch, num_classes)]
    return Cost(sum(cost.macs for cost in costs), sum(cost.params for cost in costs))


def macs_by_layer(space: Space, arch: Architecture, num_classes: int) -> list[tuple[Layer, int]]:
    """The layers of `arch` in order, each with its multiply-adds. Their sum is `count(...).macs`.

    Args:
      space: the search space.
      arch: the architecture.
      num_classes: outputs of the classifier.
    """
    return [(layer, _layer(layer).macs) for layer in space.layout(arch, num_classes)]


def executed(space: Space, outer: Architecture, arch: Architecture, num_classes: int) -> int:
    """Multiply-adds of one image's forward pass of `arch` in the shared program that is compiled for `outer`.

    They are counted as in `count`, with XLA's own operations. Products and convolutions have the outer widths and
    kernel sizes, with two exceptions: blocks that `arch` does not have are skipped, and products stop at one of
    `Dim.ends`. The native kernels of the CPU compute less: they stop at the sampled channels and kernel size.

    Args:
      space: the search space.
      outer: the architecture that the program is compiled for.
      arch: an architecture that fits inside `outer`.
      num_classes: outputs of the classifier.
    """
    active = {layer.path: layer for layer in space.layout(arch, num_classes)}
    return sum(
        _executed(layer, active[layer.path]) for layer in space.layout(outer, num_classes) if layer.path in active
    )


def _executed(outer: Layer, inner: Layer) -> int:
    """Multiply-adds of the layer `outer` of a shared program, when a sampled architecture has `inner` there."""
    ends = {dim.name: dim.end_for(inner.sizes[dim.name]) for dim in outer.dims if dim.ends}
    total = 0
    for conv in outer.convs:
        stops = {} if conv.depthwise else ends
        total += _conv_macs(conv, stops.get(conv.into, conv.in_width), stops.get(conv.out, conv.out_width))
    if outer.shortcut is not None and outer.shortcut.elastic:
        # Only at run time is it known whether the widths differ, so the projection is always computed.
        total += _shortcut_macs(outer)
    return total
