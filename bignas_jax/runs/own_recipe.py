"""A recipe for a folder of images: the network follows from their sizes, and all numbers from how many there are."""

import dataclasses
import os
import pathlib
import shlex
from typing import Any

import numpy as np

from bignas_jax.config import fields
from bignas_jax.config.options import Options
from bignas_jax.config.recipes import load_recipe
from bignas_jax.data.dataset import Images, open_images
from bignas_jax.errors import ConfigError, CorruptImage, DataError, UnreadableImage
from bignas_jax.runs.sizes import fitting

SMALL_SIDE = 48  # pixels; images up to this short side go through configs/cifar10.py as they are
MANY = 20_000  # training images from which a big network has enough to learn from
MEASURED = 64  # images whose size is looked at
STEPS = 1000  # of a training at least
MOST_EPOCHS = 200
TRAIN = ("train", "training")
VAL = ("val", "valid", "validation", "test", "testing")


@dataclasses.dataclass(frozen=True)
class OwnRecipe:
    """A recipe that fits a folder.

    Attributes:
      base: the recipe that it begins with, such as 'cifar10'.
      changes: the values that it sets, by dotted name.
      about: in one line, what was found and what follows from it.
    """

    base: str
    changes: dict[str, Any]
    about: str

    def text(self, path: str) -> str:
        """The recipe's file. `path` is its own, for the command at its head."""
        lines = [f"    config.{name} = {value!r}" for name, value in self.changes.items()]
        command = shlex.quote(path).replace("\\", "/").replace('"', "'")  # a docstring ends at no quote in a name
        head = [f'"""{self.about}.', "", f"    python -m bignas_jax train --config {command}", '"""']
        body = ["", f"from configs import {self.base}", "", "", "def get_config():",
                f"    config = {self.base}.get_config()", *lines, "    return config", ""]  # fmt: skip
        return "\n".join([*head, *body])


def own_recipe(root: str | os.PathLike, devices: int) -> OwnRecipe:
    """A recipe for the images in <root>/<split>/<class>/*.

    Args:
      root: the folder, with a split to train on (`TRAIN`) and one for the last figure (`VAL`).
      devices: that a batch must divide over.
    Raises:
      ConfigError: the folder has no such splits, or too few images.
      DataError: the splits hold no images, or differ in their classes.
    """
    root = pathlib.Path(root)
    if not root.is_dir():
        raise ConfigError(f"ROOT: found no folder {root}, expected one with train/<class>/* and val/<class>/*")
    train, val = _split(root, TRAIN), _split(root, VAL)
    place = {"data.source": "folder", "data.root": str(root.resolve()), "data.train_split": train,
             "data.val_split": val}  # fmt: skip
    images = open_images(_options("cifar10", place).data)
    side, total = _short_side(images), len(images.train)
    base, network, why = _network(side, total)
    changes = place | {"model.num_classes": len(images.class_names)} | network
    fits = fitting(_options(base, changes), images, devices)
    batch, held_out = fits.batch_size, fits.data.holdout
    steps = (total - held_out) // batch
    epochs = max(fits.epochs, min(MOST_EPOCHS, -(-STEPS // steps)))
    changes |= {
        "data.holdout": held_out,
        "batch_size": batch,
        "epochs": epochs,
        "evaluation.every_epochs": max(fits.evaluation.every_epochs, float(epochs // 20)),
        "calibration.num_images": fits.calibration.num_images,
        "calibration.batch_size": fits.calibration.batch_size,
        "search.calibration_images": fits.search.calibration_images,
        "optimizer.learning_rate": fits.optimizer.learning_rate,
    }
    about = (
        f"{total:,} training images in {len(images.class_names)} classes, {side} pixels high or wide: {why}; "
        f"{held_out} held out, batches of {batch}, {epochs} epochs of {steps} steps, "
        f"{fits.calibration.num_images} images to calibrate on"
    )
    _options(base, changes)  # what is written is valid
    return OwnRecipe(base, changes, about)


def _split(root: pathlib.Path, names: tuple[str, ...]) -> str:
    there = [name for name in names if (root / name).is_dir()]
    if not there:
        folders = sorted(path.name for path in root.iterdir() if path.is_dir())
        found = ", ".join(folders[:5]) + (", ..." if len(folders) > 5 else "") or "no folders"
        raise ConfigError(
            f"ROOT: found {found} in {root}, expected a folder {names[0]} (or {', '.join(names[1:])}) with a folder "
            "for each class; move a part of each class there"
        )
    return there[0]


def _short_side(images: Images) -> int:
    """The median short side of some of the training images, in pixels."""
    sides = []
    for index in np.unique(np.linspace(0, len(images.train) - 1, MEASURED).round().astype(int)):
        try:
            sides.append(min(images.train.load(int(index)).shape[:2]))
        except (CorruptImage, UnreadableImage):
            continue
    if not sides:
        raise DataError(f"found none of {MEASURED} training images that can be decoded, expected images")
    return int(np.median(sides))


def _network(side: int, total: int) -> tuple[str, dict[str, Any], str]:
    """The recipe to begin with, what it changes in the network and its images, and why in words."""
    augment = {"data.augment.crop": "resized", "data.augment.crop_scale": (0.25, 1.0)}
    if side <= SMALL_SIDE:
        return "cifar10", {}, "the small network of configs/cifar10.py at 24 to 32 pixels"
    if total < MANY:
        # Twice the stride and the side of configs/cifar10.py, and more: its maps stay as large.
        sizes = {"space.resolution": (64, 80, 96), "space.stem_stride": 2, "data.image_size": 96,
                 "data.eval_resize": 108}  # fmt: skip
        return "cifar10", sizes | augment, "the small network of configs/cifar10.py at 64 to 96 pixels"
    return "bignas", {}, "the network of configs/bignas.py"


def _options(base: str, changes: dict[str, Any]) -> Options:
    config = load_recipe(f"configs/{base}.py").copy_and_resolve_references().unlock()
    config.update_from_flattened_dict(changes)
    config = fields.canonical(config)
    fields.validate(config)
    return Options.of(config)
