"""The file of a search's evaluations. Each is appended as it is made, so that a killed search loses none."""

import base64
import contextlib
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from bignas_jax.errors import ConfigError, FileError
from bignas_jax.files import add_line, open_lines, parse_json, read_bytes, whole_lines
from bignas_jax.forms import check_form
from bignas_jax.spaces.architecture import Architecture

BEGINNING = b'{"identity": '
# By the part of an evaluation, what its record holds besides the architecture.
_SUMS = {"images": int, "top1_images": int, "top5_images": int, "loss_sum": (float, None), "seconds": float}
_BITS = _SUMS | {"correct": str}
FORMS = {
    "preview": _BITS,
    "preview_rest": _BITS,
    "first": _BITS,
    "rest": _SUMS,
    "val": {"images": int, "top1": float, "top5": float},
}


class Journal:
    """Records by (architecture, part), in a file of JSON lines. The first line says what all records depend on.

    A line that a kill cut short is dropped. A file that depends on something else (another checkpoint, other images)
    is renamed to a free name, not overwritten. When a later search depends on the same things as a renamed file, that
    file is used again.

    Args:
      path: the file.
      identity: what every record depends on, as JSON values.

    Attributes:
      set_aside: the new path of a file that depended on something else, or None.
      differences: the keys of the identity in which that file differed.

    Raises:
      ConfigError: the file was not written by a search; one line.
    """

    def __init__(self, path: pathlib.Path, identity: Mapping[str, Any]):
        self.path, self._records = path, {}
        self.set_aside: pathlib.Path | None = None
        self.differences: tuple[str, ...] = ()
        path.parent.mkdir(parents=True, exist_ok=True)
        identity = json.loads(json.dumps(dict(identity)))
        lines = _read(path)
        if lines and (there := _as_now(lines[0]["identity"], identity)) != identity:
            self.differences = tuple(k for k in {**there, **identity} if there.get(k) != identity.get(k))
            self.set_aside = _free_name(path)
            path.replace(self.set_aside)
            lines = []
        if not lines and (before := _with_identity(path, identity)):
            before.replace(path)
            lines = _read(path)
        for record in lines[1:]:
            self._records[_key(record)] = record
        self._file = open_lines(path)
        if not lines:
            self._write({"identity": identity})

    def find(self, arch: Architecture, part: str) -> dict[str, Any] | None:
        """The record of a part of an architecture's evaluation, or None."""
        return self._records.get((arch, part))

    def add(self, arch: Architecture, part: str, **values: Any) -> dict[str, Any]:
        """Appends a record and returns it. The record is on disk when this returns."""
        record = {"architecture": arch.to_dict(), "part": part, **values}
        self._write(record)
        self._records[arch, part] = record
        return record

    def __len__(self) -> int:
        return len(self._records)

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def _write(self, record: dict) -> None:
        add_line(self._file, record)


def _read(path: pathlib.Path) -> list[dict]:
    """The records in the complete lines of a file; none if there is no file.

    Raises:
      ConfigError: the file was not written by a search.
    """
    number = 1
    try:
        lines = whole_lines(path)
        if not lines and (data := _content(path)) and not data.startswith(BEGINNING[: len(data)]):
            raise FileError("no identity")
        found = []
        for number, line in enumerate(lines, 1):  # noqa: B007 - the message of an error names the line
            found.append(parse_json(line))
            _check(found[-1]) if number > 1 else check_form(found[-1], {"identity": {}})
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}, expected the evaluations of a search") from error
    except ValueError as error:
        raise ConfigError(_foreign(path, number, str(error))) from error
    return found


def _content(path: pathlib.Path) -> bytes:
    return read_bytes(path) if path.exists() else b""


def _check(record: Any) -> None:
    """Refuses a record that no search wrote.

    Raises:
      ValueError: the first thing that is wrong with it.
    """
    check_form(record, {"part": str, "architecture": {}})
    Architecture.from_dict(record["architecture"])
    if record["part"] not in FORMS:
        raise FileError(f"part: found {record['part']!r}, expected one of {', '.join(FORMS)}")
    check_form(record, FORMS[record["part"]])
    images = record["images"]
    if images < 1:
        raise FileError(f"images: found {images}, expected at least 1")
    most = {"top1": 1, "top5": 1, "top1_images": images, "top5_images": images, "seconds": 1e9}
    for name in most.keys() & record.keys():
        if not 0 <= record[name] <= most[name]:
            raise FileError(f"{name}: found {record[name]}, expected 0 to {most[name]}")
    if "correct" in record and len(_bytes(record["correct"])) != -(-images // 8):
        raise FileError(f"correct: found {len(_bytes(record['correct']))} bytes, expected a bit for each of {images}")


def _foreign(path: pathlib.Path, number: int, reason: str) -> str:
    return (
        f"{path} line {number}: found something that no search wrote ({reason}), expected a record of an evaluation: "
        "move the file away to search anew"
    )


def _as_now(there: Mapping[str, Any], identity: Mapping[str, Any]) -> dict[str, Any]:
    """What a file says that its records depend on, in the form of `identity`.

    Files from earlier versions say where the images lay, which decides nothing, and not what the validation images are.
    """
    data, there = there.get("data"), dict(there)
    if isinstance(data, dict):
        there["data"] = {name: value for name, value in data.items() if name != "root"}
    if "val" in identity:
        there.setdefault("val", identity["val"])
    return there


def _with_identity(path: pathlib.Path, identity: dict) -> pathlib.Path | None:
    """A file that was set aside earlier and has exactly this identity, or None."""
    for before in sorted(path.parent.glob(f"{path.stem}-*{path.suffix}")):
        with contextlib.suppress(ConfigError):
            lines = _read(before)
            if lines and _as_now(lines[0]["identity"], identity) == identity:
                return before
    return None


def _key(record: dict) -> tuple[Architecture, str]:
    return Architecture.from_dict(record["architecture"]), record["part"]


def _free_name(path: pathlib.Path) -> pathlib.Path:
    number = 1
    while (free := path.with_name(f"{path.stem}-{number}{path.suffix}")).exists():
        number += 1
    return free


def packed(bits: np.ndarray) -> str:
    """Bits, bool [N], as text."""
    return base64.b64encode(np.packbits(bits)).decode()


def unpacked(text: str, count: int) -> np.ndarray:
    """The inverse of `packed` for `count` bits."""
    return np.unpackbits(np.frombuffer(_bytes(text), np.uint8), count=count).astype(bool)


def _bytes(text: str) -> bytes:
    """Raises ValueError where the text is not what `packed` gives."""
    return base64.b64decode(text, validate=True)
