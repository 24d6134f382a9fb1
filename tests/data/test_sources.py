"""Folders, packaged data sets, decoding and the held-out images."""

import gzip
import io
import json
import shutil
import struct
from multiprocessing.reduction import ForkingPickler

import numpy as np
import pytest
import torch
from data_folders import data_options, make_folder, picture
from PIL import Image
from sklearn.datasets import load_digits
from torchvision.datasets import ImageFolder

from bignas_jax.data import DataError, open_dataset
from bignas_jax.data.decode import read_image, read_reduced
from bignas_jax.data.packaged import TORCHVISION, stratified
from bignas_jax.data.sources import ArraySource, FileSource
from bignas_jax.errors import CorruptImage, UserError

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


def test_digits_are_scikit_learns():
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


@pytest.mark.parametrize("suffix", ["jpg", "png", "gif", "webp", "bmp"])
@pytest.mark.parametrize("keep", [0.0, 0.1, 0.5, 0.9])
def test_truncated_files_are_corrupt(tmp_path, suffix, keep):
    path = tmp_path / f"a.{suffix}"
    picture(1, noise=True).save(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])
    with pytest.raises(CorruptImage) as error:
        read_image(str(path))
    assert str(path) in one_line(error)


def test_unreadable_files_are_corrupt(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"<html>404</html>")
    for name, reason in (("a.jpg", "not an image"), ("b.jpg", "No such file")):
        with pytest.raises(CorruptImage, match=reason):
            read_image(str(tmp_path / name))


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
