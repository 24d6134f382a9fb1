"""Data sets that packages ship or that lie on disk in their own forms."""

import gzip
import json
import struct

import numpy as np
import pytest
from data_folders import data_options, one_line, picture
from sklearn.datasets import load_digits

from bignas_jax.data import DataError, open_dataset, packaged
from bignas_jax.data.packaged import TORCHVISION

pytestmark = pytest.mark.filterwarnings("ignore:The image decoding and encoding:DeprecationWarning")


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
