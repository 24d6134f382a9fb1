"""A child as plain values: its layers, and its weights under PyTorch's names."""

from typing import Any

import numpy as np

from bignas_jax.nets.child import Child, _at, _norms
from bignas_jax.spaces.mobilenet import blocks, head_mid_width


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
