"""A child taken out of a supernet: its slice of the weights with its own batch-norm statistics, and nothing else."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from bignas_jax.kernels.activation import FUNCTIONS
from bignas_jax.kernels.norm.normalize import EPSILON
from bignas_jax.nets.mode import Mode
from bignas_jax.nets.slicing import slice_params, slice_statistics
from bignas_jax.nets.supernet import Supernet
from bignas_jax.spaces.architecture import Architecture
from bignas_jax.spaces.mobilenet import SearchSpace, blocks, single

Path = tuple[str | int, ...]




@dataclasses.dataclass(frozen=True)
class Child:
    """One architecture with weights of its own.

    Attributes:
      space: the space whose one architecture it is (`slicing.single`). num_classes: of the classifier.
      params: NumPy float32, nested as `supernet.build(space, num_classes)` gives them; once folded, each norm has only
        a `bias`.
      statistics: layer name to (mean, variance), float32; None once batch norm is folded.
    """

    space: SearchSpace
    num_classes: int
    params: Any
    statistics: Mapping[str, tuple[np.ndarray, np.ndarray]] | None

    @property
    def arch(self) -> Architecture:
        return self.space.biggest

    @property
    def folded(self) -> bool:
        return self.statistics is None


def take(space: SearchSpace, params: Any, statistics: Mapping[str, Any], arch: Architecture) -> Child:
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
        num_classes=own["classifier"]["kernel"].shape[1],
        params=own,
        statistics=jax.tree.map(lambda a: np.array(a, np.float32), found),
    )


def _norms(child: Child) -> Iterator[tuple[Path, Path, str]]:
    """(convolution, the norm behind it, the name of its statistics), the first two as paths in the parameters."""
    yield ("stem",), ("stem_norm",), "stem"
    for number, block in enumerate(blocks(child.space, child.arch)):
        for part in ("expand", "depthwise", "project"):
            if part != "expand" or block.expand_ratio != 1:
                yield ("blocks", number, part), ("blocks", number, f"{part}_norm"), f"block{number}.{part}"
    yield ("head",), ("head_norm",), "head"


def _at(params: Any, path: Path) -> dict:
    for key in path:
        params = params[key]
    return params


def fold(child: Child) -> Child:
    """The same function with every batch norm folded into the convolution before it.

    kernel * scale / sqrt(variance + epsilon), and as bias: bias - mean * scale / sqrt(variance + epsilon); computed in
    float64. (Jacob et al., 2018, section 3.2.)
    """
    if child.folded:
        return child
    params = jax.tree.map(lambda a: a, child.params)  # new dictionaries, the same arrays
    for conv, norm, name in _norms(child):
        mean, variance = (a.astype(np.float64) for a in child.statistics[name])
        gain = _at(params, norm)["scale"] / np.sqrt(variance + EPSILON)
        kernel, bias = _at(params, conv)["kernel"] * gain, _at(params, norm)["bias"] - mean * gain
        _at(params, conv)["kernel"] = kernel.astype(np.float32)
        _at(params, norm[:-1])[norm[-1]] = {"bias": bias.astype(np.float32)}
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
        for _, norm, _ in _norms(child):
            owner = net if len(norm) == 1 else net.blocks[norm[1]]
            setattr(owner, norm[-1], _Bias(_at(child.params, norm)["bias"]))
    net = nnx.merge(nnx.graphdef(net), child.params)
    return lambda images: net(images, child.arch, None, Mode(statistics=child.statistics))[0]






