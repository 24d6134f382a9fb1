"""Images as a user hands them in: paths, arrays, PIL's images, and a folder of labelled ones."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from bignas_jax.data.decode import MAX_PIXELS, read_image, rgb
from bignas_jax.data.folder import open_labelled
from bignas_jax.data.sources import FileSource
from bignas_jax.errors import DataError

_EXPECTED = "expected a path, uint8 [H, W, 3] or [H, W], or an image of PIL"


def read_given(image: Any, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """One image as uint8 RGB [H, W, 3].

    Args:
      image: a path; uint8 [H, W, 3], [H, W, 1] or [H, W]; or an image of PIL. Transparency is dropped, and EXIF's
        orientation is not applied, as in training.
      max_pixels: a file with more is refused.
    Raises:
      DataError: it is something else.
      CorruptImage: the file, or PIL's image, cannot be decoded.
      UnreadableImage: the file cannot be read.
    """
    if isinstance(image, str | os.PathLike):
        return read_image(os.fspath(image), max_pixels)
    if isinstance(image, Image.Image):
        return rgb(image)
    if not hasattr(image, "__array__"):
        raise DataError(f"image: found {type(image).__name__}, {_EXPECTED}")
    array = np.asarray(image)
    if array.ndim == 2:
        array = array[..., None]
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] not in (1, 3) or not array.size:
        raise DataError(
            f"image: found {array.dtype} {list(np.shape(image))}, {_EXPECTED}; call the child itself on images that "
            "are normalised already"
        )
    # A copy, because torch warns of arrays that it could not write to, such as a view of PIL's image.
    return np.repeat(array, 3, axis=2) if array.shape[2] == 1 else np.array(array)


def labelled(folder: str | os.PathLike, class_names: Sequence[str]) -> FileSource:
    """The images of <folder>/<class>/, with the labels of these classes.

    Raises:
      DataError: there is no such folder, or a folder in it is none of the classes.
    """
    return open_labelled(os.fspath(folder), class_names)
