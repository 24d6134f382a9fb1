"""Files that a kill leaves whole: writes that happen or do not, lines of JSON, and locks."""

import contextlib
import fcntl
import json
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

from bignas_jax.errors import ConfigError


def write_with(path: pathlib.Path, write: Callable[[pathlib.Path], None]) -> None:
    """Has `write` make a temporary file beside `path`, which then takes its place: a reader never meets half a file.

    Raises:
      OSError: the file cannot be written; what was there stays.
    """
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        write(temporary)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def write_text(path: pathlib.Path, text: str) -> None:
    """Writes a text file, whole or not at all."""
    write_with(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_json(path: pathlib.Path, value: Any, indent: int | None = None) -> None:
    """Writes a value as JSON and a newline, whole or not at all.

    Raises:
      ValueError: the value holds a number that JSON has not, such as NaN.
    """
    write_text(path, json.dumps(value, indent=indent, allow_nan=False) + "\n")


def whole_lines(path: pathlib.Path) -> list[bytes]:
    """The lines of a file that end with a newline; the file then ends with them. Nothing if there is no file.

    A last line without its newline was cut short by a kill.
    """
    if not path.exists():
        return []
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if len(whole) < len(data):
        with open(path, "r+b") as file:
            file.truncate(len(whole))
    return whole.splitlines()


def add_line(file: Any, value: Any, sync: bool = True) -> None:
    """Appends a line of JSON to an open text file.

    Args:
      sync: whether it is on disk when this returns.
    Raises:
      ValueError: the value holds a number that JSON has not, such as NaN.
    """
    file.write(json.dumps(value, allow_nan=False) + "\n")
    file.flush()
    if sync:
        os.fsync(file.fileno())


@contextlib.contextmanager
def locked(folder: pathlib.Path, work: str) -> Iterator[pathlib.Path]:
    """The folder, for one process at a time that does this work. The lock ends with its process, however that ends.

    On network file systems it holds as far as they pass on `flock`, as NFS 4 and Lustre do; others leave it local.

    Args:
      work: in words, such as 'search', for the message and the lock's name.
    Raises:
      ConfigError: another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ConfigError(f"{folder}: another {work} is at work in it; wait for its end, or stop it") from error
        yield folder
