"""Batch-norm statistics of children: their names, and where they are kept between processes."""

import hashlib
import os
import pathlib
import sys
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from bignas_jax.errors import ConfigError
from bignas_jax.files import write_with
from bignas_jax.nets.slicing import single
from bignas_jax.spaces.architecture import Architecture
from bignas_jax.spaces.layers import statistics
from bignas_jax.spaces.space import Space

Statistics = Mapping[str, tuple[np.ndarray, np.ndarray]]
_MOMENTS = ("mean", "variance")


def checked(space: Space, given: Any) -> Statistics:
    """Statistics that a user gives for the one architecture of a space, as float32 arrays.

    Args:
      space: of the child alone.
      given: layer name to (mean, variance), as `Child.statistics` has them.
    Raises:
      ConfigError: a layer is missing or unknown, or an array has another shape.
    """
    widths = statistics(space.layout(space.biggest))
    if not isinstance(given, Mapping):
        raise ConfigError(
            f"statistics: found {given!r:.80}, expected calibrated, stored, batch, or what child.statistics holds"
        )
    wrong = [*(f"no {name}" for name in widths if name not in given), *(f"{n!r}" for n in given if n not in widths)]
    if wrong:
        raise ConfigError(f"statistics: found {', '.join(wrong[:5])}, expected the layers {', '.join(widths)}")
    found = {}
    for name, width in widths.items():
        pair = tuple(np.asarray(array, np.float32) for array in given[name])
        shapes = [array.shape for array in pair]
        if shapes != [(width,), (width,)]:
            raise ConfigError(f"statistics: {name}: found shapes {shapes}, expected mean and variance of {width} each")
        found[name] = pair
    return found


def in_supernet(space: Space, arch: Architecture, own: Statistics) -> dict[str, tuple[Any, Any]]:
    """A child's statistics under the supernet's layer names: the inverse of `slicing.slice_statistics`."""
    names = [statistics([layer]) for layer in space.layout(arch)]
    theirs = [statistics([layer]) for layer in single(space, arch).layout(arch)]
    return {
        wide: own[name]
        for layer, child in zip(names, theirs, strict=True)
        for wide, name in zip(layer, child, strict=True)
    }


def digest(identity: str, params: Any, data: bytes) -> str:
    """The name under which calibrated statistics are kept: everything that they depend on.

    Args:
      identity: a text that determines the child's program and its calibration.
      params: the child's weights.
      data: what is known of the training images.
    """
    found = hashlib.sha256(identity.encode() + data)
    for leaf in jax.tree.leaves(params):
        found.update(np.ascontiguousarray(leaf))
    return found.hexdigest()[:32]


def load(path: pathlib.Path, widths: Mapping[str, int]) -> Statistics | None:
    """The statistics in a file; None if there is none, or it is damaged."""
    try:
        with np.load(path) as arrays:
            found = {name: tuple(arrays[f"{name}.{kind}"] for kind in _MOMENTS) for name in widths}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    return found if all(a.shape == (widths[name],) for name, pair in found.items() for a in pair) else None


def save(path: pathlib.Path, found: Statistics) -> None:
    """Keeps statistics in a file. A folder that cannot be written to is said in one line, and the work goes on."""
    arrays = {f"{name}.{kind}": a for name, pair in found.items() for kind, a in zip(_MOMENTS, pair, strict=True)}
    try:
        path.parent.mkdir(exist_ok=True)
        write_with(path, lambda temporary: _write(temporary, arrays))
    except OSError as error:
        print(f"statistics are not kept: {path}: {error.strerror}", file=sys.stderr)


def _write(path: str | os.PathLike, arrays: Mapping[str, Sequence]) -> None:
    with open(path, "wb") as file:
        np.savez(file, **arrays)
