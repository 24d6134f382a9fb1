"""Reads checkpoints of PyTorch-BigNAS, AttentiveNAS and Once-for-All, by their tensor names, into parameters.

All three name the parts of a block alike. Once-for-All has names of its own for the head, and it writes the name of a
convolution or norm once or twice (`conv.weight`, `conv.conv.weight`): once in static layers and twice in elastic ones.
Here its names are compared after each repetition is taken out.
"""

import dataclasses
import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from bignas_jax.errors import ConfigError
from bignas_jax.kernels.transform import matrix_name
from bignas_jax.spaces.layers import Conv, Layer, Path
from bignas_jax.spaces.ofa import OfaSpace
from bignas_jax.spaces.resnet import ResNetSpace
from bignas_jax.spaces.space import Space

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Parameter:
    """A tensor with PyTorch's name and shape, the parameter that it becomes, and the function that converts it."""

    name: str
    shape: Shape
    path: Path
    convert: Callable[[np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Account:
    """Every tensor of a state dict, compared with the tensors that a search space needs.

    Attributes:
      missing: tensors that the space needs and the state dict lacks, name to shape.
      unexpected: tensors that the state dict has and the space does not need, name to shape.
      misshapen: tensors with another shape, name to (found, expected).
      idle: names of the shortcut convolutions inside stages, which the released code registers but never runs.
    """

    missing: Mapping[str, Shape]
    unexpected: Mapping[str, Shape]
    misshapen: Mapping[str, tuple[Shape, Shape]]
    idle: tuple[str, ...]

    @property
    def fits(self) -> bool:
        """Whether no tensor is missing, unexpected or misshapen."""
        return not (self.missing or self.unexpected or self.misshapen)


def _depthwise(a: np.ndarray) -> np.ndarray:
    return a[:, 0].transpose(1, 2, 0)  # [C, 1, k, k] -> [k, k, C]


def _dense(a: np.ndarray) -> np.ndarray:
    return a.transpose(2, 3, 1, 0)  # [O, I, k, k] -> [k, k, I, O]


def _matrix(a: np.ndarray) -> np.ndarray:
    return a.reshape(a.shape[:2]).T  # [O, I] or [O, I, 1, 1] -> [I, O]


def _same(a: np.ndarray) -> np.ndarray:
    return a


def _norm(torch_name: str, path: Path, width: int) -> Iterator[Parameter]:
    yield Parameter(f"{torch_name}.bn.bn.weight", (width,), (*path, "scale"), _same)
    yield Parameter(f"{torch_name}.bn.bn.bias", (width,), (*path, "bias"), _same)


def _pointwise(torch_name: str, in_width: int, out_width: int, path: Path) -> Parameter:
    return Parameter(f"{torch_name}.weight", (out_width, in_width, 1, 1), path, _matrix)


# The released code's names of the convolutions of a block, and of the head with one part or two.
_PARTS = {"expand": "inverted_bottleneck", "depthwise": "depth_conv", "project": "point_linear"}
_HEAD, _FIRST, _SECOND = "last_conv", "last_conv.final_expand_layer", "last_conv.feature_mix_layer"
_OFA_HEAD, _OFA_FIRST, _OFA_SECOND = "feature_mix_layer", "final_expand_layer", "feature_mix_layer"


def _spelled(space: Space, name: str) -> str:
    """A name as this module compares it: without repetitions if the space is Once-for-All's."""
    ofa = isinstance(space, OfaSpace | ResNetSpace)
    return re.sub(r"\b(conv|bn|linear)(\.\1)+\b", r"\1", name) if ofa else name


def _names(space: Space, layout: Sequence[Layer]) -> dict[tuple[Path, str], str]:
    """The released code's name of each convolution, by the layer's path and the convolution's name.

    Raises:
      ConfigError: a layer has a kind that the released systems do not have.
    """
    if isinstance(space, ResNetSpace):
        return _resnet_names(space, layout)
    two_parts = any(layer.kind == "mix" for layer in layout)
    one, first, second = _HEAD, _FIRST, _SECOND
    if isinstance(space, OfaSpace):
        one, first, second = _OFA_HEAD, _OFA_FIRST, _OFA_SECOND
    ends = {"stem": "first_conv", "head": first if two_parts else one, "mix": second, "classifier": "classifier"}
    found = {}
    for layer in layout:
        if layer.kind not in (*ends, "mbconv"):
            raise ConfigError(f"config.space: found layers of kind {layer.kind}, expected those of MobileNet's family")
        for conv in layer.convs:
            name = ends.get(layer.kind) or f"{layer.label}.mobile_inverted_conv.{_PARTS[conv.name]}"
            found[layer.path, conv.name] = name
    return found


# Once-for-All's names of the convolutions of a bottleneck.
_RESNET_PARTS = {"reduce": "conv1", "middle": "conv2", "expand": "conv3", "downsample": "downsample"}


def _resnet_names(space: ResNetSpace, layout: Sequence[Layer]) -> dict[tuple[Path, str], str]:
    """Once-for-All's names of a ResNet's convolutions. It counts blocks from the first bottleneck."""
    found, stem = {}, space.stages[0].depth[-1]
    for layer in layout:
        for conv in layer.convs:
            if layer.kind == "bottleneck":
                name = f"blocks.{layer.path[1] - stem}.{_RESNET_PARTS[conv.name]}"
            elif layer.stage is None:
                name = {"stem": "input_stem.0", "classifier": "classifier"}[layer.kind]
            else:
                name = "input_stem.1.conv" if layer.shortcut else "input_stem.2"
            found[layer.path, conv.name] = name
    return found


def _parameters(space: Space, num_classes: int) -> Iterator[Parameter]:
    for parameter in _twice_named(space, num_classes):
        yield dataclasses.replace(parameter, name=_spelled(space, parameter.name))


def _twice_named(space: Space, num_classes: int) -> Iterator[Parameter]:
    """The parameters, with each repetition in their names."""
    layout = space.layout(space.biggest, num_classes)
    names = _names(space, layout)
    for layer in layout:
        for conv in layer.convs:
            name, path = names[layer.path, conv.name], (*layer.path, conv.name)
            yield from _conv(name, path, conv)
            if conv.norm:
                yield from _norm(name, (*path[:-1], f"{path[-1]}_norm"), conv.out_width)
            if conv.squeeze:
                yield from _squeeze_excite(name, (*layer.path, "squeeze_excite"), conv)
        if layer.shortcut is not None and layer.shortcut.elastic:
            yield _shortcut(layer)


def _conv(name: str, path: Path, conv: Conv) -> Iterator[Parameter]:
    kernel = (*path, "kernel")
    sides = (conv.kernel_size, conv.kernel_size)
    if conv.depthwise:
        yield Parameter(f"{name}.conv.conv.weight", (conv.out_width, 1, *sides), kernel, _depthwise)
        for larger, side in itertools.pairwise((conv.kernel_size, *conv.transforms)):
            shape = (side**2, side**2)
            yield Parameter(f"{name}.conv.{larger}to{side}_matrix", shape, (*path, matrix_name(side)), _same)
    elif conv.form == "dense":
        yield Parameter(f"{name}.conv.conv.weight", (conv.out_width, conv.in_width, *sides), kernel, _dense)
    elif conv.form == "linear":
        yield Parameter(f"{name}.linear.linear.weight", (conv.out_width, conv.in_width), kernel, _matrix)
        yield Parameter(f"{name}.linear.linear.bias", (conv.out_width,), (*path, "bias"), _same)
    else:
        yield _pointwise(f"{name}.conv.conv", conv.in_width, conv.out_width, kernel)


def _squeeze_excite(name: str, path: Path, conv: Conv) -> Iterator[Parameter]:
    widths = conv.out_width, conv.squeeze
    for part, (into, out) in (("reduce", widths), ("expand", widths[::-1])):
        yield _pointwise(f"{name}.se.fc.{part}", into, out, (*path, f"{part}_kernel"))
        yield Parameter(f"{name}.se.fc.{part}.bias", (out,), (*path, f"{part}_bias"), _same)


def _shortcut(layer: Layer) -> Parameter:
    path = (*layer.path, "shortcut", "conv", "kernel")
    return _pointwise(f"{layer.label}.shortcut.conv.conv", layer.shortcut.in_width, layer.shortcut.out_width, path)


def _norms(space: Space) -> Iterator[tuple[str, str]]:
    """Pairs for each batch norm: PyTorch's name of the layer, and our name of its statistics."""
    layout = space.layout(space.biggest)
    names = _names(space, layout)
    for layer in layout:
        for conv in layer.convs:
            if conv.norm:
                yield names[layer.path, conv.name], layer.statistics_name(conv)


def _moment(space: Space, name: str, kind: str) -> str:
    """The name of a stored 'mean' or 'var' of the batch norm of this name."""
    return _spelled(space, f"{name}.bn.bn.running_{kind}")


def released_name(name: str) -> str:
    """A tensor's name without the prefixes of wrappers. Of a block's two names, it takes the one used here."""
    return re.sub(r"^(blocks\.\d+)\.conv\.", r"\1.mobile_inverted_conv.", re.sub(r"^((module|_orig_mod)\.)+", "", name))


def expected_shapes(space: Space, num_classes: int) -> dict[str, Shape]:
    """The shapes of all tensors that a state dict of this space must have, by name."""
    shapes = {parameter.name: parameter.shape for parameter in _parameters(space, num_classes)}
    for name, _ in _norms(space):
        for kind in ("mean", "var"):
            shapes[_moment(space, name, kind)] = shapes[_spelled(space, f"{name}.bn.bn.weight")]
    return shapes


def account(space: Space, num_classes: int, found: Mapping[str, Shape]) -> Account:
    """Compares tensors with the space.

    Args:
      space: the search space.
      num_classes: classes of the classifier.
      found: the tensors' shapes, by the names that `released_name` gives.
    """
    needed, found = expected_shapes(space, num_classes), {_spelled(space, name): s for name, s in found.items()}
    inside = [
        layer for layer in space.layout(space.biggest)
        if layer.kind == "mbconv" and layer.shortcut and not layer.shortcut.elastic
    ]  # fmt: skip
    idle = {parameter.name: parameter.shape for parameter in map(_shortcut, inside)}
    known = needed | idle
    return Account(
        missing={name: shape for name, shape in needed.items() if name not in found},
        unexpected={name: shape for name, shape in found.items() if name not in known},
        misshapen={name: (found[name], shape) for name, shape in known.items() if found.get(name, shape) != shape},
        idle=tuple(name for name in idle if name in found),
    )


def read_state_dict(space: Space, tensors: Mapping[str, np.ndarray]) -> tuple[dict, dict]:
    """Parameters and batch-norm statistics from a PyTorch supernet's state dict.

    Args:
      space: the search space that the checkpoint was trained on.
      tensors: arrays by the names of a released checkpoint. Shortcut convolutions inside a stage are ignored, because
        the released code registers them but never runs them.
    Returns:
      The parameters, nested as `supernet.build` gives them, and the statistics stored for the biggest architecture, as
      `Supernet.__call__` takes them.
    Raises:
      ValueError: tensors are missing; the message lists the first ones.
    """
    # Shapes are not checked here (see `account`), so that the number of classes does not matter.
    wanted, tensors = list(_parameters(space, num_classes=0)), {_spelled(space, n): a for n, a in tensors.items()}
    stored = [(_moment(space, theirs, kind), ours) for theirs, ours in _norms(space) for kind in ("mean", "var")]
    missing = [name for name in [p.name for p in wanted] + [name for name, _ in stored] if name not in tensors]
    if missing:
        raise ValueError(
            f"state dict: {len(missing)} tensors of this search space are missing: {', '.join(missing[:5])}"
            f"{', ...' if len(missing) > 5 else ''}"
        )
    params: dict = {}
    for parameter in wanted:
        node = params
        for key in parameter.path[:-1]:
            node = node.setdefault(key, {})
        array = np.asarray(tensors[parameter.name], np.float32)
        node[parameter.path[-1]] = np.ascontiguousarray(parameter.convert(array))
    statistics: dict = {}
    for name, ours in stored:
        statistics[ours] = (*statistics.get(ours, ()), np.asarray(tensors[name], np.float32))
    return params, statistics
