"""A child of a supernet: its own slice of the weights and its own batch-norm statistics."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from bignas_jax.kernels.activation import FUNCTIONS
from bignas_jax.nets.mode import Mode
from bignas_jax.nets.slicing import at, num_classes_of, put, single, slice_params, slice_statistics
from bignas_jax.nets.supernet import Supernet
from bignas_jax.spaces.architecture import Architecture
from bignas_jax.spaces.layers import Layer, Path, feature_layers
from bignas_jax.spaces.space import Space


@dataclasses.dataclass(frozen=True)
class Child:
    """One architecture with weights of its own.

    Attributes:
      space: a space with this architecture alone (`slicing.single`).
      num_classes: classes of the classifier.
      params: NumPy float32 arrays, nested as `weights.build(space, num_classes)` gives them. After `fold` each norm has
        only a `bias`.
      statistics: layer name to (mean, variance), float32; None after `fold`.
    """

    space: Space
    num_classes: int
    params: Any
    statistics: Mapping[str, tuple[np.ndarray, np.ndarray]] | None

    @property
    def arch(self) -> Architecture:
        """The child's architecture."""
        return self.space.biggest

    @property
    def layout(self) -> tuple[Layer, ...]:
        """The child's layers in order."""
        return self.space.layout(self.arch, self.num_classes)

    @property
    def folded(self) -> bool:
        """Whether batch norm is folded into the convolutions."""
        return self.statistics is None


def take(space: Space, params: Any, statistics: Mapping[str, Any], arch: Architecture) -> Child:
    """The child `arch` of a supernet.

    Args:
      space: the supernet's space.
      params: the supernet's weights.
      statistics: the child's batch-norm statistics, as `Evaluator.calibrate` gives them.
      arch: the child's architecture.
    Raises:
      ValueError: the architecture is not in the space.
    """
    own = jax.tree.map(lambda a: np.array(a, np.float32), slice_params(space, params, arch))
    found = slice_statistics(space, statistics, arch)
    return Child(
        space=single(space, arch),
        num_classes=num_classes_of(own),
        params=own,
        statistics=jax.tree.map(lambda a: np.array(a, np.float32), found),
    )


@dataclasses.dataclass(frozen=True)
class _Normed:
    """A convolution and the norm behind it: paths in the parameters, the name of the statistics, the epsilon."""

    conv: Path
    norm: Path
    statistics: str
    epsilon: float


def _normed(child: Child) -> list[_Normed]:
    return [
        _Normed((*layer.path, conv.name), (*layer.path, f"{conv.name}_norm"), layer.statistics_name(conv),
                conv.epsilon)  # fmt: skip
        for layer in child.layout
        for conv in layer.convs
        if conv.norm
    ]


def fold(child: Child) -> Child:
    """The same child, with every batch norm folded into the convolution before it (Jacob et al., 2018, section 3.2).

    The new kernel is kernel * scale / sqrt(variance + epsilon). The new bias is
    bias - mean * scale / sqrt(variance + epsilon). Both are computed in float64. The child computes the same function.
    """
    if child.folded:
        return child
    params = jax.tree.map(lambda a: a, child.params)  # new dictionaries, the same arrays
    for part in _normed(child):
        mean, variance = (a.astype(np.float64) for a in child.statistics[part.statistics])
        norm = at(params, part.norm)
        gain = norm["scale"] / np.sqrt(variance + part.epsilon)
        put(params, (*part.conv, "kernel"), (at(params, part.conv)["kernel"] * gain).astype(np.float32))
        put(params, part.norm, {"bias": (norm["bias"] - mean * gain).astype(np.float32)})
    return dataclasses.replace(child, params=params, statistics=None)


class _Bias(nnx.Module):
    """Takes the place of a folded batch norm: adds a bias, applies activation and gate, adds the residual."""

    def __init__(self, bias: np.ndarray):
        self.bias = nnx.Param(bias)

    def __call__(
        self, x, size, *, activation="identity", statistics=None, axis_name=None, gate=None, weights=(), keep=None,
        residual=None, moments=None,
    ):  # fmt: skip
        y = FUNCTIONS[activation](x + self.bias[...])
        y = y if gate is None else y * gate(jnp.mean(y, (1, 2)), weights)[:, None, None]
        return (y if residual is None else y + residual), None


def feature_maps(net: Supernet, layout: Iterable[Layer], images: jax.Array, mode: Mode) -> dict[str, jax.Array]:
    """The outputs of the last block at each stride from 4 up, and nothing behind the last of them.

    Args:
      net: a network.
      layout: the layers of the architecture that runs.
      images: [B, R, R, 3], normalised.
      mode: how batch norm acts.
    Returns:
      By name, from the finest: {'stride4': [B, R / 4, R / 4, C], 'stride8': ..., ...}.
    """
    layout = tuple(layout)
    names = {layer.path: name for name, layer in feature_layers(layout).items()}
    x, found = images, {}
    for layer in layout:
        if len(found) == len(names):
            break
        x, _ = net.run(layer, x, None, mode)
        if layer.path in names:
            found[names[layer.path]] = x
    return found


def forward(child: Child):
    """The child as a function in JAX that holds its weights.

    Returns:
      A function of float32 [B, R, R, 3] normalised images that gives the logits [B, classes].
    """
    net = nnx.eval_shape(lambda: Supernet(child.space, child.num_classes, rngs=nnx.Rngs(0)))
    if child.folded:
        for part in _normed(child):
            *way, name = part.norm
            owner = net.blocks[way[1]] if way[0] == "blocks" else getattr(net, way[0])
            setattr(owner, name, _Bias(at(child.params, part.norm)["bias"]))
    net = nnx.merge(nnx.graphdef(net), child.params)
    return lambda images: net(images, child.arch, None, Mode(statistics=child.statistics))[0]
