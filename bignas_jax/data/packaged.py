"""Packaged data sets: scikit-learn's digits, and torchvision's data sets that are on disk."""

import importlib.util
import os
from dataclasses import dataclass

import numpy as np

from bignas_jax.data import draws
from bignas_jax.data.sources import ArraySource, FileSource, Source
from bignas_jax.errors import DataError

Opened = tuple[tuple[str, ...], Source, Source]  # class names, training images, validation images


@dataclass(frozen=True)
class Packaged:
    """How torchvision opens a data set: its class, the arguments of the two splits, and its files under root."""

    constructor: str
    train: dict
    val: dict
    layout: str


TORCHVISION = {
    "cifar10": Packaged("CIFAR10", {"train": True}, {"train": False}, "cifar-10-batches-py/"),
    "cifar100": Packaged("CIFAR100", {"train": True}, {"train": False}, "cifar-100-python/"),
    "mnist": Packaged("MNIST", {"train": True}, {"train": False}, "MNIST/raw/"),
    "fashion_mnist": Packaged("FashionMNIST", {"train": True}, {"train": False}, "FashionMNIST/raw/"),
    "kmnist": Packaged("KMNIST", {"train": True}, {"train": False}, "KMNIST/raw/"),
    "svhn": Packaged("SVHN", {"split": "train"}, {"split": "test"}, "train_32x32.mat and test_32x32.mat"),
    "stl10": Packaged("STL10", {"split": "train"}, {"split": "test"}, "stl10_binary/"),
    "flowers102": Packaged("Flowers102", {"split": "train"}, {"split": "test"}, "flowers-102/"),
    "oxford_iiit_pet": Packaged(
        "OxfordIIITPet", {"split": "trainval"}, {"split": "test"}, "oxford-iiit-pet/"
    ),
    "food101": Packaged("Food101", {"split": "train"}, {"split": "test"}, "food-101/"),
    "dtd": Packaged("DTD", {"split": "train"}, {"split": "val"}, "dtd/"),
    "fgvc_aircraft": Packaged(
        "FGVCAircraft", {"split": "trainval"}, {"split": "test"}, "fgvc-aircraft-2013b/"
    ),
}


def open_torchvision(name: str, root: str) -> Opened:
    """A torchvision data set that is on disk already; nothing is downloaded.

    Raises:
        DataError: torchvision does not find it under `root`.
    """
    import torchvision.datasets

    entry = TORCHVISION[name]
    constructor = getattr(torchvision.datasets, entry.constructor)
    try:
        train, val = (
            constructor(root, download=False, **arguments) for arguments in (entry.train, entry.val)
        )
    except (RuntimeError, OSError) as error:
        raise DataError(
            f"no {name} in {os.path.abspath(root)} ({str(error).splitlines()[0]}): expected {entry.layout} "
            f"there, as torchvision.datasets.{entry.constructor} stores it; set config.data.root, or "
            "config.data.source='folder' for a folder of images"
        ) from None
    val_source = _source(name, val)
    train_source = _source(name, train)
    classes = getattr(train, "classes", None) or range(int(train_source.labels.max()) + 1)
    return tuple(map(str, classes)), train_source, val_source


def _source(name: str, dataset) -> Source:
    """The images of a torchvision data set: from its array if it has one, otherwise from its list of files."""
    labels = next(
        getattr(dataset, field) for field in ("targets", "labels", "_labels") if hasattr(dataset, field)
    )
    if not hasattr(dataset, "data"):
        files = dataset._images if hasattr(dataset, "_images") else dataset._image_files
        root = os.path.abspath(dataset.root)
        return FileSource.from_names(
            root, [os.path.relpath(os.path.abspath(file), root) for file in files], labels
        )
    images = np.asarray(dataset.data)
    if images.ndim == 3:
        images = images[..., None]
    elif images.shape[-1] != 3:  # SVHN and STL-10 keep channels first
        images = images.transpose(0, 2, 3, 1)
    return ArraySource.from_numpy(name, images, labels)


def open_digits() -> Opened:
    """scikit-learn's 1,797 handwritten digits (8x8), a fifth of every class for validation."""
    levels, labels = _digits()
    images = np.rint(levels * (255 / 16)).astype(np.uint8)[..., None]
    val = stratified(labels, len(images) // 5)
    train = np.setdiff1d(np.arange(len(images)), val)
    split = [
        ArraySource.from_numpy(f"digits, {part}", images[rows], labels[rows])
        for part, rows in (("train", train), ("val", val))
    ]
    return tuple(map(str, range(10))), *split


def _digits() -> tuple[np.ndarray, np.ndarray]:
    """The digits in 17 levels, [N, 8, 8], and their labels, [N].

    From scikit-learn's file, where it lies as ever: to import scikit-learn takes longer than to import JAX.
    """
    package = importlib.util.find_spec("sklearn")
    for folder in (package and package.submodule_search_locations) or ():
        path = os.path.join(folder, "datasets", "data", "digits.csv.gz")
        if os.path.isfile(path):
            rows = np.loadtxt(path, delimiter=",")
            return rows[:, :-1].reshape(-1, 8, 8), rows[:, -1].astype(np.int64)
    from sklearn.datasets import load_digits

    digits = load_digits()
    return digits.images, digits.target


def stratified(labels: np.ndarray, count: int) -> np.ndarray:
    """Sorted indices, int64 [count], drawn from all classes in proportion (by largest remainders).

    Every class keeps at least one image that is not drawn, if `count` leaves so many: the share of a class that would
    keep none goes to the others. The indices depend on the arguments alone, so that a data set holds out the same
    images in every run.
    """
    classes, sizes = np.unique(labels, return_counts=True)
    shares = sizes * (count / len(labels))
    quota = np.floor(shares).astype(np.int64)
    by_remainder = np.argsort(quota - shares, kind="stable")
    quota[by_remainder[: count - quota.sum()]] += 1
    most = sizes - 1 if count <= len(labels) - len(classes) else sizes
    quota = np.minimum(quota, most)
    while (missing := count - quota.sum()) > 0:
        by_remainder = np.argsort(quota - shares, kind="stable")
        with_room = by_remainder[(quota < most)[by_remainder]]
        quota[with_room[:missing]] += 1

    order = draws.permutation(draws.key(draws.HOLDOUT), len(labels))
    by_class = order[
        np.argsort(np.asarray(labels)[order], kind="stable")
    ]  # grouped by class, shuffled within
    starts = np.cumsum(sizes) - sizes
    chosen = [by_class[start : start + take] for start, take in zip(starts, quota, strict=True)]
    return np.sort(np.concatenate(chosen)) if len(classes) else np.zeros(0, np.int64)
