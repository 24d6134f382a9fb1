"""What a data set is, in a few numbers: to see later whether a run meets the images again that it began with."""

import hashlib
from typing import Any

import numpy as np

from bignas_jax.data.dataset import Dataset, Images
from bignas_jax.data.sources import Source


def fingerprint(dataset: Dataset | Images) -> dict[str, Any]:
    """The classes by name, and for 'train' and 'val' the number of images and a digest.

    The digest is over the names and the labels of image files in order, or over the pixels and labels of a packaged
    data set. Files are not read: 1.28 million names take less than a second.
    """
    return {"classes": list(dataset.class_names), "train": _split(dataset.train), "val": _split(dataset.val)}


def _split(source: Source) -> dict[str, Any]:
    found = hashlib.sha256()
    for array in source.arrays:
        found.update(str(array.shape).encode() + np.ascontiguousarray(array).data)
    return {"images": len(source), "digest": found.hexdigest()[:32]}
