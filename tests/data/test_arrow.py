"""Data sets that Hugging Face datasets saved: the same batches as a folder gives, and one line for what is wrong.

`saved/` was written by save_to_disk of datasets 5.2.0: the PNGs of `picture(seed, (8, 6))`, with the seed as `note`.
9 training rows of kinds seed % 3 were filtered (seed != 4) and shuffled before they were saved into two files; the
others are of the seeds 100 to 102.
"""

import json
import sys
from multiprocessing.reduction import ForkingPickler

import numpy as np
import pyarrow as pa
import pytest
from data_folders import CLASSES, data_options, make_folder, picture
from paths import ROOT

from bignas_jax.data import DataError, Loader, open_dataset
from bignas_jax.data.fingerprint import fingerprint

SAVED = ROOT / "tests" / "data" / "saved"
SHUFFLED = [7, 8, 2, 1, 5, 6, 3, 0]  # the notes, as datasets read them back

IMAGE, CLASS = {"_type": "Image"}, {"names": list(CLASSES), "_type": "ClassLabel"}


def options(root, **changes):
    return data_options(root, **{"source": "arrow"} | changes)


def save(folder, images, labels, features=None, rows=3, binary=None, compression=None, **columns):
    """A split as datasets lays it out: two Arrow files with `rows` rows a batch; an image is bytes, or a path."""
    folder.mkdir(parents=True, exist_ok=True)
    storage = [image if isinstance(image, dict | None) else {"bytes": image, "path": "a.jpg"} for image in images]
    kind = pa.struct({"bytes": binary or pa.binary(), "path": pa.string()})
    table = pa.table({"image": pa.array(storage, kind), "label": labels, **columns})
    files = [f"data-{i:05d}-of-00002.arrow" for i in range(2)]
    half = (len(images) + 1) // 2
    for name, part in zip(files, (table[:half], table[half:]), strict=True):
        how = pa.ipc.IpcWriteOptions(compression=compression)
        with pa.OSFile(str(folder / name), "wb") as file, pa.ipc.new_stream(file, table.schema, options=how) as stream:
            stream.write_table(part, max_chunksize=rows)
    (folder / "dataset_info.json").write_text(json.dumps({"features": features or {"image": IMAGE, "label": CLASS}}))
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in files]}))
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("images"), train=4, val=2)


@pytest.fixture(scope="module")
def contents(images):
    """The files of the folder's images and their labels, by split, in the folder's order."""
    dataset, found = open_dataset(data_options(images)), {}
    for split, source in (("train", dataset.train), ("val", dataset.val)):
        files = [(images / source.name(i)).read_bytes() for i in range(len(source))]
        found[split] = files, source.labels.tolist()
    return found


@pytest.fixture
def root(contents, tmp_path):
    for split, (files, labels) in contents.items():
        save(tmp_path / "set" / split, files, labels)
    return tmp_path / "set"


def refused(root, **changes) -> str:
    """The one line with which the data set is refused."""
    with pytest.raises(DataError) as error:
        open_dataset(options(root, **changes))
    assert "\n" not in str(error.value) and len(str(error.value)) < 1000
    return str(error.value)


def batches(dataset, split, train=False):
    loader = Loader(dataset, split, batch_size=4, train=train)
    return list(loader.epochs(start_step=0, stop_step=7) if train else loader.once())


def test_what_datasets_saved_is_read_image_by_image():
    dataset = open_dataset(options(SAVED, val_split="test"))
    assert dataset.class_names == CLASSES
    for source, seeds in ((dataset.train, SHUFFLED), (dataset.val, [100, 101, 102])):
        first = seeds[0] if seeds[0] == 100 else 0
        assert source.labels.tolist() == [(seed - first) % 3 for seed in seeds]
        for i, seed in enumerate(seeds):
            np.testing.assert_array_equal(source.load(i), np.asarray(picture(seed, (8, 6))))
    assert dataset.train.name(5) == str(SAVED / "train" / "data-00001-of-00002.arrow" / "000001")


@pytest.mark.parametrize("binary", [pa.binary(), pa.large_binary()])
def test_batches_are_those_of_the_same_pictures_in_a_folder(images, contents, tmp_path, binary):
    for split, (files, labels) in contents.items():
        save(tmp_path / split, files, labels, binary=binary)
    folder, saved = (open_dataset(o, seed=3) for o in (data_options(images, holdout=3), options(tmp_path, holdout=3)))
    assert saved.class_names == folder.class_names and saved.splits == folder.splits
    for split, train in (("train", True), ("train", False), ("holdout", False), ("val", False)):
        for ours, theirs in zip(batches(saved, split, train), batches(folder, split, train), strict=True):
            assert all(np.array_equal(ours[name], theirs[name]) for name in ("image", "label", "weight"))


def test_a_source_goes_to_workers_that_have_no_pyarrow(root, monkeypatch):
    dataset = open_dataset(options(root, max_pixels=1200))
    content = bytes(ForkingPickler.dumps(dataset.train))
    assert len(content) < 10_000  # places, no images
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    copy = ForkingPickler.loads(content)
    assert copy.max_pixels == 1200 and copy.name(7) == dataset.train.name(7)
    assert np.array_equal(copy.load(7), dataset.train.load(7)) and np.array_equal(copy.labels, dataset.train.labels)
    assert "found No module named pyarrow" in (said := refused(root)) and said.endswith("pip install pyarrow")


def test_the_fingerprint_knows_labels_and_sizes(root, contents):
    before = fingerprint(open_dataset(options(root)))
    assert fingerprint(open_dataset(options(root))) == before
    files, labels = contents["train"]
    for changed in ((files, [2, *labels[1:]]), ([files[0] + b"x", *files[1:]], labels)):
        save(root / "train", *changed)
        assert fingerprint(open_dataset(options(root))) != before


def test_columns_are_chosen_by_name_where_there_are_several(contents, tmp_path):
    for split, (files, labels) in contents.items():
        coarse = {"names": ["odd", "even"], "_type": "ClassLabel"}
        features = {"image": IMAGE, "label": CLASS, "half": coarse, "number": {"dtype": "int32", "_type": "Value"}}
        half, number = [i % 2 for i in labels], pa.array([i + 5 for i in labels], pa.int32())
        save(tmp_path / split, files, labels, features, half=half, number=number)
    said = refused(tmp_path)
    assert "label (ClassLabel), half (ClassLabel)" in said and "set config.data.label_column" in said
    assert open_dataset(options(tmp_path, label_column="half")).class_names == ("odd", "even")
    assert open_dataset(options(tmp_path, label_column="half")).train.labels.tolist() == [0] * 4 + [1] * 4 + [0] * 4
    numbers = open_dataset(options(tmp_path, label_column="number"))
    assert numbers.class_names == tuple(map(str, range(8))) and set(numbers.train.labels) == {5, 6, 7}
    assert "called image" in refused(tmp_path, label_column="image")
    assert "set config.data.image_column" in refused(tmp_path, image_column="label", label_column="label")


@pytest.mark.parametrize(
    "features, words",
    [
        ({"image": IMAGE}, "a ClassLabel or whole numbers once"),
        ({"label": CLASS}, "an Image once"),
        ({"image": {"feature": IMAGE, "_type": "List"}, "label": CLASS}, "image (List)"),
        ({"image": IMAGE, "label": {"dtype": "string", "_type": "Value"}}, "class_encode_column"),
        ({"image": IMAGE, "label": CLASS | {"names": ["ant", "ant"]}}, "twice"),
        ({"image": IMAGE, "label": CLASS | {"names": ["ant", "bee"]}}, "found the label 2"),
        ({"image": IMAGE, "class": CLASS}, "found no column class"),
        ({"image": IMAGE, "label": 7}, "label (no feature)"),
        ([IMAGE, CLASS], "found no features"),
    ],
)
def test_features_without_images_or_labels_are_refused(root, features, words):
    (root / "train" / "dataset_info.json").write_text(json.dumps({"features": features}))
    assert words in refused(root)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"labels": [0, 1, None, 2]}, "found no label in row 0"),  # of the second file
        ({"labels": [0, 1, -1, 2]}, "found the label -1 of image 2"),
        ({"labels": ["a", "b", "c", "d"]}, "of type string, expected whole numbers"),
        ({"images": [b"x", None, b"x", b"x"]}, "image 1 without bytes, and others with them"),
        ({"images": [None] * 4}, "neither bytes nor an absolute path of image 0"),
        ({"images": [{"bytes": None, "path": "a.jpg"}] * 4}, "path of image 0 (a.jpg)"),
        ({"images": [{"bytes": None, "path": "/nowhere/a.jpg"}] * 4}, "found no file /nowhere/a.jpg"),
        ({"compression": "zstd"}, "compressed"),
        ({"binary": pa.string(), "images": ["x"] * 4}, "expected struct<bytes: binary"),
        ({"images": [], "labels": pa.array([], pa.int64())}, "no images in"),
    ],
)
def test_rows_that_cannot_be_are_refused(root, changes, words):
    save(root / "train", **{"images": [b"x" * 99] * 4, "labels": [0, 1, 2, 0]} | changes)
    assert words in refused(root)


def test_images_kept_as_paths_are_read_from_their_files(images, contents, root):
    folder = open_dataset(data_options(images))
    for split, source in (("train", folder.train), ("val", folder.val)):
        kept = [{"bytes": None, "path": str(images / source.name(i))} for i in range(len(source))]
        save(root / split, kept, contents[split][1])
    dataset = open_dataset(options(root))
    for ours, theirs in zip(batches(dataset, "train", True), batches(folder, "train", True), strict=True):
        assert np.array_equal(ours["image"], theirs["image"]) and np.array_equal(ours["label"], theirs["label"])


def test_a_file_that_was_cut_off_is_refused_wherever(root):
    file = root / "train" / "data-00001-of-00002.arrow"
    content = file.read_bytes()
    for length in (*range(0, len(content), 97), len(content) - 8, len(content) - 1):
        file.write_bytes(content[:length])
        assert "data-00001-of-00002.arrow" in refused(root)


def test_a_damaged_file_is_refused_or_read_within_its_bounds(root):
    file, rng = root / "train" / "data-00001-of-00002.arrow", np.random.default_rng(0)
    content, messages = file.read_bytes(), 0
    for _ in range(150):
        damaged = bytearray(content)
        for place in rng.integers(0, 1500, 3):
            damaged[place] = rng.integers(256)
        file.write_bytes(damaged)
        try:
            source = open_dataset(options(root)).train
        except DataError as error:
            messages += "\n" not in str(error)
        else:
            number, offset, size = (array.numpy() for array in source._where)
            assert (offset >= 0).all() and (size >= 0).all() and (offset + size)[number == 1].max() <= len(content)
    assert messages > 50


def test_a_corrupt_image_is_an_error_or_skipped(root, contents):
    files, labels = contents["val"]
    save(root / "val", [files[0], b"no image", *files[2:]], labels)
    with pytest.raises(DataError, match="corrupt image .*data-00000-of-00002.arrow/000001"):
        batches(open_dataset(options(root)), "val")
    assert [batch["skipped"] for batch in batches(open_dataset(options(root, on_corrupt="skip")), "val")] == [1, 0]


@pytest.mark.parametrize(
    "state",
    [{}, {"_data_files": []}, {"_data_files": [{"filename": "../a.arrow"}]}, {"_data_files": [{"filename": 7}]},
     {"_data_files": ["a"]}, {"_data_files": 5}, {"_data_files": [{"filename": "nowhere.arrow"}]},
     {"_data_files": [{"filename": "data-00000-of-00002.arrow"}] * 2},
     {"_data_files": [{"filename": "a"}], "_indices_data_files": [{"filename": "indices.arrow"}]}, [], 7],
)  # fmt: skip
def test_a_state_that_names_no_files_is_refused(root, state):
    (root / "train" / "state.json").write_text(json.dumps(state))
    assert "train" in refused(root)


def test_a_folder_without_the_splits_is_refused(root, contents):
    assert "found the splits train, val" in refused(root, val_split="validation")
    assert "one data set without splits" in refused(root / "train")
    assert "no state.json" in refused(root / "nowhere")
    assert "shares 2 files" in refused(root, val_split="train")
    (root / "val" / "state.json").write_text("{")
    assert "not valid JSON" in refused(root)
    save(root / "val", *contents["val"], {"image": IMAGE, "label": CLASS | {"names": ["ant", "cow", "cat"]}})
    assert "differ, such as bee and cow" in refused(root)
