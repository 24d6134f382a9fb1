"""An opened and checked data set: its classes, its splits and the preparation of its images."""

from dataclasses import dataclass

import numpy as np

from bignas_jax.config.options import Data
from bignas_jax.data.folder import open_folder
from bignas_jax.data.packaged import TORCHVISION, open_digits, open_torchvision, stratified
from bignas_jax.data.sources import Source
from bignas_jax.data.transforms import Augmentation, CenterCrop
from bignas_jax.errors import DataError

SOURCES = ("folder", "digits", *TORCHVISION)


@dataclass(frozen=True)
class Dataset:
    """The data set that a `Loader` reads from; made by `open_dataset`."""

    class_names: tuple[str, ...]
    train: Source
    val: Source
    holdout_indices: np.ndarray  # int64, sorted, into `train`: set apart for search
    evaluation: CenterCrop
    augmentation: Augmentation
    on_corrupt: str
    num_workers: int
    seed: int

    @property
    def num_classes(self) -> int:
        """The number of classes."""
        return len(self.class_names)

    @property
    def splits(self) -> dict[str, int]:
        """Images in 'train' (without those held out), 'holdout' and 'val'."""
        held = len(self.holdout_indices)
        return {"train": len(self.train) - held, "holdout": held, "val": len(self.val)}

    def select(self, split: str) -> tuple[Source, np.ndarray]:
        """The source of a split, and the indices of the split's images in it (int64, sorted)."""
        if split == "val":
            return self.val, np.arange(len(self.val))
        if split == "holdout":
            return self.train, self.holdout_indices
        keep = np.ones(len(self.train), bool)
        keep[self.holdout_indices] = False
        return self.train, np.flatnonzero(keep)


def open_dataset(options: Data, seed: int = 0) -> Dataset:
    """Opens the data set that the options name.

    The held-out images are drawn from all classes in proportion. They do not depend on the seed: with the same
    `holdout`, every run on a data set holds out the same images.

    Args:
        options: the `data` options.
        seed: the seed of the data set's loaders.
    Raises:
        DataError: the data or its settings are wrong; the message says what to do.
    """
    if options.source not in SOURCES:
        raise DataError(f"config.data.source is {options.source!r}: expected one of {', '.join(SOURCES)}")
    evaluation = CenterCrop(options.image_size, options.eval_resize)
    augmentation = Augmentation(options.image_size, options.augment)
    class_names, train, val = _open_source(options)
    if not 0 <= options.holdout < len(train):
        raise DataError(
            f"config.data.holdout is {options.holdout} of {len(train)} training images: expected 0 to "
            f"{len(train) - 1}, with enough left to train on"
        )
    return Dataset(
        class_names,
        train,
        val,
        stratified(train.labels, options.holdout),
        evaluation,
        augmentation,
        options.on_corrupt,
        options.num_workers,
        seed,
    )


def _open_source(options: Data) -> tuple[tuple[str, ...], Source, Source]:
    if options.source == "folder":
        return open_folder(options.root, options.train_split, options.val_split)
    if options.source == "digits":
        return open_digits()
    return open_torchvision(options.source, options.root)
