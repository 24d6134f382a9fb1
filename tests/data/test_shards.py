"""Tar shards: the same batches as a folder gives, and one line for whatever is wrong with them."""

import io
import json
import os
import sys
import tarfile
from multiprocessing.reduction import ForkingPickler

import numpy as np
import pytest
import safetensors.numpy
from data_folders import CLASSES, data_options, make_folder

from bignas_jax.__main__ import main
from bignas_jax.data import DataError, Loader, open_dataset
from bignas_jax.data.fingerprint import fingerprint
from bignas_jax.data.tar_index import INDEX, index_folder


def add(tar, name, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def write_shards(images, root, kind="cls", limit=5):
    """The pictures of an image folder as <root>/<split>/NN.tar of `limit` images, in the same order; returns root."""
    dataset = open_dataset(data_options(images))
    for split, source in (("train", dataset.train), ("val", dataset.val)):
        (root / split).mkdir(parents=True)
        for first in range(0, len(source), limit):
            with tarfile.open(root / split / f"{first:02d}.tar", "w") as tar:
                for i in range(first, min(first + limit, len(source))):
                    label, suffix = int(source.labels[i]), os.path.splitext(source.name(i))[1]
                    text = {"cls": str(label), "json": json.dumps({"label": label}), "name": CLASSES[label]}[kind]
                    with open(source.name(i), "rb") as file:
                        add(tar, f"a/{i:04d}{suffix}", file.read())
                    add(tar, f"a/{i:04d}.{'json' if kind == 'json' else 'cls'}", text.encode())
    if kind != "name":
        (root / "classes.txt").write_text("\n".join(CLASSES))
    return root


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("images"), train=4, val=2)


@pytest.fixture
def root(images, tmp_path):
    return write_shards(images, tmp_path / "set")


def options(root, **changes):
    return data_options(root, **{"source": "tar"} | changes)


def refused(root, **changes) -> str:
    """The one line with which the data set is refused."""
    with pytest.raises(DataError) as error:
        open_dataset(options(root, **changes))
    assert "\n" not in str(error.value) and len(str(error.value)) < 1000
    return str(error.value)


def not_indexed(folder) -> str:
    with pytest.raises(DataError) as error:
        index_folder(str(folder))
    assert "\n" not in str(error.value)
    return str(error.value)


def batches(dataset, split, train=False):
    loader = Loader(dataset, split, batch_size=4, train=train)
    return list(loader.epochs(start_step=0, stop_step=7) if train else loader.once())


@pytest.mark.parametrize("kind", ["cls", "json", "name"])
def test_batches_are_those_of_the_same_pictures_in_a_folder(images, tmp_path, kind):
    root = write_shards(images, tmp_path / "set", kind)
    assert [found.shards for found in index_folder(str(root))] == [3, 2]
    folder, shards = (open_dataset(o, seed=3) for o in (data_options(images, holdout=3), options(root, holdout=3)))
    assert shards.class_names == folder.class_names == CLASSES and shards.splits == folder.splits
    assert shards.train.name(6) == str(root / "train" / "05.tar" / "a" / "0006.jpg")
    for split, train in (("train", True), ("train", False), ("holdout", False), ("val", False)):
        pairs = zip(batches(shards, split, train), batches(folder, split, train), strict=True)
        for ours, theirs in pairs:
            assert all(np.array_equal(ours[name], theirs[name]) for name in ("image", "label", "weight"))


def test_a_source_goes_to_workers_whole(root):
    index_folder(str(root))
    dataset = open_dataset(options(root, max_pixels=1200))
    copy = ForkingPickler.loads(bytes(ForkingPickler.dumps(dataset.train)))
    assert copy.max_pixels == 1200 and copy.name(7) == dataset.train.name(7)
    assert np.array_equal(copy.load(7), dataset.train.load(7)) and np.array_equal(copy.labels, dataset.train.labels)


def test_the_command_says_what_it_found(root, monkeypatch, capsys):
    with tarfile.open(root / "val" / "99.tar", "w") as tar:
        add(tar, "notes.txt", b"x")
        add(tar, "alone.cls", b"1")
    monkeypatch.setattr(sys, "argv", ["bignas_jax", "index", str(root)])
    assert main() == 0
    said = capsys.readouterr()
    assert f"{root}/train/{INDEX}: 12 images of 3 classes in 3 shards" in said.out
    assert "1 .txt" in said.err and "1 labels without an image" in said.err
    monkeypatch.setattr(sys, "argv", ["bignas_jax", "index", str(root / "nowhere")])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2 and "nowhere: found No such file" in capsys.readouterr().err


def test_classes_without_names_are_called_by_their_numbers(root):
    (root / "classes.txt").unlink()
    index_folder(str(root))
    assert open_dataset(options(root)).class_names == ("0", "1", "2")


def test_the_fingerprint_knows_names_labels_and_sizes(root):
    index_folder(str(root))
    before = fingerprint(open_dataset(options(root)))
    index_folder(str(root))
    assert fingerprint(open_dataset(options(root))) == before
    path = root / "train" / INDEX
    for name in ("names", "labels", "size"):
        arrays, about = safetensors.numpy.load(path.read_bytes()), header(path)
        arrays[name] = arrays[name].copy()
        arrays[name][0] ^= 1
        content = path.read_bytes()
        path.write_bytes(safetensors.numpy.save(arrays, about))
        assert fingerprint(open_dataset(options(root))) != before, name
        path.write_bytes(content)


def header(path):
    with safetensors.safe_open(path, "numpy") as file:
        return file.metadata()


def test_a_corrupt_image_is_an_error_or_skipped(root):
    index_folder(str(root))
    dataset = open_dataset(options(root))
    *_, offset, _ = dataset.val._where
    with open(root / "val" / "00.tar", "r+b") as file:
        file.seek(int(offset[1]))
        file.write(b"no image")
    os.utime(root / "val" / INDEX)
    with pytest.raises(DataError, match="corrupt image .*00.tar/a/0001.png"):
        batches(dataset, "val")
    read = batches(open_dataset(options(root, on_corrupt="skip")), "val")
    assert [batch["skipped"] for batch in read] == [1, 0] and read[0]["weight"].tolist() == [1, 0, 1, 1]


def test_an_index_of_other_shards_is_refused(root):
    assert "no index.safetensors" in (said := refused(root)) and "bignas_jax index" in said
    index_folder(str(root))
    open_dataset(options(root))
    shard, index = root / "train" / "05.tar", root / "train" / INDEX
    future = index.stat().st_mtime_ns + 10**9
    os.utime(shard, ns=(future, future))
    assert "is older than 05.tar" in refused(root)
    os.utime(index, ns=(future, future))  # as after a copy of both
    dataset = open_dataset(options(root))
    content = shard.read_bytes()
    shard.write_bytes(content[:-512])
    assert "is older than 05.tar" in refused(root)
    shard.write_bytes(bytes(512) + content[:-512])  # the same length, with everything moved
    with pytest.raises(DataError, match="the index does not fit"):
        batches(dataset, "train")
    shard.rename(root / "train" / "06.tar")
    assert "found 3 shards" in refused(root)


@pytest.mark.parametrize(
    "name, value, words",
    [
        ("offset", 1 << 40, "expected it to lie within"),
        ("offset", 0, "expected it to lie within"),
        ("size", (1 << 63) - 1, "expected it to lie within"),
        ("size", -1, "expected it to lie within"),
        ("file", 7, "files that it does not name"),
        ("file", -1, "files that it does not name"),
        ("labels", 3, "found the label 3 of image 2, expected 0 to 2"),
        ("labels", -1, "found the label -1"),
        ("ends", 1 << 40, "expected an index of tar shards"),
    ],
)
def test_an_index_that_points_elsewhere_is_refused(root, name, value, words):
    index_folder(str(root))
    path = root / "train" / INDEX
    about, arrays = header(path), safetensors.numpy.load(path.read_bytes())
    arrays[name] = arrays[name].copy()
    arrays[name][2] = value
    path.write_bytes(safetensors.numpy.save(arrays, about))
    assert words in refused(root)


@pytest.mark.parametrize(
    "content",
    [b"", b"{}", bytes(100), b"\x80\x04." * 9, safetensors.numpy.save({"names": np.zeros(3)}),
     safetensors.numpy.save({"names": np.zeros(3)}, {"bignas_jax": "[1]"})],
)  # fmt: skip
def test_what_is_no_index_is_refused(root, content):
    index_folder(str(root))
    (root / "train" / INDEX).write_bytes(content)
    assert "expected an index of tar shards" in refused(root)


def test_a_cut_or_damaged_shard_is_not_indexed(root):
    shard = root / "train" / "05.tar"
    content = shard.read_bytes()
    with tarfile.open(shard) as tar:
        third = tar.getmembers()[2].offset
    for damaged in (
        content[: third + 600],  # in the middle of an image
        content[: third],  # between two members
        content[: third + 100],  # in a header
        content[:third] + b"x" * 512 + content[third + 512 :],
        b"",
        b"no tar at all" * 100,
        b"\x1f\x8b" + content,
    ):
        shard.write_bytes(damaged)
        assert "05.tar" in not_indexed(root)
    shard.unlink()
    os.mkfifo(shard)
    assert "expected a file" in not_indexed(root)


@pytest.mark.parametrize(
    "members, words",
    [
        ({"a.jpg": b"x"}, "without a label"),
        ({"a.jpg": b"x", "a.png": b"x", "a.cls": b"0"}, "have one key"),
        ({"a.jpg": b"x", "a.cls": b"3"}, "found the label 3"),
        ({"a.jpg": b"x", "a.cls": b"-1"}, "holds the label -1"),
        ({"a.jpg": b"x", "a.cls": b"9" * 18}, "holds the label 9"),
        ({"a.jpg": b"x", "a.cls": b"dog"}, "found the class dog"),
        ({"a.jpg": b"x", "a.cls": b"\xff\xfe"}, "holds no text"),
        ({"a.jpg": b"x", "a.cls": b" "}, "holds no text"),
        ({"a.jpg": b"x", "a.cls": bytes(2 << 20)}, "expected a label of at most"),
        ({"a.jpg": b"x", "a.json": b'{"label": 1.5}'}, "found a label of type float"),
        ({"a.jpg": b"x", "a.json": b'{"label": '}, "not valid JSON"),
        ({"a.jpg": b"x", "a.json": b"[" * 9999}, "too many levels"),
        ({"a.jpg": b"x", "a.json": b"{}"}, "without a label"),
    ],
)
def test_labels_that_cannot_be_are_refused(root, members, words):
    with tarfile.open(root / "train" / "90.tar", "w") as tar:
        for name, content in members.items():
            add(tar, name, content)
    assert words in (said := not_indexed(root)) and ("90.tar" in said or "classes.txt" in said)


def test_a_huge_image_is_refused_by_its_header(root):
    member = tarfile.TarInfo("a.jpg")
    member.size = 5 << 30
    with open(root / "train" / "90.tar", "wb") as file:
        file.write(member.tobuf(tarfile.GNU_FORMAT))
        file.truncate(member.size + 2048)  # a hole: no space is taken
    assert "5,368,709,120 bytes, expected at most" in not_indexed(root)


@pytest.mark.parametrize(
    "names, words",
    [("ant\n../../x\ncat", "a path"), ("ant\n/etc\ncat", "a path"), ("ant\n\ncat", "1 to 1000"),
     ("ant\nbee\nant", "twice"), ("ant\nbee", "found the label 2")],
)  # fmt: skip
def test_names_of_classes_that_cannot_be_are_refused(root, names, words):
    (root / "classes.txt").write_text(names)
    assert words in not_indexed(root)
    (root / "classes.txt").unlink()
    (root / "classes.json").write_text(json.dumps(names.split("\n")))
    assert words in not_indexed(root)


def test_splits_of_the_same_shards_or_other_classes_are_refused(root):
    index_folder(str(root))
    assert "shares 3 files" in refused(root, val_split="train")
    (root / "val" / "classes.txt").write_text("ant\ncow\ncat")
    index_folder(str(root / "val"))
    assert "differ, such as bee and cow" in refused(root)
    assert "no tar files" in refused(root, val_split=".")
    assert "found No such file" in refused(root, val_split="nowhere")
