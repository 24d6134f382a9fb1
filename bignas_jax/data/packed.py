"""Images that lie in larger files, tar shards or Arrow files: where each begins, and how long it is."""

import json
import os
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch

from bignas_jax.data.decode import Reduction, decode_reduced
from bignas_jax.data.sources import NamedSource
from bignas_jax.errors import DataError, FileError, UnreadableImage
from bignas_jax.files import check_regular
from bignas_jax.text import shown

MOST_CLASSES = 1_000_000
LARGEST_IMAGE = 1 << 30  # bytes of one image's file
BLOCK = 512  # bytes of a tar header, which stands before its member

Place = tuple[int, int]  # device and inode: two paths to one file have the same


class Packed(NamedTuple):
    """What a split holds.

    Attributes:
        class_names: in the order of the labels; nothing if only numbers are known.
        source: its images.
        places: the files that they lie in.
    """

    class_names: tuple[str, ...]
    source: NamedSource
    places: frozenset[Place]


class PackedSource(NamedSource):
    """Images in `files` below `root`, each read by one `pread`: no file is extracted, mapped or kept open.

    Args:
        root: the folder of the split.
        files: names of the larger files in it.
        tar: whether these are tar files. The header before each image is then held against the index.
        names, ends, labels: as `NamedSource` has them.
        file: int32 [N], the number of an image's file.
        offset: int64 [N], where it begins in it, in bytes.
        size: int64 [N], its bytes.
    """

    def __init__(self, root: str, files: tuple[str, ...], tar: bool, names, ends, labels, file, offset, size):
        super().__init__(root, names, ends, labels)
        self._files, self._tar = files, tar
        self._where = (file, offset, size)

    @classmethod
    def from_arrays(cls, root: str, files: Sequence[str], tar: bool, *arrays: np.ndarray) -> "PackedSource":
        """The source of the arrays names, ends, labels, file, offset and size, each copied."""
        return cls(root, tuple(files), tar, *(torch.from_numpy(np.array(array)) for array in arrays))

    def __reduce__(self):
        inside = (self.root, self._files, self._tar, *self._tensors, *self._where)
        return PackedSource, inside, {"max_pixels": self.max_pixels}

    @property
    def arrays(self) -> tuple[np.ndarray, ...]:
        """The arrays that identify the source: names and labels of its images, and how many bytes each has."""
        return *super().arrays, self._where[2].numpy()

    def load(self, i: int) -> np.ndarray:
        """Image `i`, uint8 [H, W, 3]. Raises CorruptImage and UnreadableImage."""
        return self.load_reduced(i, None)[0]

    def load_reduced(self, i: int, reduction: Reduction | None) -> tuple[np.ndarray, tuple[int, int]]:
        """Image `i`, perhaps reduced, and its full height and width: see `read_reduced`."""
        return decode_reduced(self._content(i), self.name(i), reduction, self.max_pixels)

    def _content(self, i: int) -> bytearray:
        """What the file of image `i` would hold.

        Raises:
            UnreadableImage: the larger file cannot be read, or not so far.
            DataError: the index does not fit the shard.
        """
        file, offset, size = (int(array.numpy()[i]) for array in self._where)
        path, before = os.path.join(self.root, self._files[file]), BLOCK if self._tar else 0
        content = bytearray(before + size)
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                found = _read_into(descriptor, content, offset - before)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise UnreadableImage(f"{shown(self.name(i))} cannot be read ({error.strerror or error})") from None
        if found < len(content):
            raise UnreadableImage(f"{shown(self.name(i))} cannot be read ({shown(self._files[file])} ends within it)")
        if self._tar and _size_of(content[:BLOCK]) != size:
            raise DataError(
                f"{shown(self.name(i))}: the index does not fit {shown(path)}, which was changed since: run "
                f"python -m bignas_jax index {shown(self.root)}"
            )
        return content[before:]


def _read_into(descriptor: int, content: bytearray, offset: int) -> int:
    """Fills `content` from `offset` on; how many bytes were found. One system call gives at most 2 GiB."""
    view, found = memoryview(content), 0
    while found < len(content) and (count := os.preadv(descriptor, [view[found:]], offset + found)):
        found += count
    return found


def _size_of(header: bytearray) -> int:
    """The size of a member by its tar header, in octal digits (POSIX ustar, bytes 124 to 136); -1 for anything else."""
    digits = bytes(header[124:136]).strip(b" \0")
    return int(digits, 8) if digits and not digits.strip(b"01234567") else -1


def check_parts(where: str, sizes: Sequence[int], file: np.ndarray, offset: np.ndarray, size: np.ndarray, tar: bool):
    """Refuses images that do not lie within their files.

    Args:
        where: the file that says where they lie, for the message.
        sizes: bytes of each of the larger files.
        file, offset, size: as `PackedSource` takes them.
        tar: whether a header must stand before each.
    Raises:
        DataError: one lies outside, or is larger than LARGEST_IMAGE.
    """
    if np.any((file < 0) | (file >= len(sizes))):
        raise DataError(f"{where}: found images in files that it does not name, expected {len(sizes)} files")
    limit = np.asarray(sizes, np.int64)[file]
    # No sum, which could overflow.
    wrong = (offset < (BLOCK if tar else 0)) | (size < 0) | (offset > limit) | (size > limit - offset)
    if np.any(wrong):
        first = int(np.argmax(wrong))
        raise DataError(
            f"{where}: found image {first} at byte {offset[first]:,} with {size[first]:,} bytes, expected it to lie "
            f"within the {limit[first]:,} bytes of its file"
        )
    if np.any(size > LARGEST_IMAGE):
        raise DataError(f"{where}: found an image of {size.max():,} bytes, expected at most {LARGEST_IMAGE:,}")


def check_labels(where: str, labels: np.ndarray, classes: int) -> None:
    """Refuses labels that are none of `classes` classes. Raises DataError, which begins with `where`."""
    wrong = np.flatnonzero((labels < 0) | (labels >= classes))
    if len(wrong):
        raise DataError(
            f"{where}: found the label {labels[wrong[0]]} of image {wrong[0]}, expected 0 to {classes - 1}, as there "
            f"are {classes:,} classes: mend the labels, or the names of the classes"
        )


def check_class_names(where: str, names: object) -> tuple[str, ...]:
    """The names of classes, if they can be such.

    Raises:
        DataError: they are no list of distinct texts, or one is empty, a path that leads elsewhere, or too long.
    """
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        raise DataError(f"{where}: found no list of texts, expected the names of the classes in order")
    if len(names) > MOST_CLASSES:
        raise DataError(f"{where}: found {len(names):,} classes, expected at most {MOST_CLASSES:,}")
    for name in names:
        if not name.strip() or len(name) > 1000 or "\0" in name:
            raise DataError(f"{where}: found the class {json.dumps(name[:40])}, expected 1 to 1000 characters")
        if name.startswith("/") or not {".", ".."}.isdisjoint(name.split("/")):
            raise DataError(f"{where}: found the class {json.dumps(name[:80])}, a path, expected a name: rename it")
    if len(set(names)) < len(names):
        twin = next(name for name in names if names.count(name) > 1)
        raise DataError(f"{where}: found the class {json.dumps(twin[:80])} twice, expected each once: rename one")
    return tuple(names)


def sizes_and_places(folder: str, files: Iterable[str]) -> tuple[list[int], frozenset[Place]]:
    """The bytes of each file in a folder, and which files they are.

    Raises:
        DataError: one is missing, or is no file.
    """
    sizes, places = [], []
    for name in files:
        path = os.path.join(folder, name)
        try:
            check_regular(path)
            status = os.stat(path)
        except FileError as error:
            raise DataError(f"{shown(path)}: {error}") from None
        except (OSError, ValueError) as error:  # ValueError: a null in the name
            reason = getattr(error, "strerror", None) or str(error)
            raise DataError(f"{shown(path)} cannot be read ({shown(reason)})") from None
        sizes.append(status.st_size)
        places.append((status.st_dev, status.st_ino))
    return sizes, frozenset(places)


def as_pair(train: Packed, val: Packed) -> tuple[tuple[str, ...], NamedSource, NamedSource]:
    """The names of the classes, and the images of the two splits, of a data set.

    Without names, classes are called by their numbers.

    Raises:
        DataError: the splits share files or differ in their classes, or a split has no images.
    """
    for split in (train, val):
        if not len(split.source):
            raise DataError(f"no images in {shown(split.source.root)}: set config.data.root and the splits")
    if train.places & val.places:
        raise DataError(
            f"config.data.val_split: {shown(val.source.root)} shares {len(train.places & val.places)} files with "
            f"{shown(train.source.root)}, expected images that are not trained on: set it to a split of its own"
        )
    if train.class_names != val.class_names:
        first = next(
            (pair for pair in zip(train.class_names, val.class_names, strict=False) if pair[0] != pair[1]), None
        )
        differ = f"such as {shown(first[0])} and {shown(first[1])}" if first else "in their number"
        raise DataError(
            f"the classes of {shown(train.source.root)} ({len(train.class_names)}) and {shown(val.source.root)} "
            f"({len(val.class_names)}) differ, {differ}: give both the same names in the same order"
        )
    names = train.class_names
    if not names:
        names = tuple(map(str, range(1 + max(int(split.source.labels.max()) for split in (train, val)))))
    return names, train.source, val.source
