"""Small image folders and options for the tests of data."""

import numpy as np
from PIL import Image

from bignas_jax.config.options import Augment, Data

CLASSES = ("ant", "bee", "cat")


def picture(seed: int, size: tuple[int, int] = (40, 30), noise: bool = False) -> Image.Image:
    """An RGB image of size (width, height), different by seed: smooth, or noise that hardly compresses."""
    width, height = size
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (height, width, 3) if noise else (5, 5, 3), np.uint8)
    return Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)


def make_folder(root, train: int, val: int, size=(40, 30)):
    """<root>/{train,val}/{ant,bee,cat}/ with so many images a class, JPEG and PNG by turns; returns root."""
    for split, count in (("train", train), ("val", val)):
        for label, name in enumerate(CLASSES):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                image = picture(10_000 * (split == "val") + 100 * label + i, size)
                image.save(folder / f"{i:03d}.{'png' if i % 2 else 'jpg'}")
    return root


def data_options(root, **changes) -> Data:
    """The `data` options, for the folder `root`; `augment` may be given in part."""
    augment = dict(
        crop="resized",
        crop_scale=(0.08, 1.0),
        crop_ratio=(0.75, 1.3333),
        padding=4,
        flip=0.5,
        policy="none",
        rand_ops=2,
        rand_magnitude=9,
        color_jitter=(0.0, 0.0, 0.0, 0.0),
    )
    values = dict(
        source="folder",
        root=str(root),
        train_split="train",
        val_split="val",
        image_size=16,
        eval_resize=20,
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
        num_workers=0,
        holdout=0,
        on_corrupt="error",
        augment=Augment(**augment | changes.pop("augment", {})),
    )
    return Data(**values | changes)


def one_line(error) -> str:
    """The message of a caught error (pytest.ExceptionInfo), which must be one line."""
    message = str(error.value)
    assert "\n" not in message
    return message
