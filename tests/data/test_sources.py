"""Folders, packaged data sets, decoding and the held-out images."""

import gzip
import io
import json
import os
import pickle
import shutil
import struct
import zlib
from multiprocessing.reduction import ForkingPickler

import numpy as np
import pytest
import torch
from data_folders import data_options, make_folder, picture
from PIL import Image
from sklearn.datasets import load_digits
from torchvision.datasets import ImageFolder

from bignas_jax.data import DataError, decode, open_dataset, packaged
from bignas_jax.data.decode import read_image, read_reduced
from bignas_jax.data.fingerprint import fingerprint
from bignas_jax.data.packaged import TORCHVISION, stratified
from bignas_jax.data.sources import ArraySource, FileSource
from bignas_jax.errors import CorruptImage, UnreadableImage, UserError

pytestmark = pytest.mark.filterwarnings("ignore:The image decoding and encoding:DeprecationWarning")


@pytest.fixture
def root(tmp_path):
    return make_folder(tmp_path / "set", train=6, val=2)


def one_line(error) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message


def test_folder_finds_what_torchvision_finds(root):
    nested = root / "train" / "bee" / "more"
    nested.mkdir()
    picture(9).save(nested / "x.PNG")
    (root / "train" / "bee" / "notes.txt").write_text("not an image")
    (root / "train" / "ant" / "._0.jpg").write_bytes(b"a file of macOS's own")
    (root / "train" / ".cache").mkdir()
    dataset = open_dataset(data_options(root, holdout=0))
    shutil.rmtree(root / "train" / ".cache")
    (root / "train" / "ant" / "._0.jpg").unlink()

    expected = ImageFolder(root / "train")
    assert dataset.class_names == tuple(expected.classes)
    found = {(dataset.train.name(i), int(dataset.train.labels[i])) for i in range(len(dataset.train))}
    assert found == set(expected.samples)
    assert dataset.splits == {"train": 19, "holdout": 0, "val": 6}


@pytest.mark.parametrize(
    "break_it, words",
    [
        (lambda root: shutil.rmtree(root), ["no folder", "train", "config.data.root"]),
        (lambda root: shutil.rmtree(root / "val"), ["no folder", "val", "config.data.val_split"]),
        (lambda root: [shutil.rmtree(f) for f in (root / "train").iterdir()], ["no class folders", "train"]),
        (lambda root: [f.unlink() for f in (root / "train" / "bee").iterdir()], ["no images", "bee"]),
        (lambda root: shutil.rmtree(root / "val" / "cat"), ["differ", "cat", "only in the second none"]),
    ],
)
def test_folder_errors_say_what_and_where(root, break_it, words):
    break_it(root)
    with pytest.raises(DataError) as error:
        open_dataset(data_options(root))
    message = one_line(error)
    assert all(word in message for word in words), message


@pytest.mark.parametrize(
    "field, value, words",
    [
        ("source", "imagenet", ["'imagenet'", "folder", "cifar10"]),
        ("on_corrupt", "ignore", ["on_corrupt", "skip"]),
        ("num_workers", -1, ["num_workers", "-1"]),
        ("holdout", 18, ["holdout", "18"]),
        ("eval_resize", 8, ["eval_resize", "8"]),
        ("augment.crop", "random", ["augment.crop", "padded"]),
        ("augment.policy", "v0", ["augment.policy", "imagenet"]),
        ("augment.flip", 2.0, ["augment.flip"]),
        ("augment", dict(crop="padded", padding=17), ["augment.padding", "17", "16"]),
        ("augment.crop_scale", (0.0, 1.0), ["augment.crop_scale"]),
        ("augment.color_jitter", (0.0, 0.0, 0.0, 0.6), ["augment.color_jitter"]),
    ],
)
def test_settings_that_cannot_work_are_named(root, field, value, words):
    *group, name = field.split(".")
    with pytest.raises(UserError) as error:
        open_dataset(data_options(root, **({"augment": {name: value}} if group else {name: value})))
    assert all(word in one_line(error) for word in words), one_line(error)


def passed_over(capsys) -> list[str]:
    return capsys.readouterr().err.splitlines()


def test_files_that_are_passed_over_are_counted_by_suffix(root, capsys):
    healthy = open_dataset(data_options(root))
    assert passed_over(capsys) == []
    for name in ("a.jpg.1", "b.JPG.1", "c.txt", "README", "d.jpg~", ".DS_Store"):
        (root / "train" / "bee" / name).write_bytes(b"")
    for number in range(3):
        picture(number).save(root / "val" / f"{number}.png")
    dataset = open_dataset(data_options(root))
    train, val = passed_over(capsys)
    assert train.startswith(f"{root}/train: 5 files passed over: 2 .jpg.1, 1 ")
    assert all(word in train for word in ("1 .txt", "1 no suffix", "1 .jpg~")) and "DS_Store" not in train
    assert val == f"{root}/val: 3 files passed over: 3 .png outside the class folders"
    assert fingerprint(dataset) == fingerprint(healthy)


def test_a_class_of_files_with_other_suffixes_is_refused_with_them(root):
    for path in (root / "train" / "bee").iterdir():
        path.rename(path.with_suffix(".jpg.1"))
    with pytest.raises(DataError, match="bee, but 6 .jpg.1"):
        open_dataset(data_options(root))


@pytest.mark.parametrize("suffix", ["jfif", "jpe", "JFIF"])
def test_jpegs_of_other_suffixes_are_images(root, suffix, capsys):
    path = root / "train" / "bee" / f"z.{suffix}"
    picture(5).save(path, format="JPEG")
    dataset = open_dataset(data_options(root))
    assert dataset.splits["train"] == 19 and passed_over(capsys) == []
    (number,) = (i for i in range(19) if dataset.train.name(i) == str(path))
    assert np.array_equal(dataset.train.load(number), np.asarray(Image.open(path)))


@pytest.mark.parametrize("val_split", ["train", "train/", "./train", "val/../train", "link", "train/ant", "mixed"])
def test_training_images_are_no_validation_images(root, val_split):
    (root / "link").symlink_to("train")
    shutil.copytree(root / "val", root / "mixed")
    shutil.rmtree(root / "mixed" / "bee")
    (root / "mixed" / "bee").symlink_to(root / "train" / "bee")
    (root / "train" / "ant" / "more").mkdir()
    picture(9).save(root / "train" / "ant" / "more" / "x.png")
    with pytest.raises(DataError) as error:
        open_dataset(data_options(root, val_split=val_split))
    message = one_line(error)
    assert message.startswith(f"config.data.val_split: found {val_split!r}") and "train_split='train'" in message


def link(path, target) -> None:
    path.symlink_to(target)


@pytest.mark.parametrize(
    "break_it, words",
    [
        (lambda bee: link(bee / "x.jpg", "gone.jpg"), ["lead to no file: 1 (bee/x.jpg)"]),
        (lambda bee: link(bee / "x.jpg", "x.jpg"), ["lead to no file: 1 (bee/x.jpg)"]),
        (lambda bee: link(bee / "x.jpg", "/dev/zero"), ["lead to no file: 1 (bee/x.jpg)"]),
        (lambda bee: os.mkfifo(bee / "x.jpg"), ["lead to no file: 1 (bee/x.jpg)"]),
        (lambda bee: link(bee / "more", ".."), ["bee/more", "link to a folder that it lies in"]),
        (lambda bee: link(bee.parent / "dog", "dog"), []),
    ],
)
def test_names_that_lead_nowhere_are_refused_before_work(root, break_it, words, capsys):
    break_it(root / "train" / "bee")
    if not words:  # no image by its name: passed over
        assert open_dataset(data_options(root)).splits["train"] == 18
        assert "1 no suffix outside the class folders" in capsys.readouterr().err
        return
    with pytest.raises(DataError) as error:
        open_dataset(data_options(root))
    assert all(word in one_line(error) for word in words), one_line(error)


def test_a_folder_that_cannot_be_listed_is_named(root, monkeypatch):
    scandir = os.scandir

    def refuse(folder):
        if str(folder).endswith("bee"):
            raise PermissionError(13, "Permission denied", folder)
        return scandir(folder)

    monkeypatch.setattr("bignas_jax.data.folder.os.scandir", refuse)
    with pytest.raises(DataError, match="bee: found Permission denied") as error:
        open_dataset(data_options(root))
    assert one_line(error)


def test_a_folder_with_the_name_of_an_image_holds_images(root):
    (root / "train" / "bee" / "x.jpg").mkdir()
    picture(1).save(root / "train" / "bee" / "x.jpg" / "y.jpg")
    assert open_dataset(data_options(root)).splits["train"] == 19


@pytest.mark.parametrize("name", [b"a\nb.jpg", b"caf\xe9.jpg", b"\x1b[31m.jpg", "\u202egpj.jpg".encode()])
def test_any_name_is_read_and_shown_in_one_printable_line(root, name):
    folder = os.fsencode(root / "train" / "bee")
    path = os.path.join(folder, name)
    picture(5).save(os.fsdecode(path))
    dataset = open_dataset(data_options(root))
    (number,) = (i for i in range(19) if os.fsencode(dataset.train.name(i)) == path)
    assert dataset.train.load(number).shape == (30, 40, 3)
    with open(path, "wb"):
        pass
    with pytest.raises(CorruptImage, match="empty file") as error:
        dataset.train.load(number)
    assert one_line(error).isprintable()


@pytest.mark.parametrize(
    "train, val, words",
    [
        ("Bee", "bee", "'Bee' and 'bee' differ in case only"),
        ("caf\u00e9", "cafe\u0301", "'caf\\xe9' and 'cafe\\u0301' differ in the form of accents only"),
    ],
)
def test_classes_whose_names_look_alike_are_said(root, train, val, words, capsys):
    (root / "train" / "bee").rename(root / "train" / train)
    (root / "val" / "bee").rename(root / "val" / val)
    with pytest.raises(DataError) as error:
        open_dataset(data_options(root))
    assert words in one_line(error)
    for split, missing in (("train", val), ("val", train)):
        shutil.copytree(root / split / "cat", root / split / missing)
    assert open_dataset(data_options(root)).num_classes == 4
    (line,) = passed_over(capsys)
    assert words.split("differ")[1] in line and "two classes" in line


def test_every_class_keeps_an_image_to_train_on(tmp_path):
    labels = np.repeat([0, 1, 2], [1, 1, 98])
    chosen = stratified(labels, 50)
    assert np.bincount(labels[chosen], minlength=3).tolist() == [0, 0, 50] and len(set(chosen)) == 50
    for sizes in ([1, 2, 3, 50], [1] * 30 + [2], [7, 7, 7]):
        labels = np.repeat(np.arange(len(sizes)), sizes)
        for count in range(len(labels) - len(sizes) + 1):
            taken = np.bincount(labels[stratified(labels, count)], minlength=len(sizes))
            assert taken.sum() == count and (taken < sizes).all(), (sizes, count)


def test_held_out_images_stay_what_they_were_where_every_class_keeps_one():
    """Recorded from the rule of before: largest remainders alone."""
    labels = np.repeat([0, 1, 2], [4, 6, 10])
    assert stratified(labels, 7).tolist() == [0, 5, 6, 11, 12, 16, 19]


def test_classes_that_keep_no_image_are_named(root, capsys):
    assert open_dataset(data_options(root, holdout=15)).splits["train"] == 3
    assert passed_over(capsys) == []
    dataset = open_dataset(data_options(root, holdout=16))
    left = set(np.delete(dataset.train.labels, dataset.holdout_indices))
    (name,) = (name for label, name in enumerate(dataset.class_names) if label not in left)
    assert passed_over(capsys) == [f"config.data.holdout=16 leaves no image to train on of: {name}"]
    with pytest.raises(DataError, match="found 18 of 18 training images in 3 classes, expected 0 to 15"):
        open_dataset(data_options(root, holdout=18))


def test_holdout_is_stratified_and_the_same_for_every_seed(root):
    first, second = (open_dataset(data_options(root, holdout=7), seed=seed) for seed in (0, 1))
    assert np.array_equal(first.holdout_indices, second.holdout_indices)
    _, train = first.select("train")
    assert sorted([*train, *first.holdout_indices]) == list(range(18))
    assert sorted(np.bincount(first.train.labels[first.holdout_indices])) == [2, 2, 3]
    assert first.splits == {"train": 11, "holdout": 7, "val": 6}


def test_stratified_follows_the_sizes_of_classes():
    labels = np.repeat([3, 0, 1], [600, 300, 100])
    chosen = stratified(labels, 100)
    assert np.bincount(labels[chosen]).tolist() == [30, 10, 0, 60]
    assert len(set(chosen)) == 100 and np.all(np.diff(chosen) > 0)
    assert len(stratified(labels, 0)) == 0
    # Drawn, not the first of each class: the mean position within the class is near its middle.
    assert 200 < np.mean(chosen[labels[chosen] == 3]) < 400


@pytest.mark.parametrize("has_file", [True, False])
def test_digits_are_scikit_learns(has_file, monkeypatch):
    """Read from scikit-learn's file, and by its function where the file is elsewhere."""
    if not has_file:
        monkeypatch.setattr(packaged.importlib.util, "find_spec", lambda name: None)
    dataset = open_dataset(data_options("", source="digits", holdout=100))
    assert dataset.class_names == tuple("0123456789") and dataset.num_classes == 10
    assert dataset.splits == {"train": 1338, "holdout": 100, "val": 359}
    images = [source.load(i) for source in (dataset.train, dataset.val) for i in range(len(source))]
    labels = np.concatenate([dataset.train.labels, dataset.val.labels])
    digits = load_digits()

    def multiset(pictures, classes):
        return sorted(
            (picture.tobytes(), int(label)) for picture, label in zip(pictures, classes, strict=True)
        )

    grey = np.round(digits.images / 16 * 255).astype(np.uint8)
    assert multiset([image[..., 0] for image in images], labels) == multiset(grey, digits.target)
    assert all(
        np.array_equal(image[..., 0], image[..., 2]) and image.shape == (8, 8, 3) for image in images[:9]
    )
    assert np.all(abs(np.bincount(dataset.val.labels) - 35.9) < 2)


def test_torchvision_array_set_on_disk(tmp_path):
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    pixels = {}
    for part, count in (("train", 5), ("t10k", 3)):
        pixels[part] = np.random.default_rng(count).integers(0, 256, (count, 28, 28), np.uint8)
        labels = np.arange(count, dtype=np.uint8)
        for kind, header, data in (
            ("images-idx3", struct.pack(">4i", 2051, count, 28, 28), pixels[part]),
            ("labels-idx1", struct.pack(">2i", 2049, count), labels),
        ):
            content = header + data.tobytes()
            (raw / f"{part}-{kind}-ubyte").write_bytes(content)
            (raw / f"{part}-{kind}-ubyte.gz").write_bytes(gzip.compress(content))
    dataset = open_dataset(data_options(tmp_path, source="fashion_mnist", holdout=1))
    assert dataset.num_classes == 10 and dataset.class_names[0] == "T-shirt/top"
    assert np.array_equal(dataset.val.load(2), np.repeat(pixels["t10k"][2][..., None], 3, axis=2))
    assert dataset.train.labels.tolist() == [0, 1, 2, 3, 4]


def test_torchvision_file_set_on_disk(tmp_path):
    base = tmp_path / "food-101"
    (base / "meta").mkdir(parents=True)
    for split, numbers in (("train", (0, 1)), ("test", (2,))):
        listing = {name: [f"{name}/{number}" for number in numbers] for name in ("apple_pie", "tacos")}
        (base / "meta" / f"{split}.json").write_text(json.dumps(listing))
        for names in listing.values():
            for name in names:
                (base / "images" / name).parent.mkdir(parents=True, exist_ok=True)
                picture(len(name)).save(base / "images" / f"{name}.jpg")
    dataset = open_dataset(data_options(tmp_path, source="food101"))
    assert dataset.class_names == ("apple_pie", "tacos")
    assert dataset.train.name(3) == str(base / "images" / "tacos" / "1.jpg")
    assert dataset.train.labels.tolist() == [0, 0, 1, 1] and len(dataset.val) == 2
    assert dataset.train.load(3).shape == (30, 40, 3)


@pytest.mark.parametrize("name", sorted(TORCHVISION))
def test_torchvision_set_that_is_not_there(tmp_path, name):
    with pytest.raises(DataError) as error:
        open_dataset(data_options(tmp_path, source=name))
    message = one_line(error)
    assert TORCHVISION[name].layout in message and str(tmp_path) in message and "'folder'" in message


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


def test_file_source_shares_its_memory_with_workers(root):
    source = open_dataset(data_options(root)).train
    (_, *parts) = source.__reduce__()[1]
    assert all(isinstance(part, torch.Tensor) for part in parts)


def test_a_source_can_still_be_read_after_it_went_to_workers(tmp_path):
    """To share a tensor with a worker, torch moves it; views of the old place would read freed memory."""
    files = FileSource.from_names(str(tmp_path), [f"a/{n}.png" for n in range(50_000)], [n % 7 for n in range(50_000)])
    arrays = ArraySource.from_numpy("made up", np.full((50, 40, 40, 3), 9, np.uint8), [3] * 50)
    for source in (files, arrays):
        ForkingPickler(io.BytesIO()).dump(source)
    scratch = [np.full(1_000_000, 255, np.uint8) for _ in range(20)]  # what was freed is used again
    assert files.name(49_999) == str(tmp_path / "a" / "49999.png") and len(scratch) == 20
    assert (files.labels == np.arange(50_000) % 7).all()
    assert (arrays.load(49) == 9).all() and (arrays.labels == 3).all()
