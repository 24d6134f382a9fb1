"""What a checkpoint must hold: shape, dtype and checksum of each array of its items."""

import zlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from bignas_jax.errors import CheckpointError


def manifest_of(item: Any, checksum: bool = True) -> dict[str, dict[str, Any]]:
    """Shape, dtype and CRC-32 of each array of an item, by name."""
    named = {".".join(str(key.key) for key in path): leaf
             for path, leaf in jax.tree_util.tree_leaves_with_path(item)}  # fmt: skip
    about = {name: {"shape": list(np.shape(leaf)), "dtype": str(leaf.dtype)} for name, leaf in named.items()}
    if checksum:
        for name, leaf in named.items():
            about[name]["crc32"] = zlib.crc32(np.ascontiguousarray(leaf).data)
    return about


def check_arrays(where: str, expected: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    """Raises CheckpointError where arrays are missing, left over, or of another shape or dtype."""

    def form(about: Mapping[str, Any]) -> str:
        return f"{about['dtype']} {list(about['shape'])}"

    for name in dict.fromkeys([*expected, *found]):
        here, there = (form(side[name]) if name in side else "nothing" for side in (expected, found))
        if here != there:
            raise CheckpointError(f"{where} {name}: found {there}, expected {here}")
