"""A child's own weights: the slice of the supernet's weights that a forward pass of the child reads.

A child is the supernet of a space with one architecture. So everything that runs on a supernet (training, calibration,
evaluation, export) runs on a child, without a mask and without unused weights.
"""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from bignas_jax.kernels.transform import matrix_name, transformed
from bignas_jax.spaces.architecture import Architecture
from bignas_jax.spaces.layers import Layer, Path, weight_name, weights
from bignas_jax.spaces.space import Space


def single(space: Space, arch: Architecture) -> Space:
    """The space with the architecture `arch` alone. Stages keep their names, strides and squeeze-and-excitation.

    Raises:
      ValueError: `arch` is not in `space`.
    """
    return space.restricted(only=arch)


def num_classes_of(params: Mapping[str, Any]) -> int:
    """The number of classes of a supernet with these parameters."""
    return params["classifier"]["conv"]["bias"].shape[0]


def at(params: Any, path: Path) -> Any:
    """The value at a path of nested parameters."""
    for key in path:
        params = params[key]
    return params


def put(params: dict, path: Path, value: Any) -> None:
    """Sets the value at a path of nested parameters. Dictionaries that are missing on the way are made."""
    *way, last = path
    for key in way:
        params = params.setdefault(key, {})
    params[last] = value


def slice_params(space: Space, params: Any, arch: Architecture) -> dict:
    """The weights of `arch`, as the supernet of `single(space, arch)` takes them.

    They are the first channels, the centre of each depthwise kernel (or what its trained transforms make of it) and the
    first blocks of each stage. The logits are the same, bit by bit or nearly.

    Args:
      space: the supernet's space.
      params: the supernet's weights, nested as `weights.build` gives them, NumPy or JAX arrays.
      arch: the architecture to slice to.
    Returns:
      Arrays of the same kind (NumPy's are views), nested in the same way. Blocks are numbered without gaps.
    Raises:
      ValueError: `arch` is not in the space, or `params` are not of this space.
    """
    child, found = single(space, arch), {}
    try:
        classes = num_classes_of(params)
        for own, wide in zip(child.layout(arch, classes), space.layout(arch, classes), strict=True):
            theirs = _transformed(wide, at(params, wide.path))
            for weight in own.weights():
                inner = weight.path[len(own.path) :]
                name = weight_name((*wide.path, *inner))
                put(found, weight.path, _cut(name, weight.shape, at(theirs, inner)))
    except (KeyError, ValueError) as error:
        raise ValueError(f"params: not those of this search space ({error})") from error
    return found


def _transformed(layer: Layer, params: Mapping[str, Any]) -> Mapping[str, Any]:
    """A layer's parameters, with depthwise kernels that are made by a trained transform in place of the largest ones.

    Args:
      layer: the layer in the architecture that is sliced to.
      params: its parameters in the supernet.
    """
    own = dict(params)
    for conv in layer.convs:
        if conv.transforms:
            held = params[conv.name]
            matrices = {side: held[matrix_name(side)] for side in conv.transforms}
            own[conv.name] = held | {"kernel": transformed(held["kernel"], matrices, conv.kernel_size)}
    return own


def param_shapes(space: Space, num_classes: int) -> dict:
    """The supernet's parameters, as shapes and dtypes."""
    found: dict = {}
    for weight in weights(space.layout(space.biggest, num_classes)):
        put(found, weight.path, jax.ShapeDtypeStruct(weight.shape, np.float32))
    return found


def _cut(name: str, shape: tuple[int, ...], array: Any) -> Any:
    """The part of `array` in this shape: the centre of a kernel's sides [k, k, ...], the first entries elsewhere."""
    sides = 2 if len(shape) > 2 else 0
    starts = [(have - want) // 2 if axis < sides else 0
              for axis, (have, want) in enumerate(zip(array.shape, shape, strict=True))]  # fmt: skip
    part = array[tuple(slice(start, start + want) for start, want in zip(starts, shape, strict=True))]
    if part.shape != shape:
        raise ValueError(f"{name}: found shape {array.shape}, expected at least {shape}")
    return part


def slice_statistics(space: Space, statistics: dict, arch: Architecture) -> dict:
    """Batch-norm statistics of `arch` that were collected on the supernet, under the layer names of the child.

    Args:
      space: the supernet's space.
      statistics: layer name to (mean, variance), each of the child's width or longer (longer after a masked run).
      arch: the child's architecture.
    """
    found = {}
    for own, wide in zip(single(space, arch).layout(arch), space.layout(arch), strict=True):
        for (name, width), theirs in zip(own.statistics().items(), wide.statistics(), strict=True):
            found[name] = tuple(np.asarray(a)[:width] for a in statistics[theirs])
    return found
