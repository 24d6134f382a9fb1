"""Files: writes that happen or do not, reads that trust nothing, lines of JSON, and locks."""

import contextlib
import fcntl
import io
import json
import math
import os
import pathlib
import select
import socket
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from bignas_jax.errors import ConfigError, FileError
from bignas_jax.text import tell

LARGEST = 1 << 30  # bytes of a file that is read as a whole
DEEPEST = 50  # levels of JSON: this package's files have less than ten
_PATIENCE = 10.0  # seconds that a pipe may be silent


def write_with(path: pathlib.Path, write: Callable[[pathlib.Path], None], shared: bool = False) -> None:
    """Has `write` make a temporary file beside `path`, which then takes its place: a reader never meets half a file.

    Args:
      path: the file.
      write: writes a file at the path that it is given.
      shared: whether several processes may write this file at once. Each then has a temporary file of its own, and
        only the user may read and write the result.
    Raises:
      OSError: the file cannot be written; it names `path`, and what was there stays.
    """
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        if shared:
            descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f"{path.name}.", suffix=".tmp")
            os.close(descriptor)
            temporary = pathlib.Path(name)
        write(temporary)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError) and error.errno is not None:
            # A full disk is found in the middle of a write, where the system's error names no file.
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


def write_text(path: pathlib.Path, text: str) -> None:
    """Writes a text file, whole or not at all."""
    write_with(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_bytes(path: pathlib.Path, content: bytes, shared: bool = False) -> None:
    """Writes a file, whole or not at all; `shared` as `write_with` takes it."""
    write_with(path, lambda temporary: temporary.write_bytes(content), shared)


def write_json(path: pathlib.Path, value: Any, indent: int | None = None) -> None:
    """Writes a value as JSON and a newline, whole or not at all.

    Raises:
      ValueError: the value holds a number that JSON has not, such as NaN.
    """
    write_text(path, json.dumps(value, indent=indent, allow_nan=False) + "\n")


def read_bytes(path: str | os.PathLike, largest: int = LARGEST) -> bytes:
    """The content of a file, or of a pipe whose other end writes.

    Raises:
      FileError: it is of another kind, such as a device, or larger than `largest` bytes.
      OSError: it cannot be read.
    """
    # A pipe that nobody writes to would be waited for without an end.
    with open(path, "rb", buffering=0, opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        status = os.fstat(file.fileno())
        if stat.S_ISFIFO(status.st_mode):
            return _from_pipe(file, largest)
        if not stat.S_ISREG(status.st_mode):
            raise FileError("found a device or a socket, expected a file")
        if status.st_size > largest:
            raise FileError(f"found {status.st_size:,} bytes, expected at most {largest:,}")
        return file.readall()


def check_regular(path: str | os.PathLike) -> None:
    """Refuses what is no file, before a library opens it and waits.

    Raises:
      FileError: it is a folder, a pipe, a device or the like.
      OSError: there is nothing, or it cannot be looked at.
    """
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode):
        raise FileError(f"found {'a folder' if stat.S_ISDIR(mode) else 'a pipe or a device'}, expected a file")


def _from_pipe(file: io.FileIO, largest: int) -> bytes:
    found = b""
    while len(found) <= largest and select.select([file], [], [], _PATIENCE)[0]:
        part = file.read(1 << 16)
        if not part:
            return found
        found += part
    raise FileError(f"found a pipe that gives no end, expected a file of at most {largest:,} bytes")


def read_text(path: str | os.PathLike) -> str:
    """The content of a text file in UTF-8. Raises as `read_bytes` does, and FileError for other bytes."""
    try:
        return read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise FileError(f"found bytes that are no text ({error}), expected UTF-8") from error


def read_json(path: str | os.PathLike) -> Any:
    """The value in a JSON file. Raises as `read_bytes` and `parse_json` do."""
    return parse_json(read_bytes(path))


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text.

    Raises:
      FileError: it is no JSON, a name stands twice in an object, a number is none that JSON has (NaN) or is beyond 64
        bits, or values are nested beyond DEEPEST levels.
    """
    try:
        value = json.loads(
            text, parse_constant=_number, parse_float=_number, parse_int=_integer, object_pairs_hook=_without_twins
        )
    except FileError:
        raise
    except RecursionError as error:
        raise FileError(f"found JSON of too many levels, expected at most {DEEPEST}") from error
    except ValueError as error:
        raise FileError(f"not valid JSON ({error})") from error
    level, levels = [value], 0
    while level := [inner for outer in level for inner in _inside(outer)]:
        levels += 1
        if levels > DEEPEST:
            raise FileError(f"found JSON of too many levels, expected at most {DEEPEST}")
    return value


def _inside(value: Any) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise FileError(f"not valid JSON (found the number {text[:40]}, expected a finite one)")
    return value


def _integer(text: str) -> int:
    if len(text) > 20 or not -(2**63) <= int(text) < 2**63:
        raise FileError(f"not valid JSON (found the number {text[:40]}, expected one of 64 bits)")
    return int(text)


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twin = next(name for name, _ in pairs if name in seen or seen.add(name))
        raise FileError(f"not valid JSON (found {twin[:40]!r} twice in an object, expected it once)")
    return found


def whole_lines(path: pathlib.Path) -> list[bytes]:
    """The lines of a file that end with a newline. The file stays as it is; nothing if there is none.

    A last line without its newline was cut short by a kill. Raises as `read_bytes` does.
    """
    try:
        data = read_bytes(path)
    except FileNotFoundError:
        return []
    return data[: data.rfind(b"\n") + 1].split(b"\n")[:-1]


def open_lines(path: pathlib.Path) -> io.FileIO:
    """Opens a file of JSON lines for `add_line`. A last line that a kill cut short is removed first.

    It has no buffer: a line that could not be written would otherwise be tried, and fail, once more at the end.
    """
    file = open(path, "a+b", buffering=0)
    size = file.tell()
    if size and os.pread(file.fileno(), 1, size - 1) != b"\n":
        file.truncate(sum(len(line) + 1 for line in whole_lines(path)))
    return file


def add_line(file: io.FileIO, value: Any, sync: bool = True) -> None:
    """Appends a line of JSON.

    Args:
      file: as `open_lines` gives it.
      value: of JSON's types.
      sync: whether it is on disk when this returns.
    Raises:
      ValueError: the value holds a number that JSON has not, such as NaN.
      OSError: the line cannot be written; it names the file.
    """
    left = json.dumps(value, allow_nan=False).encode() + b"\n"
    try:
        while left:
            left = left[file.write(left) :]
        if sync:
            os.fsync(file.fileno())
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(file.name)) from error


@contextlib.contextmanager
def locked(folder: pathlib.Path, work: str) -> Iterator[pathlib.Path]:
    """The folder, for one process at a time. The lock ends with its process, however that ends.

    On network file systems it holds as far as they pass on `flock`, as NFS 4 and Lustre do; others leave it local. A
    file system without locks is said in one line, and the work goes on.

    Args:
      work: in words, such as 'search', for the message of another process that comes meanwhile.
    Raises:
      ConfigError: another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(f"{folder}: {_holder(lock, work)}; wait for its end, or stop it") from error
        except OSError as error:
            tell(f"{folder}: cannot be locked ({error.strerror}); let no other {work} work in it")
        with contextlib.suppress(OSError):  # a full disk: a message will lack it
            os.truncate(lock.fileno(), 0)
            os.write(lock.fileno(), f"{work}, pid {os.getpid()} on {socket.gethostname()}".encode())
        yield folder


def _holder(lock: io.TextIOBase, work: str) -> str:
    """Who is at work, for the message: what it wrote into the lock, if it has come so far."""
    lock.seek(0)
    work, _, where = (lock.read(200) or work).partition(", ")
    return f"another {work} is at work in it" + (f" ({where})" if where else "")


@contextlib.contextmanager
def in_turn(path: pathlib.Path) -> Iterator[None]:
    """Within it, no other process that asks for its turn changes this file: it waits. For changes of moments."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # where nothing can be written, the change itself says so
            lock = stack.enter_context(open(path.with_name(f".{path.name}.lock"), "w"))
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
