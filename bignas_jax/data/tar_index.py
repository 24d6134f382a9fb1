"""The index of a folder of tar shards: which images they hold, where each begins, and its label.

A shard holds key.jpg (or another image) and its label in key.cls, or as "label" or "cls" in key.json, as WebDataset
(github.com/webdataset/webdataset) lays them out. A key is a path up to the first dot of its last part. A label is a
number from 0 on, or the name of a class. Names of classes stand in classes.txt (one a line) or classes.json (a list),
beside the shards or one folder above.

The index is a safetensors file in the folder. It holds plain arrays, so reading it runs nothing.
"""

import collections
import dataclasses
import json
import os
import pathlib
import tarfile
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import safetensors.numpy

from bignas_jax.data.decode import EXTENSIONS
from bignas_jax.data.packed import BLOCK, LARGEST_IMAGE, MOST_CLASSES, check_class_names, check_labels
from bignas_jax.data.sources import joined_names
from bignas_jax.errors import DataError, FileError
from bignas_jax.files import check_regular, parse_json, read_json, read_text, write_bytes
from bignas_jax.text import shown

INDEX = "index.safetensors"
ABOUT = "bignas_jax"  # the entry of its metadata
VERSION = 1

_LARGEST_LABEL = 1 << 20  # bytes of key.cls and key.json
_LABELS = ("cls", "json")  # in this order, if a key has both


@dataclasses.dataclass
class Sample:
    """What the files of one key say: its image's name, offset and size, and its label by suffix."""

    name: str = ""
    offset: int = 0
    size: int = 0
    labels: dict[str, int | str] = dataclasses.field(default_factory=dict)


class Indexed(NamedTuple):
    """What an index was made of: images, classes (0 if they have no names), shards, and other files by suffix."""

    path: pathlib.Path
    images: int
    classes: int
    shards: int
    passed_over: collections.Counter


def shards_in(folder: str) -> list[str]:
    """The names of the tar files in a folder, sorted. Raises DataError if it cannot be listed."""
    try:
        return sorted(name for name in os.listdir(folder) if name.endswith(".tar") and not name.startswith("."))
    except OSError as error:
        raise DataError(f"{shown(folder)}: found {error.strerror}, expected a folder of tar files") from None


def index_folder(folder: str) -> list[Indexed]:
    """Writes the index of the shards in a folder, or of those in each of its folders.

    Raises:
        DataError: there are no shards, one cannot be read to its end, an image has no label, or the like.
        OSError: an index cannot be written.
    """
    if shards_in(folder):
        return [_index(folder)]
    below = [os.path.join(folder, name) for name in sorted(os.listdir(folder)) if not name.startswith(".")]
    found = [_index(path) for path in below if os.path.isdir(path) and shards_in(path)]
    if not found:
        raise DataError(f"no tar files in {shown(folder)} or in a folder of it: expected <split>/<shard>.tar")
    return found


def _index(folder: str) -> Indexed:
    shards, passed_over = shards_in(folder), collections.Counter()
    names, rows, labels, about = [], [], [], []
    for number, shard in enumerate(shards):
        path = os.path.join(folder, shard)
        for sample in read_shard(path, passed_over):
            names.append(f"{shard}/{sample.name}")
            rows.append((number, sample.offset, sample.size))
            labels.append(next(sample.labels[kind] for kind in _LABELS if kind in sample.labels))
        status = os.stat(path)
        about.append({"name": shard, "bytes": status.st_size, "mtime_ns": status.st_mtime_ns})
    if not names:
        raise DataError(f"no images ({' '.join(EXTENSIONS)}) in the {len(shards)} tar files of {shown(folder)}")
    class_names, numbers = _numbered(folder, names, labels)
    joined, ends = joined_names(names)
    file, offset, size = np.array(rows, np.int64).T
    arrays = dict(names=joined, ends=ends, labels=numbers, file=file.astype(np.int32), offset=offset, size=size)
    text = json.dumps({"version": VERSION, "shards": about, "class_names": class_names})
    path = pathlib.Path(folder, INDEX)
    arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    write_bytes(path, safetensors.numpy.save(arrays, {ABOUT: text}))
    return Indexed(path, len(names), len(class_names), len(shards), passed_over)


def read_shard(path: str, passed_over: collections.Counter) -> list[Sample]:
    """The labelled images of a tar file, in its order.

    Args:
        path: the tar file, not compressed.
        passed_over: other files are counted in it, by suffix.
    Raises:
        DataError: the file is damaged or cut off, an image has no label or a key has two images.
    """
    where, samples = shown(path), {}
    try:
        check_regular(path)
        with tarfile.open(path, "r:") as tar:
            for member in _members(tar):
                _take(where, tar, member, samples, passed_over)
            # tarfile takes a damaged header, and the end of a cut file, for the end of the archive.
            tar.fileobj.seek(tar.offset)
            if tar.fileobj.read(BLOCK).count(0) < BLOCK:
                raise DataError(f"{where} is damaged or cut off: found no end of the archive at byte {tar.offset:,}")
    except DataError:
        raise
    except FileError as error:
        raise DataError(f"{where}: {error}") from None
    except (tarfile.TarError, OSError, EOFError, ValueError, RecursionError, MemoryError, OverflowError) as error:
        reason = shown(getattr(error, "strerror", None) or str(error) or type(error).__name__)
        raise DataError(f"{where}: found {reason}, expected a whole tar file without compression") from None
    for key, sample in samples.items():
        if sample.name and not sample.labels:
            raise DataError(f"{where}: found {shown(sample.name)} without a label, expected {shown(key)}.cls or .json")
    passed_over["labels without an image"] += sum(not sample.name for sample in samples.values())
    return [sample for sample in samples.values() if sample.name]


def _members(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    while (member := tar.next()) is not None:
        tar.members.clear()  # it would keep all
        if member.isreg() and not member.issparse():
            yield member


def _take(where: str, tar: tarfile.TarFile, member: tarfile.TarInfo, samples: dict, passed_over) -> None:
    """Enters a member into the sample of its key."""
    folder, base = os.path.split(member.name)
    stem, dot, suffix = base.partition(".")
    suffix, key = suffix.lower(), os.path.join(folder, stem)
    is_image = dot + suffix in EXTENSIONS
    if not stem or not (is_image or suffix in _LABELS):
        passed_over[dot + suffix or "no suffix"] += 1
        return
    named, sample = f"{where}: {shown(member.name)}", samples.setdefault(key, Sample())
    if is_image:
        if sample.name:
            raise DataError(f"{named} and {shown(sample.name)} have one key, expected one image for each")
        if member.size > LARGEST_IMAGE:
            raise DataError(f"{named} has {member.size:,} bytes, expected at most {LARGEST_IMAGE:,}")
        sample.name, sample.offset, sample.size = member.name, member.offset_data, member.size
        return
    if suffix in sample.labels:
        raise DataError(f"{named} is there twice, expected one label for each key")
    if member.size > _LARGEST_LABEL:
        raise DataError(f"{named} has {member.size:,} bytes, expected a label of at most {_LARGEST_LABEL:,}")
    content = tar.extractfile(member).read()
    label = _from_json(named, content) if suffix == "json" else _from_text(named, content)
    if label is not None:
        sample.labels[suffix] = label


def _from_text(named: str, content: bytes) -> int | str:
    """The label in key.cls: a number, or the name of a class."""
    try:
        text = content.decode("utf-8").strip()
    except UnicodeDecodeError:
        text = ""
    if not text:
        raise DataError(f"{named} holds no text, expected the number or the name of a class")
    digits = text.removeprefix("-")
    return _number(named, int(text)) if digits.isascii() and digits.isdigit() and len(digits) < 19 else text


def _from_json(named: str, content: bytes) -> int | str | None:
    """The label in key.json; None if it holds none."""
    try:
        value: Any = parse_json(content)
    except (FileError, UnicodeDecodeError) as error:
        raise DataError(f"{named}: {shown(str(error))}, expected an object with the entry label") from None
    value = value.get("label", value.get("cls")) if isinstance(value, dict) else None
    if isinstance(value, int) and not isinstance(value, bool):
        return _number(named, value)
    if value is not None and not isinstance(value, str):
        raise DataError(f"{named}: found a label of type {type(value).__name__}, expected a whole number or a name")
    return value


def _number(named: str, value: int) -> int:
    if not 0 <= value < MOST_CLASSES:
        raise DataError(f"{named} holds the label {value}, expected 0 to {MOST_CLASSES - 1}")
    return value


def _numbered(folder: str, names: list[str], labels: list[int | str]) -> tuple[tuple[str, ...], np.ndarray]:
    """The names of the classes (none if only numbers are known), and every image's number, int32 [N]."""
    where, class_names = _classes_beside(folder)
    texts = {label for label in labels if isinstance(label, str)}
    if not class_names and texts:
        where = shown(folder)
        class_names = check_class_names(where, sorted(texts))
        if any(isinstance(label, int) for label in labels):
            raise DataError(f"{where}: found labels that are numbers and names, expected classes.txt with all names")
    known = {name: number for number, name in enumerate(class_names)}
    unknown = next((i for i, label in enumerate(labels) if isinstance(label, str) and label not in known), None)
    if unknown is not None:
        raise DataError(
            f"{shown(os.path.join(folder, names[unknown]))}: found the class {shown(labels[unknown][:80])}, "
            f"expected one of the {len(class_names)} in {where}"
        )
    numbers = np.array([known[label] if isinstance(label, str) else label for label in labels], np.int32)
    if class_names:
        check_labels(where, numbers, len(class_names))
    return class_names, numbers


def _classes_beside(folder: str) -> tuple[str, tuple[str, ...]]:
    """The file that names the classes, and the names; nothing if there is none."""
    for above in (folder, os.path.dirname(os.path.abspath(folder))):
        for name in ("classes.txt", "classes.json"):
            path = os.path.join(above, name)
            if not os.path.lexists(path):
                continue
            try:
                found = read_text(path).splitlines() if name.endswith(".txt") else read_json(path)
            except FileError as error:
                raise DataError(f"{shown(path)}: {error}") from None
            except OSError as error:
                raise DataError(f"{shown(path)} cannot be read ({error.strerror})") from None
            return shown(path), check_class_names(shown(path), found)
    return "", ()
