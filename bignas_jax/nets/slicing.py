"""A child's own weights: the slice of a supernet's that a forward pass of the child reads.

The child is the supernet of a space that leaves it no choice, so that whatever runs on a supernet (training,
calibration, evaluation, export) runs on a child, without a mask and without a weight too many.
"""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from bignas_jax.spaces.architecture import Architecture
from bignas_jax.spaces.layers import Path, weights
from bignas_jax.spaces.space import Space


def single(space: Space, arch: Architecture) -> Space:
    """The space whose one architecture is `arch`; stages keep their names, strides and squeeze-and-excitation.

    Raises:
      ValueError: `arch` is not in `space`.
    """
    return space.restricted(only=arch)


def num_classes_of(params: Mapping[str, Any]) -> int:
    """The classes of a supernet with these parameters."""
    return params["classifier"]["conv"]["bias"].shape[0]


def at(params: Any, path: Path) -> Any:
    """What lies at a path of nested parameters."""
    for key in path:
        params = params[key]
    return params


def put(params: dict, path: Path, value: Any) -> None:
    """Sets what lies at a path of nested parameters, and makes the dictionaries that lead there."""
    *way, last = path
    for key in way:
        params = params.setdefault(key, {})
    params[last] = value


def slice_params(space: Space, params: Any, arch: Architecture) -> dict:
    """The weights of `arch` as the supernet of `single(space, arch)` takes them: the same logits, bit by bit or nearly.

    Leading channels, the centre of each depthwise kernel, the first blocks of each stage.

    Args:
      params: of the supernet, nested as `weights.build` gives them, NumPy or JAX arrays.
    Returns:
      Arrays of the same kind (NumPy's are views), nested alike; blocks are numbered without gaps.
    Raises:
      ValueError: `arch` is not in the space, or `params` are not of this space.
    """
    child, found = single(space, arch), {}
    try:
        classes = num_classes_of(params)
        pairs = zip(weights(child.layout(arch, classes)), weights(space.layout(arch, classes)), strict=True)
        for own, wide in pairs:
            put(found, own.path, _cut(wide.name, own.shape, at(params, wide.path)))
    except (KeyError, ValueError) as error:
        raise ValueError(f"params: not those of this search space ({error})") from error
    return found


def param_shapes(space: Space, num_classes: int) -> dict:
    """The supernet's parameters as shapes."""
    found: dict = {}
    for weight in weights(space.layout(space.biggest, num_classes)):
        put(found, weight.path, jax.ShapeDtypeStruct(weight.shape, np.float32))
    return found


def _cut(name: str, shape: tuple[int, ...], array: Any) -> Any:
    """The leading part of `array` in this shape; of a kernel's two sides, [k, k, ...], the centre."""
    sides = 2 if len(shape) > 2 else 0
    starts = [(have - want) // 2 if axis < sides else 0
              for axis, (have, want) in enumerate(zip(array.shape, shape, strict=True))]  # fmt: skip
    part = array[tuple(slice(start, start + want) for start, want in zip(starts, shape, strict=True))]
    if part.shape != shape:
        raise ValueError(f"{name}: found shape {array.shape}, expected at least {shape}")
    return part


def slice_statistics(space: Space, statistics: dict, arch: Architecture) -> dict:
    """Batch-norm statistics of `arch`, found on the supernet, under the names that its own slice gives them.

    Args:
      statistics: layer name to (mean, variance), each of the child's width or longer (those of a masked run).
    """
    found = {}
    for own, wide in zip(single(space, arch).layout(arch), space.layout(arch), strict=True):
        for (name, width), theirs in zip(own.statistics().items(), wide.statistics(), strict=True):
            found[name] = tuple(np.asarray(a)[:width] for a in statistics[theirs])
    return found
