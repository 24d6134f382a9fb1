"""Files as no program wrote them: spoiled bytes, JSON that says something else, and things that are no files."""

import copy
import json
import os
import pathlib
import stat
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

DEEP = "[" * 100_000
HOSTILE = "\x1b]0;owned\x07\x1b[31m\n\r\u202e\x00 bee"

# In place of a value of any kind. All are what a JSON text can hold.
VALUES = (
    None, True, False, 0, -1, 1, 3, 0.5, -0.0, 1e308, 10**18, "", "0", "max", HOSTILE, "\ud800", "x" * 100_000,
    "../../etc/passwd", "os:system", ":", "a.b:c", [], [[]], {}, {"": 1}, [None], [1, "2"], {"a": {"b": [1]}},
    [1] * 5000, [[[[[[[[[[1]]]]]]]]]],
)  # fmt: skip
# Texts that stand in place of a value, and are no JSON of it.
TEXTS = ("NaN", "-Infinity", "1e999", "9" * 5000, "1" + "0" * 400, DEEP, "'a'", "01", "+1", "0x10", "nul", "undefined")
BYTES = (
    b"", b"\0", b" ", b"\n", b"\n\n\n", b"\xff\xfe", b"\xef\xbb\xbf", b"\x80" * 64, b"{", b"}", b"{}", b"[]", b"null",
    b"0", b'"a"', b"max", b"{}{}", b"[1,]", b'{"a": 1,}', b'{"a" 1}', b"// {}", b"<html>404</html>", b"PK\x03\x04" * 9,
    b"\x89PNG\r\n\x1a\n", HOSTILE.encode(), DEEP.encode(), b'{"a":' * 50_000, b'"' + b"\\u0000" * 999, b"\0" * 4096,
    b"version https://git-lfs.github.com/spec/v1\n", b"<<<<<<< HEAD\n{}\n=======\n[]\n>>>>>>> main\n",
)  # fmt: skip


def spoiled(rng: np.random.Generator, content: bytes) -> bytes:
    """The bytes, damaged as disks, transfers and editors damage them."""
    first, last = sorted(rng.integers(0, len(content) + 1, 2).tolist())
    other = bytes(rng.integers(0, 256, int(rng.integers(1, 9)), np.uint8))
    return [
        lambda: content[:last],
        lambda: content[first:],
        lambda: content[:first] + content[last:],
        lambda: content[:first] + other + content[first:],
        lambda: content[:first] + other + content[first + len(other) :],
        lambda: content[:first] + bytes(last - first) + content[last:],
        lambda: content + content,
        lambda: content.decode(errors="replace").encode("utf-16"),
        lambda: content[last:] + content[first:last] + content[:first],
        lambda: BYTES[rng.integers(len(BYTES))],
    ][rng.integers(10)]()


def warped(rng: np.random.Generator, value: Any) -> bytes:
    """The JSON of a value of which one place says something else, lacks, or stands twice."""
    value = copy.deepcopy(value)
    places = list(_places(value))
    if not places:
        return json.dumps(VALUES[rng.integers(len(VALUES))]).encode()
    owner, key = places[rng.integers(len(places))]
    kind = rng.integers(8)
    if kind == 0:
        del owner[key]
    elif kind == 1 and isinstance(owner, dict):
        owner[f"{key}{HOSTILE}"] = owner.pop(key)
    elif kind == 2 and isinstance(owner, dict):
        return json.dumps(value).replace(f"{json.dumps(key)}:", f"{json.dumps(key)}: 1, {json.dumps(key)}:", 1).encode()
    elif kind == 3:
        owner[key] = "@@"
        return json.dumps(value).replace('"@@"', TEXTS[rng.integers(len(TEXTS))], 1).encode()
    elif kind == 4:
        owner[key] = [owner[key], owner[key]]
    else:
        owner[key] = VALUES[rng.integers(len(VALUES))]
    return json.dumps(value).encode()


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Each place inside of a value: what holds it, and its key there."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield value, key
        yield from _places(inner)


def _closed(path: pathlib.Path) -> None:
    path.write_text("{}")
    path.chmod(0)


# What may lie in a file's place. A folder, a pipe that nobody writes to, links in circles and into nowhere, an endless
# device, a file without rights (which does not keep root from it), and one of 2 GB.
THINGS: dict[str, Callable[[pathlib.Path], Any]] = {
    "folder": lambda path: path.mkdir(),
    "pipe": lambda path: os.mkfifo(path),
    "circle": lambda path: path.symlink_to(path.name),
    "nowhere": lambda path: path.symlink_to("there-is-no-such-file"),
    "device": lambda path: path.symlink_to("/dev/zero"),
    "huge": lambda path: (path.touch(), os.truncate(path, 2 << 30)),
    "closed": _closed,
}


def listing(root: pathlib.Path) -> dict[str, tuple]:
    """What lies under a folder, with what a write would change: kind, size, time."""
    found = {}
    for folder, folders, files in os.walk(root):
        for name in (*folders, *files):
            status = os.lstat(os.path.join(folder, name))
            about = () if stat.S_ISDIR(status.st_mode) else (status.st_size, status.st_mtime_ns)
            found[os.path.join(folder, name)] = status.st_mode, *about
    return found
