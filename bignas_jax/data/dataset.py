"""An opened and checked data set: its classes, its splits and the preparation of its images."""

import sys
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from bignas_jax.config.options import Data
from bignas_jax.data.arrow import open_saved
from bignas_jax.data.folder import open_folder
from bignas_jax.data.packaged import TORCHVISION, open_digits, open_torchvision, stratified
from bignas_jax.data.shards import open_shards
from bignas_jax.data.sources import Source
from bignas_jax.data.transforms import Augmentation, CenterCrop
from bignas_jax.errors import DataError
from bignas_jax.text import shown

SOURCES = ("folder", "tar", "arrow", "digits", *TORCHVISION)


class Images(NamedTuple):
    """All images of a data set; made by `open_images`."""

    class_names: tuple[str, ...]
    train: Source
    val: Source


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


def open_images(options: Data, tell: bool = True) -> Images:
    """The images that the `data` options name.

    Args:
        tell: whether files that were passed over are counted on stderr.
    Raises:
        DataError: what is wrong with the data, and what to do.
    """
    if options.source == "folder":
        found = Images(*open_folder(options.root, options.train_split, options.val_split, tell))
    elif options.source == "tar":
        found = Images(*open_shards(options.root, options.train_split, options.val_split))
    elif options.source == "arrow":
        splits = options.train_split, options.val_split
        found = Images(*open_saved(options.root, *splits, options.image_column, options.label_column))
    elif options.source == "digits":
        found = Images(*open_digits())
    elif options.source in TORCHVISION:
        found = Images(*open_torchvision(options.source, options.root))
    else:
        raise DataError(f"config.data.source is {options.source!r}: expected one of {', '.join(SOURCES)}")
    for source in (found.train, found.val):
        source.max_pixels = options.max_pixels
    return found


def most_held_out(train: Source) -> int:
    """How many training images can be held out if every class keeps one to train on."""
    return max(0, len(train) - len(np.unique(train.labels)))


def open_dataset(options: Data, seed: int = 0, images: Images | None = None) -> Dataset:
    """Opens the data set that the options name.

    The held-out images are drawn from all classes in proportion. They do not depend on the seed: with the same
    `holdout`, every run on a data set holds out the same images. Every class keeps at least one image to train on, if
    there are enough. Otherwise the classes that keep none are named on stderr (a run's session refuses such a number).

    Args:
        options: the `data` options.
        seed: the seed of the data set's loaders.
        images: from `open_images` with the same options; None opens them.
    Raises:
        DataError: the data or its settings are wrong; the message says what to do.
    """
    evaluation = CenterCrop(options.image_size, options.eval_resize)
    augmentation = Augmentation(options.image_size, options.augment)
    class_names, train, val = images or open_images(options)
    if not 0 <= options.holdout < len(train):
        raise DataError(
            f"config.data.holdout: found {options.holdout} of {len(train)} training images in {len(class_names)} "
            f"classes, expected 0 to {most_held_out(train)}, so that every class keeps one to train on"
        )
    held_out = stratified(train.labels, options.holdout)
    if options.holdout > most_held_out(train):
        emptied = np.setdiff1d(train.labels, np.delete(train.labels, held_out))
        names = ", ".join(shown(class_names[label]) for label in emptied)
        print(f"config.data.holdout={options.holdout} leaves no image to train on of: {names}", file=sys.stderr)
    return Dataset(
        class_names,
        train,
        val,
        held_out,
        evaluation,
        augmentation,
        options.on_corrupt,
        options.num_workers,
        seed,
    )
