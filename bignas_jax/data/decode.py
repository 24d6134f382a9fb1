"""Image files to pixels."""

import contextlib
import ctypes
import functools
import io
import os
import stat
import threading
from collections.abc import Callable, Iterator

import numpy as np
import simplejpeg
from PIL import Image

from bignas_jax.errors import CorruptImage, UnreadableImage
from bignas_jax.text import shown

EXTENSIONS = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".ppm", ".pgm", ".bmp", ".tif", ".tiff", ".webp", ".gif")
MAX_PIXELS = 178_956_970  # in PIL, too, an image with more is an error: 512 MiB as RGB

Reduction = Callable[[int, int], int]  # from an image's height and width to 1, 2, 4 or 8

_JPEG, _PNG = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"
_BITS_PER_SAMPLE, _PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0  # of TIFF 6.0

_limit_lock = threading.Lock()
_decoding, _limit_of_pils = 0, None  # threads in which PIL's own limit on pixels is off, and what it was before


def read_image(path: str, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """The image file at `path` as uint8 RGB [H, W, 3].

    EXIF's orientation is not applied. torchvision's ImageFolder, with which published accuracies were measured, does
    not apply it either. Of 16 bits the upper eight are taken.

    Raises:
        UnreadableImage: the file cannot be read.
        CorruptImage: it cannot be decoded, or not to its end (a truncated JPEG is not filled up with grey), its values
            have no known range, or it has more than `max_pixels` pixels by its header.
    """
    return read_reduced(path, None, max_pixels)[0]


def read_reduced(
    path: str, reduction: Reduction | None, max_pixels: int = MAX_PIXELS
) -> tuple[np.ndarray, tuple[int, int]]:
    """The image file at `path`, in less time where less detail will do, and its full height and width.

    A JPEG is decoded at 1 / `reduction` of its height and width, rounded up. libjpeg's inverse cosine transforms then
    compute fewer pixels of a block, from its lower frequencies. Other formats are decoded in full.

    Args:
        path: the image file.
        reduction: gives the divisor, from the full height and width. None decodes every format in full.
    Raises:
        CorruptImage: as `read_image` raises.
    """
    try:
        with open(path, "rb", buffering=0, opener=_at_once) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise UnreadableImage(f"{shown(path)} is no file")  # a device may have no end
            content = bytearray(file.readall())  # torch warns of buffers it could not write to
    except OSError as error:
        raise UnreadableImage(f"{shown(path)} cannot be read ({error.strerror or error})") from None
    return decode_reduced(content, path, reduction, max_pixels)


def decode_reduced(
    content: bytearray, path: str, reduction: Reduction | None, max_pixels: int = MAX_PIXELS
) -> tuple[np.ndarray, tuple[int, int]]:
    """As `read_reduced`, of what an image file holds; `path` is its name in messages."""
    try:
        return _decoded(content, reduction, max_pixels)
    except MemoryError:
        raise UnreadableImage(f"{shown(path)} cannot be read (memory ran out)") from None
    except Exception as error:  # PIL's plugins raise OSError, SyntaxError, ValueError and others
        reason = " ".join(str(error).split()) or type(error).__name__
        if "cannot identify image file" in reason:
            reason = "not an image in a known format" if content else "empty file"
        raise CorruptImage(f"{shown(path)} ({shown(reason)})") from None


def _at_once(path: str, flags: int) -> int:
    """Opens a path, and does not wait for the other end of a named pipe."""
    return os.open(path, flags | os.O_NONBLOCK)


def _decoded(
    content: bytearray, reduction: Reduction | None, max_pixels: int
) -> tuple[np.ndarray, tuple[int, int]]:
    if content.startswith(_JPEG):
        try:  # faster than PIL for the same pixels: a JPEG of 500x400 takes 0.69 ms here, 0.94 there
            return _by_simplejpeg(content, reduction, max_pixels)
        except (ValueError, RuntimeError):
            pass  # PIL reads a few kinds that this does not, and says better what is wrong
    # Not by torchvision, which is faster by a tenth: a damaged PNG may end the process there (0.29, a bad filter byte).
    image = _by_pil(_without_notes(content) if content.startswith(_PNG) else content, max_pixels)
    return image, image.shape[:2]


class _Refused(Exception):
    """An image is not decoded, for a reason that no other decoder changes."""


def _check_size(height: int, width: int, max_pixels: int) -> None:
    if height * width > max_pixels:
        raise _Refused(
            f"found {height:,} x {width:,} = {height * width:,} pixels, expected at most config.data.max_pixels="
            f"{max_pixels}; raise it if there is memory for images of {height * width * 3 / 2**20:,.0f} MiB"
        )


def _by_simplejpeg(
    content: bytearray, reduction: Reduction | None, max_pixels: int
) -> tuple[np.ndarray, tuple[int, int]]:
    height, width = simplejpeg.decode_jpeg_header(content)[:2]
    _check_size(height, width, max_pixels)
    factor = reduction(height, width) if reduction else 1
    if factor == 1:
        return simplejpeg.decode_jpeg(content), (height, width)
    # simplejpeg takes the smallest scale that gives at least this many rows and columns.
    image = simplejpeg.decode_jpeg(content, min_height=-(-height // factor), min_width=-(-width // factor))
    return image, (height, width)


def _without_notes(content: bytearray) -> bytes | bytearray:
    """A PNG without its ancillary chunks, none of which changes its colours here: PIL refuses an image whose notes are
    damaged or large.
    """
    kept, at, begin = [], len(_PNG), 0
    while len(content) - at >= 12:  # length, name, data and checksum
        size = 12 + int.from_bytes(content[at : at + 4])
        if content[at + 4] & 0x20:  # a small letter begins the name of an ancillary chunk
            kept.append(content[begin:at])
            begin = at + size
        at += size
    return b"".join([*kept, content[begin:]]) if kept else content


@functools.cache
def _silence_libtiff() -> None:
    """libtiff writes what is wrong with a file on the process's stderr, without the file's name."""
    with contextlib.suppress(OSError, AttributeError):  # a PIL without libtiff
        library = ctypes.CDLL(Image.core.__file__)  # its symbols, and those of the libraries that it was linked with
        library.TIFFSetErrorHandler(None)
        library.TIFFSetWarningHandler(None)


def _by_pil(content: bytearray, max_pixels: int) -> np.ndarray:
    _silence_libtiff()
    with _no_limit_of_pils(), Image.open(io.BytesIO(content)) as image:
        _check_size(image.height, image.width, max_pixels)
        if image.format == "EPS":
            raise _Refused("PostScript is a program, which is not run; save it as PNG")
        return rgb(image)


def rgb(image: Image.Image) -> np.ndarray:
    """An image of PIL as uint8 RGB [H, W, 3]. Of 16 bits the upper eight are taken.

    Raises:
        CorruptImage: the range of its values is not known.
    """
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):
        # PIL scales a PGM's values to 16 bits whatever their range, and converts by cutting them off at 255.
        return np.repeat(_upper_bits(image)[..., None], 3, axis=2)
    if image.mode in ("I", "F"):
        kind = "floating-point" if image.mode == "F" else "32-bit or signed"
        raise CorruptImage(
            f"{image.format or 'image'} of {kind} values, whose range is not known; save it with 8 or 16 bits"
        )
    return np.array(image.convert("RGB"))


def _upper_bits(image: Image.Image) -> np.ndarray:
    """The upper eight bits of a grey image of 16 bits, uint8 [H, W]; of 12 bits in a TIFF, of those."""
    values = np.asarray(image).astype(np.int32)
    if image.format != "TIFF":
        return (values >> 8).astype(np.uint8)
    bits = image.tag_v2.get(_BITS_PER_SAMPLE, (16,))[0]
    values = np.minimum(values >> (bits - 8), 255).astype(np.uint8)
    return 255 - values if image.tag_v2.get(_PHOTOMETRIC) == _WHITE_IS_ZERO else values


@contextlib.contextmanager
def _no_limit_of_pils() -> Iterator[None]:
    """PIL's own limit on pixels is off, for `max_pixels` takes its place; it is back once no thread decodes."""
    global _decoding, _limit_of_pils
    with _limit_lock:
        if not _decoding:
            _limit_of_pils, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        _decoding += 1
    try:
        yield
    finally:
        with _limit_lock:
            _decoding -= 1
            if not _decoding:
                Image.MAX_IMAGE_PIXELS = _limit_of_pils


def is_image(name: str) -> bool:
    """Whether a file of this name counts as an image; names that begin with a dot do not."""
    return name.lower().endswith(EXTENSIONS) and not os.path.basename(name).startswith(".")
