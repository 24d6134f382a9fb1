"""A child taken out of a supernet: its slice of the weights with its own batch-norm statistics, and nothing else."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from bignas_jax.architecture import Architecture
from bignas_jax.ops.activation import FUNCTIONS
from bignas_jax.ops.batch_norm import EPSILON
from bignas_jax.slicing import single, slice_params, slice_statistics
from bignas_jax.space import SearchSpace, blocks, head_mid_width
from bignas_jax.supernet import Mode, Supernet

Path = tuple[str | int, ...]


class ExportError(ValueError):
    """A child cannot be taken out, or what was written computes something else. One line for the user."""


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


def describe(child: Child) -> dict[str, Any]:
    """The child's layers as plain values, enough to build it without this package."""
    space, arch = child.space, child.arch
    kept = ("in_width", "mid_width", "out_width", "se_width", "kernel_size", "stride")
    layers = [
        {"expand": block.expand_ratio != 1} | {name: getattr(block, name) for name in kept}
        for block in blocks(space, arch)
    ]
    mid = head_mid_width(arch) if space.v3_head else arch.width[-1]
    return {
        "resolution": arch.resolution,
        "activation": space.activation,
        "folded": child.folded,
        "num_classes": child.num_classes,
        "stem": {"width": arch.width[0], "stride": space.stem_stride},
        "head": {"in_width": arch.width[-2], "mid_width": mid, "width": arch.width[-1], "v3": space.v3_head},
        "blocks": layers,
    }


def tensors(child: Child) -> dict[str, np.ndarray]:
    """The weights by the names and in the layouts of `torch_child.Child`, convolutions as [out, in, k, k].

    `blocks.0.expand.conv.weight` and `.bias`, or, where batch norm is not folded, `blocks.0.expand.norm.weight`,
    `.bias`, `.running_mean` and `.running_var`; likewise `stem`, `blocks.N.{depthwise,project}` and `head`. Further
    `blocks.N.squeeze_excite.{reduce,expand}`, `blocks.N.shortcut` (where widths differ), `head_project`, `classifier`.
    """
    params, found = child.params, {}
    for conv, norm, statistics in _norms(child):
        name = ".".join(map(str, conv))
        depthwise = conv[-1] == "depthwise"
        found[f"{name}.conv.weight"] = _weight(_at(params, conv)["kernel"], depthwise)
        if child.folded:
            found[f"{name}.conv.bias"] = _at(params, norm)["bias"]
            continue
        mean, variance = child.statistics[statistics]
        found |= {
            f"{name}.norm.weight": _at(params, norm)["scale"],
            f"{name}.norm.bias": _at(params, norm)["bias"],
            f"{name}.norm.running_mean": mean,
            f"{name}.norm.running_var": variance,
        }
    for number, block in enumerate(blocks(child.space, child.arch)):
        own, name = params["blocks"][number], f"blocks.{number}"
        for part in ("reduce", "expand") if block.se_width else ():
            found[f"{name}.squeeze_excite.{part}.weight"] = _weight(own["squeeze_excite"][f"{part}_kernel"])
            found[f"{name}.squeeze_excite.{part}.bias"] = own["squeeze_excite"][f"{part}_bias"]
        if block.in_width != block.out_width:
            found[f"{name}.shortcut.weight"] = _weight(own["shortcut"]["conv"]["kernel"])
    if child.space.v3_head:
        found["head_project.weight"] = _weight(params["head_project"]["kernel"])
    found["classifier.weight"] = params["classifier"]["kernel"].T
    found["classifier.bias"] = params["classifier"]["bias"]
    return {name: np.ascontiguousarray(array) for name, array in found.items()}


def _weight(kernel: np.ndarray, depthwise: bool = False) -> np.ndarray:
    """[in, out], [k, k, in, out] or, if `depthwise`, [k, k, channels] -> [out, in, k, k] (in = 1 for depthwise)."""
    if kernel.ndim == 2:
        return kernel.T[:, :, None, None]
    return kernel.transpose(2, 0, 1)[:, None] if depthwise else kernel.transpose(3, 2, 0, 1)
