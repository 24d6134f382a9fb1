"""Decoding: what PIL reads, at full and at reduced size, and what is refused as corrupt, unreadable or too large."""

import os
import pickle
import struct
import zlib
from multiprocessing.reduction import ForkingPickler

import numpy as np
import pytest
from data_folders import data_options, make_folder, one_line, picture
from PIL import Image

from bignas_jax.data import decode, open_dataset
from bignas_jax.data.decode import read_image, read_reduced
from bignas_jax.errors import CorruptImage, UnreadableImage

pytestmark = pytest.mark.filterwarnings("ignore:The image decoding and encoding:DeprecationWarning")


@pytest.fixture
def root(tmp_path):
    return make_folder(tmp_path / "set", train=6, val=2)


@pytest.mark.parametrize(
    "name, mode, options",
    [
        *[("a.jpg", mode, {}) for mode in ("RGB", "L", "CMYK")],
        *[("a.png", mode, {}) for mode in ("RGB", "RGBA", "P", "LA", "1")],
        ("a.png", "P", {"transparency": 3}),
        ("a.png", "L", {"transparency": 3}),
        ("a.png", "RGB", {"transparency": (1, 2, 3)}),
        ("a.tif", "CMYK", {}),
        ("a.tif", "1", {"compression": "group4"}),
        *[(f"a.{suffix}", "RGB", {}) for suffix in ("webp", "bmp", "tif", "ppm")],
        ("a.gif", "P", {}),
        ("a.jpg", "RGB", {"progressive": True}),
        ("wrong_name.png", "RGB", {"format": "JPEG"}),
    ],
)
def test_decoding_agrees_with_pil(tmp_path, name, mode, options):
    picture(1).convert(mode).save(tmp_path / name, **options)
    image = read_image(str(tmp_path / name))
    expected = np.asarray(Image.open(tmp_path / name).convert("RGB"))
    assert image.dtype == np.uint8 and image.shape == (30, 40, 3)
    assert np.abs(image.astype(int) - expected).max() <= (1 if mode == "CMYK" else 0)


def test_sixteen_bit_png(tmp_path):
    grey = np.arange(0, 65536, 64, dtype=np.uint16).reshape(32, 32)
    Image.fromarray(grey).save(tmp_path / "a.png")
    assert np.array_equal(read_image(str(tmp_path / "a.png"))[..., 1], grey >> 8)


GREY = np.arange(0, 65536, 64, dtype=np.uint16).reshape(32, 32)


def twelve_bits(path, values) -> None:
    """A TIFF of 12 bits a value, two in three bytes."""
    pairs = values.reshape(-1, 2).astype(int)
    data = np.stack([pairs[:, 0] >> 4, (pairs[:, 0] & 15) << 4 | pairs[:, 1] >> 8, pairs[:, 1] & 255], 1)
    data = data.astype(np.uint8).tobytes()
    header = b"II*\0" + struct.pack("<I", 8 + len(data))
    height, width = values.shape
    tags = {256: width, 257: height, 258: 12, 259: 1, 262: 1, 273: 8, 277: 1, 278: height, 279: len(data)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    path.write_bytes(header + data + struct.pack("<H", len(tags)) + entries + bytes(4))


def pgm(path, values, most) -> None:
    height, width = values.shape
    path.write_bytes(f"P5 {width} {height} {most}\n".encode() + values.astype(">u2").tobytes())


@pytest.mark.parametrize(
    "name, write",
    [
        ("a.tif", lambda path: Image.fromarray(GREY).save(path)),
        ("a.tiff", lambda path: Image.fromarray(GREY).save(path, compression="tiff_lzw")),
        ("a.tif", lambda path: Image.fromarray(GREY.astype(">u2")).save(path)),
        ("a.tif", lambda path: Image.fromarray(65535 - GREY).save(path, tiffinfo={262: 0})),  # white is zero
        ("a.tif", lambda path: twelve_bits(path, GREY >> 4)),
        ("a.pgm", lambda path: pgm(path, GREY, 65535)),
    ],
)
def test_of_sixteen_grey_bits_the_upper_eight_are_taken(tmp_path, name, write):
    write(tmp_path / name)
    image = read_image(str(tmp_path / name))
    assert image.shape == (32, 32, 3) and image.dtype == np.uint8 and image.flags.c_contiguous
    assert all(np.array_equal(image[..., channel], GREY >> 8) for channel in range(3))


def test_a_pgm_has_the_range_that_it_says(tmp_path):
    pgm(tmp_path / "a.pgm", GREY >> 4, 4095)
    image = read_image(str(tmp_path / "a.pgm"))[..., 0]
    assert image.min() == 0 and image.max() == 255 and np.abs(image - (GREY / 65535 * 255)).max() < 1.1


@pytest.mark.parametrize(
    "values, words", [(GREY.astype(np.float32) / 65535, "floating-point"), (GREY.astype(np.int32), "32-bit")]
)
def test_values_without_a_known_range_are_refused_by_name(tmp_path, values, words):
    Image.fromarray(values).save(tmp_path / "a.tif")
    with pytest.raises(CorruptImage, match=words) as error:
        read_image(str(tmp_path / "a.tif"))
    assert str(tmp_path / "a.tif") in one_line(error) and "8 or 16 bits" in one_line(error)


@pytest.mark.parametrize("suffix", ["jpg", "png", "gif", "webp", "bmp", "ppm", "tif"])
def test_one_limit_on_pixels_holds_for_all_formats(tmp_path, suffix, monkeypatch):
    path = str(tmp_path / f"a.{suffix}")
    picture(1).save(path)
    assert read_image(path, max_pixels=1200).shape == (30, 40, 3)
    with pytest.raises(CorruptImage) as error:
        read_reduced(path, lambda *_: 8, max_pixels=1199)
    message = one_line(error)
    assert all(word in message for word in (path, "30 x 40 = 1,200", "config.data.max_pixels=1199")), message
    # PIL's own limit does not come first, where ours was raised.
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert read_image(path, max_pixels=1200).shape == (30, 40, 3)
    assert Image.MAX_IMAGE_PIXELS == 100


def test_a_bomb_is_refused_by_its_header(tmp_path):
    (tmp_path / "a.png").write_bytes(png(b"", side=14_000))
    (tmp_path / "a.ppm").write_bytes(b"P6 14000 14000 255\n")
    for name in ("a.png", "a.ppm"):
        with pytest.raises(CorruptImage, match="196,000,000 pixels"):
            read_image(str(tmp_path / name))


def test_the_limit_on_pixels_is_the_configs_in_workers_too(root):
    source = open_dataset(data_options(root, max_pixels=1199)).train
    for one in (source, pickle.loads(ForkingPickler.dumps(source))):
        with pytest.raises(CorruptImage, match="max_pixels=1199"):
            one.load(0)


def test_exif_orientation_is_not_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(1).save(tmp_path / "a.jpg", exif=exif)
    assert read_image(str(tmp_path / "a.jpg")).shape == (30, 40, 3)


@pytest.mark.parametrize("factor", [1, 2, 4, 8])
@pytest.mark.parametrize("mode, options", [("RGB", {}), ("RGB", {"progressive": True}), ("L", {})])
def test_reduced_decoding_agrees_with_pils(tmp_path, factor, mode, options):
    asked = []
    picture(1, (301, 203), noise=True).convert(mode).save(tmp_path / "a.jpg", **options)
    image, size = read_reduced(str(tmp_path / "a.jpg"), lambda *sides: asked.append(sides) or factor)
    assert size == (203, 301) and asked == [size]
    assert image.shape == (-(-203 // factor), -(-301 // factor), 3)
    with Image.open(tmp_path / "a.jpg") as by_pil:
        by_pil.draft(mode, (301 // factor, 203 // factor))
        assert np.abs(image.astype(int) - np.asarray(by_pil.convert("RGB"))).max() == 0


@pytest.mark.parametrize("name", ["a.png", "a.webp", "tiny.jpg"])
def test_what_cannot_be_reduced_comes_in_full(tmp_path, name):
    picture(1, (7, 6) if name == "tiny.jpg" else (90, 70)).save(tmp_path / name)
    image, size = read_reduced(str(tmp_path / name), lambda *_: 1 if name == "tiny.jpg" else 2)
    assert size == image.shape[:2] and np.array_equal(image, read_image(str(tmp_path / name)))


@pytest.mark.parametrize("keep", [0.1, 0.9])
def test_truncated_files_are_corrupt_at_a_reduced_size_too(tmp_path, keep):
    picture(1, (300, 200), noise=True).save(tmp_path / "a.jpg")
    content = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "a.jpg").write_bytes(content[: int(len(content) * keep)])
    with pytest.raises(CorruptImage):
        read_reduced(str(tmp_path / "a.jpg"), lambda *_: 2)


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(rows: bytes, side: int, kind: int = 2, bits: int = 8, notes: bytes = b"") -> bytes:
    """A PNG of side x side pixels; `rows` as they are compressed, each with its filter."""
    header = struct.pack(">IIBBBBB", side, side, bits, kind, 0, 0, 0)
    image = chunk(b"IHDR", header) + notes + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + image


def test_a_png_with_a_bad_filter_is_corrupt_and_ends_no_process(tmp_path):
    """torchvision 0.29 ends the process."""
    rows = bytes([9, *range(9)] * 3)
    (tmp_path / "a.png").write_bytes(png(rows, side=3))
    with pytest.raises(CorruptImage, match="a.png"):
        read_image(str(tmp_path / "a.png"))


@pytest.mark.parametrize("kind, channels", [(0, 1), (2, 3), (4, 2), (6, 4)])
@pytest.mark.parametrize("bits", [8, 16])
def test_a_png_of_any_kind_gives_the_upper_eight_bits_of_its_colours(tmp_path, kind, channels, bits):
    side, step = 7, channels * bits // 8
    pixels = np.random.default_rng(kind).integers(0, 256, (side, side, step), np.uint8)
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    (tmp_path / "a.png").write_bytes(png(rows, side, kind, bits))
    upper = pixels[..., :: bits // 8]
    expected = np.repeat(upper[..., :1], 3, axis=2) if channels < 3 else upper[..., :3]
    assert np.array_equal(read_image(str(tmp_path / "a.png")), expected)


def test_a_png_with_damaged_notes_is_read(tmp_path):
    rows = b"".join(b"\0" + bytes(range(9 * n, 9 * n + 9)) for n in range(3))
    damaged = chunk(b"iTXt", b"note")[:-4] + b"\0\0\0\0"
    (tmp_path / "a.png").write_bytes(png(rows, side=3, notes=damaged + chunk(b"gAMA", struct.pack(">I", 100_000))))
    assert np.array_equal(read_image(str(tmp_path / "a.png")), np.arange(27, dtype=np.uint8).reshape(3, 3, 3))


def test_postscript_is_not_run(tmp_path):
    picture(1).save(tmp_path / "a.jpg", format="EPS")
    with pytest.raises(CorruptImage, match="PostScript"):
        read_image(str(tmp_path / "a.jpg"))


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")
@pytest.mark.parametrize("suffix", ["jpg", "png", "gif", "webp", "bmp", "ppm", "tif"])
def test_a_damaged_file_is_read_or_named_in_one_line(tmp_path, suffix):
    """1,050 files: cut short, with other bytes, with a part gone, or with its parts in another order."""
    path, rng = tmp_path / f"a.{suffix}", np.random.default_rng(len(suffix) + ord(suffix[0]))
    picture(1).save(path)
    content, corrupt = path.read_bytes(), 0
    for number in range(150):
        damaged = bytearray(content)
        first, last = sorted(rng.integers(0, len(content) + 1, 2).tolist())
        if number % 3 == 0:
            damaged = damaged[:last]
        if number % 3 == 1:
            for place in rng.integers(0, len(damaged), 1 + number % 8).tolist():
                damaged[place] = int(rng.integers(256))
        if number % 3 == 2:
            damaged = damaged[last:] + damaged[:first] if number % 2 else damaged[:first] + damaged[last:]
        path.write_bytes(damaged)
        try:
            image, size = read_reduced(str(path), lambda *_: 2, max_pixels=10**6)
            assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3 and min(size) > 0
        except CorruptImage as error:
            corrupt += 1
            assert str(path) in str(error) and str(error).isprintable()
    assert corrupt > 30


@pytest.mark.parametrize("name, save", [
    ("a.gif", dict(save_all=True, append_images=[picture(2).quantize(8)])),
    ("a.webp", dict(save_all=True, append_images=[picture(2)], lossless=True)),
    ("a.tif", dict(save_all=True, append_images=[picture(2)])),
    ("a.png", dict(save_all=True, append_images=[picture(2)])),
    ("a.jpg", dict(save_all=True, append_images=[picture(2)], format="MPO")),
])  # fmt: skip
def test_of_many_pictures_the_first_is_taken(tmp_path, name, save):
    first = picture(1).quantize(8) if name == "a.gif" else picture(1)
    first.save(tmp_path / name, **save)
    with Image.open(tmp_path / name) as image:
        assert image.n_frames == 2
        expected = np.asarray(image.convert("RGB"))
    assert np.array_equal(read_image(str(tmp_path / name)), expected)


@pytest.mark.parametrize("suffix", ["jpg", "png", "gif", "webp", "bmp", "tif", "ppm", "pgm"])
@pytest.mark.parametrize("keep", [0.0, 0.1, 0.5, 0.9])
def test_truncated_files_are_corrupt(tmp_path, suffix, keep):
    path = tmp_path / f"a.{suffix}"
    picture(1, noise=True).save(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])
    with pytest.raises(CorruptImage) as error:
        read_image(str(path))
    assert str(path) in one_line(error)


def test_only_what_can_be_read_is_corrupt(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"<html>404</html>")
    (tmp_path / "c.jpg").mkdir()
    with pytest.raises(CorruptImage, match="not an image"):
        read_image(str(tmp_path / "a.jpg"))
    for name, reason in (("b.jpg", "No such file"), ("c.jpg", "Is a directory")):
        with pytest.raises(UnreadableImage, match=reason) as error:
            read_image(str(tmp_path / name))
        assert str(tmp_path / name) in one_line(error)


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero")])
def test_what_is_no_file_is_not_waited_for(tmp_path, make):
    make(tmp_path / "a.jpg")
    with pytest.raises(UnreadableImage, match="a.jpg is no file"):
        read_image(str(tmp_path / "a.jpg"))


def test_memory_that_ran_out_says_nothing_about_an_image(tmp_path, monkeypatch):
    picture(1).save(tmp_path / "a.webp")

    def out_of_memory(*_):
        raise MemoryError

    monkeypatch.setattr(decode.Image, "open", out_of_memory)
    with pytest.raises(UnreadableImage, match="memory ran out"):
        read_image(str(tmp_path / "a.webp"))
