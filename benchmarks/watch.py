"""What a process holds, read from /proc while it runs: memory, handles, threads, and the processes that it started."""

import contextlib
import dataclasses
import json
import os
import pathlib

PAGE = os.sysconf("SC_PAGE_SIZE")
POOL = "ts_pool_worker"  # threads that tensorstore starts and ends by its load, within a limit


@dataclasses.dataclass(frozen=True)
class Sample:
    """What a process holds at a moment.

    Attributes:
      at: how far it had come, such as its step.
      resident: bytes of memory.
      handles: open files, sockets and pipes.
      threads: of it, but those of tensorstore's pool.
      pooled: threads of that pool.
      processes: that it started, and that these started.
    """

    at: int
    resident: int
    handles: int
    threads: int
    pooled: int
    processes: int


def sample(pid: int, at: int) -> Sample | None:
    """What a process holds now; None if it has ended, or is about to."""
    proc = pathlib.Path(f"/proc/{pid}")
    try:
        handles, threads = len(os.listdir(proc / "fd")), _threads(proc)
        pooled = threads.count(POOL)
        held = Sample(at, resident(pid), handles, len(threads) - pooled, pooled, len(descendants(pid)))
    except OSError:
        return None
    return held if held.resident else None


def _threads(proc: pathlib.Path) -> list[str]:
    """The names of a process's threads."""
    names = []
    for path in (proc / "task").iterdir():
        with contextlib.suppress(OSError):  # it has just ended
            names.append((path / "comm").read_text().strip())
    return names


def resident(pid: int) -> int:
    """Bytes of memory that a process holds."""
    return int(pathlib.Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE


def descendants(pid: int) -> list[int]:
    """The processes that a process started, and that these started, and so on, as far as they run."""
    children: dict[int, list[int]] = {}
    for path in pathlib.Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, parent, *_ = path.read_text().rpartition(")")[2].split()
            if state != "Z":
                children.setdefault(int(parent), []).append(int(path.parent.name))
    found = list(children.get(pid, ()))
    for child in found:
        found += children.get(child, ())
    return found


def last_record(path: pathlib.Path) -> dict:
    """The last whole line of a file of JSON lines; empty without one."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - 8192))
            lines = file.read().rpartition(b"\n")[0].rsplit(b"\n", 1)
    except OSError:
        return {}
    return json.loads(lines[-1]) if lines[-1] else {}
