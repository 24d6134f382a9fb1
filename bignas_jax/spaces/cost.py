"""What an architecture costs: the one place that counts multiply-adds and parameters."""

import dataclasses

from bignas_jax.spaces.architecture import Architecture
from bignas_jax.spaces.layers import Conv, Layer, after_stride
from bignas_jax.spaces.space import Space


@dataclasses.dataclass(frozen=True)
class Cost:
    """Multiply-adds of one image's forward pass, and the number of trained parameters."""

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
    """Multiply-adds and parameters of `arch` on its own resolution.

    Multiply-adds are those of convolutions (shortcuts included), squeeze-and-excitation and the classifier;
    nothing else counts. Parameters include batch norm's scales and biases. A shortcut counts where it projects.

    Raises:
      ValueError: `arch` has another number of stages than the space.
    """
    costs = [_layer(layer) for layer in space.layout(arch, num_classes)]
    return Cost(sum(cost.macs for cost in costs), sum(cost.params for cost in costs))


def executed(space: Space, outer: Architecture, arch: Architecture, num_classes: int) -> int:
    """Multiply-adds that one image's forward pass of `arch` takes in the shared program compiled for `outer`.

    They are counted as `count` does, for XLA's own operations: every product and convolution at the outer widths
    and kernel sizes, except that blocks are skipped and that products stop at one of `Dim.ends`. The native kernels of
    the CPU stop earlier, with the sampled channels and kernel size.

    Args:
      outer: the architecture that the program was compiled for.
      arch: one that fits inside it.
    """
    active = {layer.path: layer for layer in space.layout(arch, num_classes)}
    return sum(
        _executed(layer, active[layer.path]) for layer in space.layout(outer, num_classes) if layer.path in active
    )


def _executed(outer: Layer, inner: Layer) -> int:
    """Multiply-adds of a layer of a shared program, for a sampled architecture whose layer is `inner`."""
    ends = {dim.name: dim.end_for(inner.sizes[dim.name]) for dim in outer.dims if dim.ends}
    total = 0
    for conv in outer.convs:
        stops = {} if conv.depthwise else ends
        total += _conv_macs(conv, stops.get(conv.into, conv.in_width), stops.get(conv.out, conv.out_width))
    if outer.shortcut is not None and outer.shortcut.elastic:
        # Whether the widths differ is known at run time only.
        total += _shortcut_macs(outer)
    return total
