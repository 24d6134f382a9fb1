"""Image files to pixels."""

import io
import os
from collections.abc import Callable

import numpy as np
import simplejpeg
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as F

from bignas_jax.errors import CorruptImage

try:
    from torchvision.io import ImageReadMode, decode_image
except ImportError:  # torchvision 0.29 announces a release that cannot decode; PIL gives the same pixels
    decode_image = None

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".pgm", ".bmp", ".tif", ".tiff", ".webp", ".gif")

Reduction = Callable[[int, int], int]  # from an image's height and width to 1, 2, 4 or 8

_JPEG, _PNG = b"\xff\xd8\xff", b"\x89PNG"


def read_image(path: str) -> np.ndarray:
    """The image file at `path` as uint8 RGB [H, W, 3].

    EXIF's orientation is not applied. torchvision's ImageFolder, with which published accuracies were measured, does
    not apply it either.

    Raises:
        CorruptImage: the file cannot be read, or not to its end. A truncated JPEG is not filled up with grey.
    """
    return read_reduced(path, None)[0]


def read_reduced(path: str, reduction: Reduction | None) -> tuple[np.ndarray, tuple[int, int]]:
    """The image file at `path`, perhaps reduced to save time, and its full height and width.

    A JPEG is decoded at 1 / `reduction` of its height and width, rounded up. libjpeg's inverse cosine transforms then
    compute fewer pixels of a block, from its lower frequencies. Other formats are decoded in full.

    Args:
        path: the image file.
        reduction: gives the divisor, from the full height and width. None decodes every format in full.
    Raises:
        CorruptImage: as `read_image` raises.
    """
    try:
        with open(path, "rb", buffering=0) as file:
            content = bytearray(file.readall())  # torch warns of buffers it could not write to
    except OSError as error:
        raise CorruptImage(f"{path} ({error.strerror})") from None
    try:  # these are faster than PIL and give the same pixels: a JPEG of 500x400 takes 0.69 ms, with PIL 0.94
        if content.startswith(_JPEG):
            return _by_simplejpeg(content, reduction)
        if content.startswith(_PNG) and decode_image is not None:
            return _with_size(_by_torchvision(content))
    except (ValueError, RuntimeError):
        pass  # PIL reads a few kinds that these do not read, and has better messages
    return _with_size(_by_pil(path, content))


def _with_size(image: np.ndarray) -> tuple[np.ndarray, tuple[int, int]]:
    return image, image.shape[:2]


def _by_simplejpeg(content: bytearray, reduction: Reduction | None) -> tuple[np.ndarray, tuple[int, int]]:
    height, width = simplejpeg.decode_jpeg_header(content)[:2]
    factor = reduction(height, width) if reduction else 1
    if factor == 1:
        return simplejpeg.decode_jpeg(content), (height, width)
    # simplejpeg takes the smallest scale that gives at least this many rows and columns.
    image = simplejpeg.decode_jpeg(content, min_height=-(-height // factor), min_width=-(-width // factor))
    return image, (height, width)


def _by_torchvision(content: bytearray) -> np.ndarray:
    image = decode_image(torch.frombuffer(content, dtype=torch.uint8), mode=ImageReadMode.RGB)
    if image.dtype != torch.uint8:  # a PNG of 16 bits
        image = F.to_dtype(image, torch.uint8, scale=True)
    return image.permute(1, 2, 0).numpy()


def _by_pil(path: str, content: bytearray) -> np.ndarray:
    try:
        with Image.open(io.BytesIO(content)) as image:
            return np.array(image.convert("RGB"))
    except Exception as error:  # PIL's plugins raise OSError, SyntaxError, ValueError and others
        reason = " ".join(str(error).split()) or type(error).__name__
        if "cannot identify image file" in reason:
            reason = "not an image in a known format" if content else "empty file"
        raise CorruptImage(f"{path} ({reason})") from None


def is_image(name: str) -> bool:
    """Whether a file of this name counts as an image; names that begin with a dot do not."""
    return name.lower().endswith(EXTENSIONS) and not os.path.basename(name).startswith(".")
