"""A data set opened and checked: its classes, its splits and how its images are prepared."""

from dataclasses import dataclass

import numpy as np

from bignas_jax.data.folder import open_folder
from bignas_jax.data.packaged import TORCHVISION, open_digits, open_torchvision, stratified
from bignas_jax.data.sources import Source
from bignas_jax.data.transforms import Augmentation, Evaluation
from bignas_jax.errors import DataError

SOURCES = ("folder", "digits", *TORCHVISION)


@dataclass(frozen=True)
class Dataset:
    """What a `Loader` reads from; made by `open_dataset`."""

    class_names: tuple[str, ...]
    train: Source
    val: Source
    holdout_indices: np.ndarray  # int64, sorted, into `train`: set apart for search
    evaluation: Evaluation
    augmentation: Augmentation
    on_corrupt: str
    num_workers: int
    seed: int

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def splits(self) -> dict[str, int]:
        """Images in 'train' (without those held out), 'holdout' and 'val'."""
        held = len(self.holdout_indices)
        return {"train": len(self.train) - held, "holdout": held, "val": len(self.val)}

    def select(self, split: str) -> tuple[Source, np.ndarray]:
        """The source of a split and which of its images belong to it (int64, sorted)."""
        if split == "val":
            return self.val, np.arange(len(self.val))
        if split == "holdout":
            return self.train, self.holdout_indices
        keep = np.ones(len(self.train), bool)
        keep[self.holdout_indices] = False
        return self.train, np.flatnonzero(keep)


def open_dataset(config, seed: int = 0) -> Dataset:
    """The data set that `config` (the `data` part of a config) names; `seed` is what its loaders draw from.

    The images held out depend on neither: every run of a data set holds out the same ones, drawn from all
    classes in proportion.

    Raises:
        DataError: what is wrong with the data or its settings, and what to do.
    """
    if config.source not in SOURCES:
        raise DataError(f"config.data.source is {config.source!r}: expected one of {', '.join(SOURCES)}")
    if config.on_corrupt not in ("error", "skip"):
        raise DataError(f"config.data.on_corrupt is {config.on_corrupt!r}: expected 'error' or 'skip'")
    if config.num_workers < 0:
        raise DataError(
            f"config.data.num_workers is {config.num_workers}: expected 0 (in this process) or more"
        )
    evaluation = Evaluation(config.image_size, config.eval_resize)
    augment = config.augment
    augmentation = Augmentation(
        image_size=config.image_size,
        crop=augment.crop,
        crop_scale=tuple(augment.crop_scale),
        crop_ratio=tuple(augment.crop_ratio),
        padding=augment.padding,
        flip=augment.flip,
        policy=augment.policy,
        rand_ops=augment.rand_ops,
        rand_magnitude=augment.rand_magnitude,
        color_jitter=tuple(augment.color_jitter),
    )
    class_names, train, val = _open_source(config)
    if not 0 <= config.holdout < len(train):
        raise DataError(
            f"config.data.holdout is {config.holdout} of {len(train)} training images: expected 0 to "
            f"{len(train) - 1}, with enough left to train on"
        )
    return Dataset(
        class_names,
        train,
        val,
        stratified(train.labels, config.holdout),
        evaluation,
        augmentation,
        config.on_corrupt,
        config.num_workers,
        seed,
    )


def _open_source(config) -> tuple[tuple[str, ...], Source, Source]:
    if config.source == "folder":
        return open_folder(config.root, config.train_split, config.val_split)
    if config.source == "digits":
        return open_digits()
    return open_torchvision(config.source, config.root)
