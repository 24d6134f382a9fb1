"""A child as plain values: its layers, and its weights under PyTorch's names."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from bignas_jax.nets.child import Child
from bignas_jax.nets.slicing import at
from bignas_jax.spaces.layers import Conv, Layer


def describe(child: Child) -> dict[str, Any]:
    """The child's layers as plain values. They are enough to build the child without this package.

    Returns:
      A dictionary with resolution, folded, num_classes and layers. Each layer has `kind`, `label`, `side`, `halves`,
      `pools`, `convs` and `shortcut` (None if there is none), as in `spaces.layers`.
    """
    elastic = ("into", "out", "zero_scale", "transforms")
    return {
        "resolution": child.arch.resolution,
        "folded": child.folded,
        "num_classes": child.num_classes,
        "layers": [
            {
                "kind": layer.kind,
                "label": layer.label,
                "side": layer.side,
                "halves": layer.halves,
                "pools": layer.pools,
                "convs": [
                    {name: value for name, value in dataclasses.asdict(conv).items() if name not in elastic}
                    for conv in layer.convs
                ],
                "shortcut": None if layer.shortcut is None else dataclasses.asdict(layer.shortcut),
            }
            for layer in child.layout
        ],
    }


def tensors(child: Child) -> dict[str, np.ndarray]:
    """The weights with the names and layouts of `torch_child.Child`. Convolutions are [out, in, k, k].

    If batch norm is folded, a convolution has `blocks.0.expand.conv.weight` and `.bias`. Otherwise it has `.weight`,
    and `blocks.0.expand.norm.weight`, `.bias`, `.running_mean` and `.running_var`. `stem`,
    `blocks.N.{depthwise,project}` and `head` are alike. Further names are `blocks.N.squeeze_excite.{reduce,expand}`,
    `blocks.N.shortcut` (if widths differ), `head_project` and `classifier`.
    """
    return layer_tensors(child.layout, child.params, child.statistics)


def layer_tensors(
    layout: Iterable[Layer], params: Any, statistics: Mapping[str, Any] | None
) -> dict[str, np.ndarray]:
    """The weights of these layers, as `tensors` names them.

    Args:
      layout: the layers.
      params: NumPy arrays, nested as `Child.params`, of these layers at least.
      statistics: layer name to (mean, variance); None if batch norm is folded.
    """
    found = {}
    for layer in layout:
        own = at(params, layer.path)
        for conv in layer.convs:
            label, weights = layer.conv_label(conv), own[conv.name]
            if conv.norm:
                stored = None if statistics is None else statistics[layer.statistics_name(conv)]
                found |= _normed(label, weights, own[f"{conv.name}_norm"], conv, stored)
            elif conv.form == "linear":
                found |= {f"{label}.weight": weights["kernel"].T, f"{label}.bias": weights["bias"]}
            else:
                found[f"{label}.weight"] = _weight(weights["kernel"])
            for part in ("reduce", "expand") if conv.squeeze else ():
                name, gate = f"{layer.label}.squeeze_excite.{part}", own["squeeze_excite"]
                found |= {f"{name}.weight": _weight(gate[f"{part}_kernel"]), f"{name}.bias": gate[f"{part}_bias"]}
        if layer.shortcut is not None and layer.shortcut.projects:
            found[f"{layer.label}.shortcut.weight"] = _weight(own["shortcut"]["conv"]["kernel"])
    return {name: np.ascontiguousarray(array) for name, array in found.items()}


def _normed(label: str, weights: dict, norm: dict, conv: Conv, stored: tuple | None) -> dict[str, np.ndarray]:
    """A convolution with the batch norm after it, or with the bias that folding leaves (`stored` is None)."""
    weight = {f"{label}.conv.weight": _weight(weights["kernel"], conv.depthwise)}
    if stored is None:
        return weight | {f"{label}.conv.bias": norm["bias"]}
    mean, variance = stored
    moments = {"weight": norm["scale"], "bias": norm["bias"], "running_mean": mean, "running_var": variance}
    return weight | {f"{label}.norm.{name}": value for name, value in moments.items()}


def _weight(kernel: np.ndarray, depthwise: bool = False) -> np.ndarray:
    """[in, out], [k, k, in, out] or, if `depthwise`, [k, k, channels] -> [out, in, k, k] (in = 1 for depthwise)."""
    if kernel.ndim == 2:
        return kernel.T[:, :, None, None]
    return kernel.transpose(2, 0, 1)[:, None] if depthwise else kernel.transpose(3, 2, 0, 1)
