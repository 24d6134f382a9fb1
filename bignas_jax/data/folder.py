"""Image folders: <root>/<split>/<class>/*, the layout of torchvision's ImageFolder and of ImageNet."""

import os
from concurrent.futures import ThreadPoolExecutor

from bignas_jax.data.decode import EXTENSIONS, is_image
from bignas_jax.data.sources import FileSource
from bignas_jax.errors import DataError

_LAYOUT = "expected <data.root>/<split>/<class>/<image>"


def open_folder(
    root: str, train_split: str, val_split: str
) -> tuple[tuple[str, ...], FileSource, FileSource]:
    """The class names (sorted), the training and the validation images of a folder.

    Raises:
        DataError: a folder is missing or empty, a class has no images, or the two splits differ in their
            classes.
    """
    train_classes, train = _scan(root, train_split, "train_split")
    val_classes, val = _scan(root, val_split, "val_split")
    if train_classes != val_classes:
        raise DataError(
            f"the classes of {os.path.join(root, train_split)} and {os.path.join(root, val_split)} differ: "
            f"only in the first {_some(set(train_classes) - set(val_classes))}, "
            f"only in the second {_some(set(val_classes) - set(train_classes))}"
        )
    return train_classes, train, val


def _scan(root: str, split: str, field: str) -> tuple[tuple[str, ...], FileSource]:
    folder = os.path.join(root, split)
    if not os.path.isdir(folder):
        raise DataError(f"no folder {folder}: {_LAYOUT}; set config.data.root and config.data.{field}")
    with os.scandir(folder) as entries:
        classes = tuple(sorted(e.name for e in entries if e.is_dir() and not e.name.startswith(".")))
    if not classes:
        raise DataError(
            f"no class folders in {folder}: {_LAYOUT}; set config.data.root and config.data.{field}"
        )
    # Listing waits for the file system, which is often remote. Several threads wait at the same time.
    with ThreadPoolExecutor(16) as pool:
        files = list(pool.map(lambda name: sorted(_images(os.path.join(folder, name), name)), classes))
    empty = [name for name, found in zip(classes, files, strict=True) if not found]
    if empty:
        raise DataError(
            f"no images ({' '.join(EXTENSIONS)}) in {len(empty)} of {len(classes)} class folders of "
            f"{folder}: {_some(empty)}; remove these folders or fill them"
        )
    labels = [label for label, found in enumerate(files) for _ in found]
    return classes, FileSource.from_names(folder, [name for found in files for name in found], labels)


def _images(folder: str, prefix: str) -> list[str]:
    """Image files in `folder` and below, each as prefix/name."""
    found = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if is_image(entry.name) and not entry.is_dir():
                found.append(f"{prefix}/{entry.name}")
            elif entry.is_dir() and not entry.name.startswith("."):
                found += _images(entry.path, f"{prefix}/{entry.name}")
    return found


def _some(names) -> str:
    names = sorted(names)
    return (
        ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "") if names else "none"
    )
