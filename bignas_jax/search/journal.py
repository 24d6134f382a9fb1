"""The file of a search's evaluations. Each is appended as it is made, so that a killed search loses none."""

import base64
import contextlib
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from bignas_jax.errors import ConfigError
from bignas_jax.files import add_line, open_lines, whole_lines
from bignas_jax.spaces.architecture import Architecture

BEGINNING = b'{"identity": '


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
        if lines and lines[0]["identity"] != identity:
            there = lines[0]["identity"]
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
    if path.exists() and b"\n" not in (data := path.read_bytes()) and not data.startswith(BEGINNING[: len(data)]):
        raise ConfigError(_foreign(path, 1, "no identity"))
    found = []
    for number, line in enumerate(whole_lines(path), 1):
        try:
            record = json.loads(line)
            if number > 1:
                _key(record)
            elif not isinstance(record, dict) or not isinstance(record.get("identity"), dict):
                raise ValueError("no identity")
            found.append(record)
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(_foreign(path, number, str(error))) from error
    return found


def _foreign(path: pathlib.Path, number: int, reason: str) -> str:
    return (
        f"{path} line {number}: found something that no search wrote ({reason}), expected a record of an evaluation: "
        "move the file away to search anew"
    )


def _with_identity(path: pathlib.Path, identity: dict) -> pathlib.Path | None:
    """A file that was set aside earlier and has exactly this identity, or None."""
    for before in sorted(path.parent.glob(f"{path.stem}-*{path.suffix}")):
        with contextlib.suppress(ConfigError):
            lines = _read(before)
            if lines and lines[0]["identity"] == identity:
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
    return np.unpackbits(np.frombuffer(base64.b64decode(text), np.uint8), count=count).astype(bool)
