"""Data sets that Hugging Face datasets saved: <root>/<split>/ with state.json, dataset_info.json and Arrow files.

`save_to_disk` (github.com/huggingface/datasets) writes each split as streams in Arrow's IPC format, without
compression. The encoded bytes of an image lie there as they lay in its own file. pyarrow maps the files once and says
where each image begins. The images themselves are read later, as parts of these files, without pyarrow.
"""

import os
from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from bignas_jax.data.packed import (
    MOST_CLASSES,
    Packed,
    PackedSource,
    as_pair,
    check_class_names,
    check_labels,
    check_parts,
    sizes_and_places,
)
from bignas_jax.data.sources import FileSource, NamedSource, joined_names
from bignas_jax.errors import DataError, FileError
from bignas_jax.files import read_json
from bignas_jax.text import shown

STATE, INFO, SPLITS = "state.json", "dataset_info.json", "dataset_dict.json"

_END = b"\xff\xff\xff\xff\0\0\0\0"  # of a stream: Arrow's format, "IPC Streaming Format"
_SAVE = "save it again with a current release of datasets"


class Columns(NamedTuple):
    """The columns of the images and of the labels, and the names of the classes (none if only numbers are known)."""

    image: str
    label: str
    class_names: tuple[str, ...]


class _Part(NamedTuple):
    """The images of one batch of rows: offset and size in bytes (size -1: no bytes), labels, and paths."""

    offset: np.ndarray
    size: np.ndarray
    labels: np.ndarray
    paths: list[str | None]


def open_saved(
    root: str, train_split: str, val_split: str, image: str = "", label: str = ""
) -> tuple[tuple[str, ...], NamedSource, NamedSource]:
    """The class names, the training and the validation images of a data set that `save_to_disk` wrote.

    Args:
        root: the folder of the data set.
        train_split, val_split: folders in it.
        image, label: names of columns; empty means the only one.
    Raises:
        DataError: pyarrow is missing, a folder holds no saved split, its files are damaged or cut off, its columns hold
            no images or labels, or the two splits differ in their classes or share files.
    """
    try:
        import pyarrow
        import pyarrow.ipc  # noqa: F401 - a module of its own
    except ImportError as error:
        reason = "No module named pyarrow" if isinstance(error, ModuleNotFoundError) else shown(str(error))
        raise DataError(f"config.data.source=arrow: found {reason}, expected it: pip install pyarrow") from None
    return as_pair(*(_open(pyarrow, root, split, image, label) for split in (train_split, val_split)))


def _open(pyarrow: ModuleType, root: str, split: str, image: str, label: str) -> Packed:
    folder = os.path.join(root, split)
    files = _files(root, folder)
    columns = choose_columns(os.path.join(folder, INFO), _json(folder, INFO).get("features"), image, label)
    sizes, places = sizes_and_places(folder, files)
    names, numbers, parts = [], [], []
    for number, file in enumerate(files):
        of_file = list(_parts(pyarrow, os.path.join(folder, file), columns))
        rows = sum(len(part.size) for part in of_file)
        names.extend(f"{file}/{row:06d}" for row in range(rows))
        numbers.append(np.full(rows, number, np.int32))
        parts.extend(of_file)
    if not parts:
        raise DataError(f"no images in {shown(folder)}: set config.data.root and the splits")
    offset, size, labels = (np.concatenate([part[i] for part in parts]) for i in range(3))
    where = f"{shown(folder)}, column {shown(columns.label)}"
    check_labels(where, labels, len(columns.class_names) or MOST_CLASSES)
    labels, without = labels.astype(np.int32), size < 0
    if without.any():
        source = _from_paths(folder, columns.image, [path for part in parts for path in part.paths], without, labels)
        return Packed(columns.class_names, source, places)
    file = np.concatenate(numbers)
    check_parts(shown(folder), sizes, file, offset, size, tar=False)
    source = PackedSource.from_arrays(folder, files, False, *joined_names(names), labels, file, offset, size)
    return Packed(columns.class_names, source, places)


def _json(folder: str, name: str) -> dict[str, Any]:
    """What a JSON file of a saved data set holds. Raises DataError."""
    where = shown(os.path.join(folder, name))
    try:
        found = read_json(os.path.join(folder, name))
    except FileError as error:
        raise DataError(f"{where}: {error}") from None
    except OSError as error:
        raise DataError(f"{where} cannot be read ({error.strerror})") from None
    if not isinstance(found, dict):
        raise DataError(f"{where}: found no object, expected what save_to_disk of datasets writes")
    return found


def _files(root: str, folder: str) -> list[str]:
    """The names of the Arrow files of a split, in order.

    Raises:
        DataError: it is no saved split, or keeps its order apart, as old releases of datasets did.
    """
    if not os.path.isfile(os.path.join(folder, STATE)):
        there = [
            name for name in (sorted(os.listdir(root)) if os.path.isdir(root) else ())
            if os.path.isfile(os.path.join(root, name, STATE))
        ]  # fmt: skip
        found = f"the splits {', '.join(map(shown, there))}" if there else f"no {STATE}"
        if os.path.isfile(os.path.join(root, STATE)):
            found = "one data set without splits (make some by its train_test_split, and save them together)"
        raise DataError(
            f"{shown(folder)}: found {found}, expected <data.root>/<split>/{STATE}, as save_to_disk of datasets writes "
            "it: set config.data.root, config.data.train_split and config.data.val_split"
        )
    state, where = _json(folder, STATE), shown(os.path.join(folder, STATE))
    if state.get("_indices_data_files"):
        raise DataError(f"{where}: found rows that were filtered or moved without being written anew: {_SAVE}")
    entries = state.get("_data_files")
    files = [entry.get("filename") for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []
    if not files or any(not isinstance(name, str) or name != os.path.basename(name) or not name for name in files):
        raise DataError(f"{where}: found no list of Arrow files, expected _data_files of save_to_disk: {_SAVE}")
    if len(set(files)) < len(files):
        raise DataError(f"{where}: found a file twice, expected each once: {_SAVE}")
    return files


def choose_columns(path: str, features: object, image: str = "", label: str = "") -> Columns:
    """The columns of images and labels among the features of a data set.

    Args:
        path: the file that states the features, for messages.
        features: what each column is, as dataset_info.json has it.
        image, label: the columns to take; empty means the only one of features Image and ClassLabel. Without a
            ClassLabel, whole numbers in a column "label" or "labels" are taken.
    Raises:
        DataError: there is none, there are several, or the named one is something else.
    """
    if not isinstance(features, Mapping) or not features:
        raise DataError(f"{shown(path)}: found no features, expected what save_to_disk of datasets writes: {_SAVE}")
    kinds = {name: _kind(feature) for name, feature in features.items()}
    whole = [name for name, kind in kinds.items() if kind.removeprefix("u").startswith("int")]
    classes = [name for name, kind in kinds.items() if kind == "ClassLabel"]
    images = [name for name, kind in kinds.items() if kind == "Image"]
    by_name = [name for name in whole if name in ("label", "labels")]
    image = _one(path, kinds, image, "image", images, images, "an Image")
    label = _one(path, kinds, label, "label", classes or by_name, classes + whole, "a ClassLabel or whole numbers")
    names: tuple[str, ...] = ()
    if kinds[label] == "ClassLabel":
        names = check_class_names(f"{shown(path)}, column {shown(label)}", features[label].get("names"))
    return Columns(image, label, names)


def _kind(feature: object) -> str:
    """What a column is: ClassLabel, Image, or the type of a Value such as int64."""
    kind = feature.get("_type") if isinstance(feature, Mapping) else "no feature"
    return str(feature.get("dtype")) if kind == "Value" else str(kind)


def _one(path: str, kinds: dict[str, str], wanted: str, part: str, usual: list[str], possible: list[str], what: str):
    there = ", ".join(f"{shown(name)} ({shown(kind)})" for name, kind in kinds.items())
    if not wanted and len(usual) == 1:
        return usual[0]
    if wanted in possible:
        return wanted
    again = ", or make the labels one by dataset.class_encode_column" if part == "label" and not possible else ""
    raise DataError(
        f"{shown(path)}: found the columns {there}, expected {what} {'called ' + shown(wanted) if wanted else 'once'}: "
        f"set config.data.{part}_column{again}"
    )


def _parts(pyarrow: ModuleType, path: str, columns: Columns) -> Iterator[_Part]:
    """The batches of rows of an Arrow file that have any.

    Raises:
        DataError: it is damaged, cut off or compressed, or its columns hold something else than the features say.
    """
    where, first = shown(path), 0
    try:
        with pyarrow.memory_map(path) as mapped:
            content = mapped.read_buffer()
            if content.size < len(_END) or content.slice(content.size - len(_END)).to_pybytes() != _END:
                raise DataError(f"{where}: found no end of the stream, expected a whole Arrow file: it was cut off")
            only = _fields(pyarrow, where, content, columns)
            options = pyarrow.ipc.IpcReadOptions(included_fields=only, use_threads=False)
            for batch in pyarrow.ipc.open_stream(content, options=options):
                batch.validate()
                if len(batch):
                    yield _part(pyarrow, where, first, batch, columns, content)
                first += len(batch)
    except DataError:
        raise
    except (pyarrow.ArrowException, OSError, ValueError, KeyError, MemoryError, OverflowError) as error:
        reason = shown((str(error).splitlines() or [type(error).__name__])[0][:300])
        raise DataError(f"{where}: found {reason}, expected an Arrow file as save_to_disk writes it") from None


def _fields(pyarrow: ModuleType, where: str, content: Any, columns: Columns) -> list[int]:
    """The places of the two columns in the schema. Raises DataError if one holds something else."""
    schema, types = pyarrow.ipc.read_schema(content), pyarrow.types
    for name in (columns.image, columns.label):
        if len(schema.get_all_field_indices(name)) != 1:
            raise DataError(f"{where}: found no column {shown(name)}, expected it as {INFO} says: {_SAVE}")
    image, label = (schema.field(name).type for name in (columns.image, columns.label))
    has_bytes = types.is_struct(image) and image.get_field_index("bytes") >= 0
    inside = image.field("bytes").type if has_bytes else image
    if not has_bytes or not (types.is_binary(inside) or types.is_large_binary(inside)):
        raise DataError(
            f"{where}: found the column {shown(columns.image)} of type {shown(str(image))}, expected struct<bytes: "
            f"binary, path: string>: {_SAVE}"
        )
    if not types.is_integer(label):
        raise DataError(
            f"{where}: found the column {shown(columns.label)} of type {shown(str(label))}, expected whole numbers"
        )
    return sorted(schema.get_field_index(name) for name in (columns.image, columns.label))


def _part(pyarrow: ModuleType, where: str, first: int, batch: Any, columns: Columns, content: Any) -> _Part:
    """Where the images of a batch lie in the file; `first` is the number of its first row."""
    image, label = batch.column(columns.image), batch.column(columns.label)
    if label.null_count:
        row = first + int(np.argmax(label.is_null().to_numpy(zero_copy_only=False)))
        raise DataError(f"{where}: found no {shown(columns.label)} in row {row}, expected a class for each image")
    values = image.field("bytes")
    _, ends, data = values.buffers()
    wide = np.dtype(np.int64 if pyarrow.types.is_large_binary(values.type) else np.int32)
    ends = np.frombuffer(ends, wide, len(batch) + 1, values.offset * wide.itemsize).astype(np.int64)
    # Compressed contents are unpacked into memory of their own.
    begin = data.address - content.address if data is not None and data.size else 0
    if not 0 <= begin <= content.size:
        raise DataError(f"{where}: found compressed columns, expected an Arrow file as datasets writes it: {_SAVE}")
    size = np.diff(ends)
    empty = (image.is_null() if image.null_count else None, values.is_null() if values.null_count else None)
    for mask in empty:
        if mask is not None:
            size = np.where(mask.to_numpy(zero_copy_only=False), -1, size)
    has_paths = (size < 0).any() and image.type.get_field_index("path") >= 0
    paths = image.field("path").to_pylist() if has_paths else [None] * len(batch)
    return _Part(begin + ends[:-1], size, label.to_numpy(zero_copy_only=False).astype(np.int64), paths)


def _from_paths(folder: str, column: str, paths: list[str | None], without: np.ndarray, labels: np.ndarray):
    """The source of images that lie in files of their own, of which the data set keeps the paths alone.

    Raises:
        DataError: only some are kept so, one has no absolute path, or the first is not there.
    """
    where = f"{shown(folder)}, column {shown(column)}"
    row = int(np.argmin(without))
    if not without[row]:
        found = f"image {int(np.argmax(without))} without bytes, and others with them"
        raise DataError(f"{where}: found {found}, expected the bytes of all: {_SAVE}")
    for row, path in enumerate(paths):
        if not isinstance(path, str) or not os.path.isabs(path) or "\0" in path:
            raise DataError(
                f"{where}: found neither bytes nor an absolute path of image {row}"
                f"{f' ({shown(path[:200])})' if isinstance(path, str) else ''}, expected its bytes: {_SAVE}"
            )
    if not os.path.isfile(paths[0]):
        raise DataError(f"{where}: found no file {shown(paths[0])}, expected it, or the bytes of images: {_SAVE}")
    return FileSource.from_names(folder, paths, labels)
