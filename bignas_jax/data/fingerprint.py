"""A data set's identity in a few numbers. A resumed run checks with it that the images are still the same."""

import hashlib
from typing import Any

import numpy as np

from bignas_jax.data.dataset import Dataset, Images
from bignas_jax.data.sources import Source


def fingerprint(dataset: Dataset | Images) -> dict[str, Any]:
    """The names of the classes, and the number of images and a digest of 'train' and 'val'.

    For image files, the digest covers their names and labels, in order. For a packaged data set, it covers pixels and
    labels. Files are not read: 1.28 million names take less than a second.
    """
    return {"classes": list(dataset.class_names), "train": _split(dataset.train), "val": _split(dataset.val)}


def _split(source: Source) -> dict[str, Any]:
    found = hashlib.sha256()
    for array in source.arrays:
        found.update(str(array.shape).encode() + np.ascontiguousarray(array).data)
    return {"images": len(source), "digest": found.hexdigest()[:32]}
