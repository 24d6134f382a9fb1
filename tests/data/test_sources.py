"""Folders of images, and the held-out images."""

import io
import os
import shutil
from multiprocessing.reduction import ForkingPickler

import numpy as np
import pytest
import torch
from data_folders import data_options, make_folder, one_line, picture
from PIL import Image
from torchvision.datasets import ImageFolder

from bignas_jax.data import DataError, open_dataset
from bignas_jax.data.fingerprint import fingerprint
from bignas_jax.data.packaged import stratified
from bignas_jax.data.sources import ArraySource, FileSource
from bignas_jax.errors import CorruptImage, UserError

pytestmark = pytest.mark.filterwarnings("ignore:The image decoding and encoding:DeprecationWarning")


@pytest.fixture
def root(tmp_path):
    return make_folder(tmp_path / "set", train=6, val=2)


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
