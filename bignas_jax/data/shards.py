"""Tar shards with an index: <root>/<split>/*.tar, and beside them the index that `bignas_jax index` writes."""

import os

import numpy as np
from safetensors import SafetensorError, safe_open

from bignas_jax.data.packed import (
    Packed,
    PackedSource,
    as_pair,
    check_class_names,
    check_labels,
    check_parts,
    sizes_and_places,
)
from bignas_jax.data.tar_index import ABOUT, INDEX, VERSION, shards_in
from bignas_jax.errors import DataError, FileError
from bignas_jax.files import check_regular, parse_json
from bignas_jax.text import shown

_ARRAYS = {
    "names": np.uint8, "ends": np.int64, "labels": np.int32, "file": np.int32, "offset": np.int64, "size": np.int64
}  # fmt: skip


def open_shards(root: str, train_split: str, val_split: str) -> tuple[tuple[str, ...], PackedSource, PackedSource]:
    """The class names, the training and the validation images of tar shards.

    Raises:
        DataError: a folder has no shards or no index, the index is older than they are or does not fit them, or the
            two splits differ in their classes or share shards.
    """
    return as_pair(*(_open(os.path.join(root, split)) for split in (train_split, val_split)))


def _open(folder: str) -> Packed:
    shards, again = shards_in(folder), f"run python -m bignas_jax index {shown(folder)}"
    if not shards:
        raise DataError(
            f"no tar files in {shown(folder)}: expected <data.root>/<split>/<shard>.tar; set config.data.root, "
            "config.data.train_split and config.data.val_split"
        )
    path = os.path.join(folder, INDEX)
    where = shown(path)
    try:
        check_regular(path)
        written = os.stat(path).st_mtime_ns
        about, arrays = _read(path)
    except FileNotFoundError:
        raise DataError(f"no {INDEX} in {shown(folder)}: {again}") from None
    except (FileError, OSError, SafetensorError, ValueError, KeyError, TypeError, MemoryError) as error:
        reason = shown(getattr(error, "strerror", None) or str(error))
        raise DataError(f"{where}: found {reason}, expected an index of tar shards: {again}") from None
    if [name for name, _, _ in about["shards"]] != shards:
        raise DataError(
            f"{where}: found {len(about['shards'])} shards, expected the {len(shards)} tar files beside it: {again}"
        )
    sizes, places = sizes_and_places(folder, shards)
    for (name, then, when), now in zip(about["shards"], sizes, strict=True):
        changed = os.stat(os.path.join(folder, name)).st_mtime_ns
        # A copy of shards and index has other times. It is taken if the index was copied last.
        if then != now or (changed != when and changed > written):
            raise DataError(f"{where} is older than {shown(name)}, which was changed since: {again}")
    class_names = check_class_names(where, about["class_names"])
    names, ends, labels, file, offset, size = (arrays[name] for name in _ARRAYS)
    check_parts(where, sizes, file, offset, size, tar=True)
    check_labels(where, labels, len(class_names) or np.iinfo(np.int32).max)
    source = PackedSource.from_arrays(folder, shards, True, names, ends, labels, file, offset, size)
    return Packed(class_names, source, places)


def _read(path: str) -> tuple[dict, dict[str, np.ndarray]]:
    """What an index holds: its shards as (name, bytes, time of change), its class names, and its arrays.

    Raises:
        SafetensorError, FileError, ValueError, KeyError, TypeError: it is no index.
    """
    with safe_open(path, "numpy") as file:
        about = parse_json((file.metadata() or {})[ABOUT])
        arrays = {name: file.get_tensor(name) for name in _ARRAYS}
    if about["version"] != VERSION:
        raise ValueError(f"version {about['version']!r}")
    about["shards"] = [(shard["name"], shard["bytes"], shard["mtime_ns"]) for shard in about["shards"]]
    count = len(arrays["labels"])
    for name, dtype in _ARRAYS.items():
        array = arrays[name]
        length = {"names": len(array), "ends": count + 1}.get(name, count)
        if array.dtype != dtype or array.shape != (length,):
            raise ValueError(f"{name}: {array.dtype} {list(array.shape)}")
    ends = arrays["ends"]
    if ends[0] != 0 or ends[-1] != len(arrays["names"]) or np.any(ends[1:] < ends[:-1]):
        raise ValueError("names that do not end in order")
    return about, arrays
