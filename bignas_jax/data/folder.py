"""Image folders: <root>/<split>/<class>/*, the layout of torchvision's ImageFolder and of ImageNet."""

import collections
import dataclasses
import os
import sys
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

from bignas_jax.data.decode import EXTENSIONS, is_image
from bignas_jax.data.sources import FileSource
from bignas_jax.errors import DataError
from bignas_jax.text import shown

_LAYOUT = "expected <data.root>/<split>/<class>/<image>"
_SHOWN = 5  # names, or suffixes, that a message lists

Place = tuple[int, int]  # device and inode: two paths to one folder have the same


def open_folder(
    root: str, train_split: str, val_split: str, tell: bool = True
) -> tuple[tuple[str, ...], FileSource, FileSource]:
    """The class names (sorted), the training and the validation images of a folder.

    Args:
        tell: whether files that were passed over are counted on stderr, in one line for each split.
    Raises:
        DataError: a folder is missing, empty or cannot be listed, a class has no images, a name leads to no file, the
            two splits differ in their classes, or share images.
    """
    train, val = _scan(root, train_split, "train_split"), _scan(root, val_split, "val_split")
    shared = train.places & val.places
    if shared:
        raise DataError(
            f"config.data.val_split: found {val_split!r}, which shares {len(shared)} folders with config.data."
            f"train_split={train_split!r}, expected images that are not trained on: set it to a split of its own"
        )
    if train.classes != val.classes:
        only_train, only_val = set(train.classes) - set(val.classes), set(val.classes) - set(train.classes)
        raise DataError(
            f"the classes of {shown(train.folder)} and {shown(val.folder)} differ: "
            f"only in the first {_some(only_train)}, only in the second {_some(only_val)}"
            + (f": {alike}" if (alike := _look_alike(only_train, only_val)) else "")
        )
    if tell:
        if alike := _look_alike(train.classes, train.classes):
            print(f"{shown(train.folder)}: the class folders {alike}, and are two classes", file=sys.stderr)
        for split in (train, val):
            split.tell_passed_over()
    return train.classes, train.source(), val.source()


@dataclasses.dataclass
class _Found:
    """What lies in a folder.

    Attributes:
        images: their paths below the folder of the split.
        passed_over: counts of other files, by suffix.
        nowhere: names of images that lead to no file, such as broken links.
        places: the folders that were listed.
    """

    images: list[str] = dataclasses.field(default_factory=list)
    passed_over: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    nowhere: list[str] = dataclasses.field(default_factory=list)
    places: set[Place] = dataclasses.field(default_factory=set)


@dataclasses.dataclass(frozen=True)
class _Split:
    """A split as it was found: its classes, what each holds, and the files outside of their folders by suffix."""

    folder: str
    classes: tuple[str, ...]
    found: list[_Found]
    outside: collections.Counter

    @property
    def places(self) -> set[Place]:
        return {_place(self.folder)}.union(*(one.places for one in self.found))

    def source(self, labels: Sequence[int] | None = None) -> FileSource:
        """Its images; `labels` of the classes are their numbers by default."""
        labels = range(len(self.classes)) if labels is None else labels
        labels = [label for label, one in zip(labels, self.found, strict=True) for _ in one.images]
        return FileSource.from_names(self.folder, [name for one in self.found for name in one.images], labels)

    def tell_passed_over(self) -> None:
        inside = sum((one.passed_over for one in self.found), collections.Counter())
        counts = [f"{_by_suffix(inside)} (no suffix of an image)"] if inside else []
        counts += [f"{_by_suffix(self.outside)} outside the class folders"] if self.outside else []
        if counts:
            total = inside.total() + self.outside.total()
            files = "1 file" if total == 1 else f"{total} files"
            print(f"{shown(self.folder)}: {files} passed over: {'; '.join(counts)}", file=sys.stderr)


def open_labelled(folder: str, class_names: Sequence[str]) -> FileSource:
    """The images of <folder>/<class>/*, with the labels of known classes. Not all of these need a folder.

    Raises:
        DataError: as `open_folder` raises, or a folder in it is none of the classes.
    """
    split = _scan_folder(folder, "expected <folder>/<class>/<image>")
    labels = {name: label for label, name in enumerate(class_names)}
    unknown = [name for name in split.classes if name not in labels]
    if unknown:
        raise DataError(
            f"{shown(folder)}: found class folders that are none of the run's {len(class_names)} classes: "
            f"{_some(unknown)}; expected names such as {_some(class_names)}"
        )
    split.tell_passed_over()
    return split.source([labels[name] for name in split.classes])


def _scan(root: str, split: str, field: str) -> _Split:
    advice = f"{_LAYOUT}; set config.data.root and config.data.{field}"
    return _scan_folder(os.path.join(root, split), advice)


def _scan_folder(folder: str, set_fields: str) -> _Split:
    if not os.path.isdir(folder):
        raise DataError(f"no folder {shown(folder)}: {set_fields}")
    entries = _entries(folder)
    classes = tuple(sorted(e.name for e in entries if _leads_to(e.is_dir)))
    outside = collections.Counter(_suffix(e.name) for e in entries if not _leads_to(e.is_dir))
    if not classes:
        files = f" but {outside.total()} files ({_by_suffix(outside)})" if outside else ""
        raise DataError(f"no class folders in {shown(folder)}{files}: {set_fields}")
    # Listing waits for the file system, which is often remote. Several threads wait at the same time.
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda name: _images(os.path.join(folder, name), name), classes))
    nowhere = [name for one in found for name in one.nowhere]
    if nowhere:
        raise DataError(
            f"names of images in {shown(folder)} that lead to no file: {len(nowhere)} ({_some(nowhere)}): "
            "mend these links, or remove them"
        )
    empty = [name for name, one in zip(classes, found, strict=True) if not one.images]
    if empty:
        others = sum((one.passed_over for one in found if not one.images), collections.Counter())
        raise DataError(
            f"no images ({' '.join(EXTENSIONS)}) in {len(empty)} of {len(classes)} class folders of "
            f"{shown(folder)}: {_some(empty)}{f', but {_by_suffix(others)}' if others else ''}; "
            "remove these folders or fill them"
        )
    return _Split(folder, classes, found, outside)


def _images(folder: str, prefix: str) -> _Found:
    """What lies in `folder` and below. The images stand in order, each as prefix/name."""
    found = _Found()
    _collect(folder, prefix, (), found)
    found.images.sort()
    return found


def _collect(folder: str, prefix: str, above: tuple[Place, ...], found: _Found) -> None:
    place = _place(folder)
    if place in above:
        raise DataError(f"{shown(folder)} is a link to a folder that it lies in: remove the link")
    found.places.add(place)
    for entry in _entries(folder):
        name = f"{prefix}/{entry.name}"
        if _leads_to(entry.is_dir):
            _collect(entry.path, name, (*above, place), found)
        elif not is_image(entry.name):
            found.passed_over[_suffix(entry.name)] += 1
        elif _leads_to(entry.is_file):
            found.images.append(name)
        else:
            found.nowhere.append(name)


def _entries(folder: str) -> list[os.DirEntry]:
    """What a folder holds, without the names that begin with a dot."""
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        raise DataError(f"{shown(folder)}: found {error.strerror}, expected a folder that can be listed") from None


def _leads_to(kind: Callable[[], bool]) -> bool:
    """`DirEntry.is_dir` or `is_file`, False also of a link that leads in circles or where the user may not look."""
    try:
        return kind()
    except OSError:
        return False


def _place(folder: str) -> Place:
    try:
        status = os.stat(folder)
    except OSError as error:
        raise DataError(f"{shown(folder)}: found {error.strerror}, expected a folder that can be listed") from None
    return status.st_dev, status.st_ino


def _suffix(name: str) -> str:
    """What a file's name ends with, lower-case: '.txt', or '.jpg.1' where a suffix of images stands before the last."""
    stem, last = os.path.splitext(name.lower())
    before = os.path.splitext(stem)[1]
    return (before if before in EXTENSIONS else "") + last or "no suffix"


def _by_suffix(counts: collections.Counter) -> str:
    listed = [f"{count} {shown(suffix)}" for suffix, count in counts.most_common(_SHOWN)]
    rest = counts.total() - sum(count for _, count in counts.most_common(_SHOWN))
    return ", ".join(listed) + (f" and {rest} others" if rest else "")


def _look_alike(first: Iterable[str], second: Iterable[str]) -> str:
    """A name of each that people read as the same, and in what they differ; nothing if there are no such names."""
    seconds = {_plain(name): name for name in second}
    for name in sorted(first):
        other = seconds.get(_plain(name), name)
        if other != name:
            in_form = unicodedata.normalize("NFC", name) == unicodedata.normalize("NFC", other)
            return f"{ascii(name)} and {ascii(other)} differ in {'the form of accents' if in_form else 'case'} only"
    return ""


def _plain(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _some(names: Iterable[str]) -> str:
    names = sorted(names)
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(map(shown, names[:_SHOWN])) + more if names else "none"
