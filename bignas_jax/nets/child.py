"""A child taken out of a supernet: its slice of the weights with its own batch-norm statistics, and nothing else."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from bignas_jax.kernels.activation import FUNCTIONS
from bignas_jax.kernels.norm.normalize import EPSILON
from bignas_jax.nets.mode import Mode
from bignas_jax.nets.slicing import at, num_classes_of, put, single, slice_params, slice_statistics
from bignas_jax.nets.supernet import Supernet
from bignas_jax.spaces.architecture import Architecture
from bignas_jax.spaces.layers import Layer, Path
from bignas_jax.spaces.space import Space


@dataclasses.dataclass(frozen=True)
class Child:
    """One architecture with weights of its own.

    Attributes:
      space: the space whose one architecture it is (`slicing.single`). num_classes: of the classifier.
      params: NumPy float32, nested as `supernet.build(space, num_classes)` gives them; once folded, each norm has only
        a `bias`.
      statistics: layer name to (mean, variance), float32; None once batch norm is folded.
    """

    space: Space
    num_classes: int
    params: Any
    statistics: Mapping[str, tuple[np.ndarray, np.ndarray]] | None

    @property
    def arch(self) -> Architecture:
        return self.space.biggest

    @property
    def layout(self) -> tuple[Layer, ...]:
        return self.space.layout(self.arch, self.num_classes)

    @property
    def folded(self) -> bool:
        return self.statistics is None


def take(space: Space, params: Any, statistics: Mapping[str, Any], arch: Architecture) -> Child:
    """The child `arch` of a supernet.

    Args:
      space, params: of the supernet. statistics: of the child, as `Evaluator.calibrate` gives them.
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
    """A convolution and the norm behind it, as paths in the parameters, and the name of the norm's statistics."""

    conv: Path
    norm: Path
    statistics: str


def _normed(child: Child) -> list[_Normed]:
    return [
        _Normed((*layer.path, conv.name), (*layer.path, f"{conv.name}_norm"), layer.statistics_name(conv))
        for layer in child.layout
        for conv in layer.convs
        if conv.norm
    ]


def fold(child: Child) -> Child:
    """The same function with every batch norm folded into the convolution before it.

    kernel * scale / sqrt(variance + epsilon), and as bias: bias - mean * scale / sqrt(variance + epsilon); computed in
    float64. (Jacob et al., 2018, section 3.2.)
    """
    if child.folded:
        return child
    params = jax.tree.map(lambda a: a, child.params)  # new dictionaries, the same arrays
    for part in _normed(child):
        mean, variance = (a.astype(np.float64) for a in child.statistics[part.statistics])
        norm = at(params, part.norm)
        gain = norm["scale"] / np.sqrt(variance + EPSILON)
        put(params, (*part.conv, "kernel"), (at(params, part.conv)["kernel"] * gain).astype(np.float32))
        put(params, part.norm, {"bias": (norm["bias"] - mean * gain).astype(np.float32)})
    return dataclasses.replace(child, params=params, statistics=None)


class _Bias(nnx.Module):
    """Stands where a folded batch norm stood: adds a bias, then applies the activation and the gate."""

    def __init__(self, bias: np.ndarray):
        self.bias = nnx.Param(bias)

    def __call__(
        self, x, size, *, activation="identity", statistics=None, axis_name=None, gate=None, weights=()
    ):
        y = FUNCTIONS[activation](x + self.bias[...])
        return (y if gate is None else y * gate(jnp.mean(y, (1, 2)), weights)[:, None, None]), None


def forward(child: Child):
    """The child in JAX, its weights inside: float32 [B, R, R, 3] normalised images to logits [B, classes]."""
    net = nnx.eval_shape(lambda: Supernet(child.space, child.num_classes, rngs=nnx.Rngs(0)))
    if child.folded:
        for part in _normed(child):
            *way, name = part.norm
            owner = net.blocks[way[1]] if way[0] == "blocks" else getattr(net, way[0])
            setattr(owner, name, _Bias(at(child.params, part.norm)["bias"]))
    net = nnx.merge(nnx.graphdef(net), child.params)
    return lambda images: net(images, child.arch, None, Mode(statistics=child.statistics))[0]
