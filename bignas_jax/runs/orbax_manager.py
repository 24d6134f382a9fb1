"""orbax as a run uses it: which checkpoints it keeps, what it says, and how it tells of a disk that is full."""

import contextlib
import logging
import os
import pathlib
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any

import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from bignas_jax.errors import CheckpointError, SaveError
from bignas_jax.programs.processes import fail
from bignas_jax.runs.stored import reason

_NO_ROOM = re.compile(r"No space left|ENOSPC|quota|EDQUOT|Read-only file system|EROFS|Permission denied|EACCES", re.I)


class Manager(ocp.CheckpointManager):
    """orbax's, whose thread waits for the other processes before it says that a save failed: they would all hang."""

    def _wait_for_checkpointers(self, *arguments: Any) -> None:
        try:
            super()._wait_for_checkpointers(*arguments)
        except Exception as error:
            fail(_of_the_system(error, self.directory))
            raise


def _of_the_system(error: Exception, folder: pathlib.Path) -> Exception:
    """The error of the system, such as that of a full disk, with a folder in it.

    tensorstore tells of it in a ValueError. A write to an open file, such as orbax's own, raises it without a name.
    """
    if isinstance(error, OSError) and error.errno and not error.filename:
        return OSError(error.errno, error.strerror, str(folder))
    found = re.search(r"os_error_code='(\d+)'", str(error))
    return OSError(int(found[1]), os.strerror(int(found[1])), str(folder)) if found else error


def open_manager(folder: pathlib.Path, keep: int, read_only: bool, imported: bool) -> Manager:
    """The manager of a folder of checkpoints.

    Args:
      folder: of the checkpoints.
      keep: how many of the newest to keep, besides the best.
      read_only: refuse to save, create nothing.
      imported: whether step 0 holds imported weights, which are kept.
    Raises:
      CheckpointError: orbax cannot open the folder.
    """
    _hush()
    best = checkpoint_managers.BestN(
        get_metric_fn=lambda metrics: metrics["top1"], n=1, keep_checkpoints_without_metrics=False
    )
    steps = checkpoint_managers.CustomSteps([0] if imported else [])
    policy = dict(
        preservation_policy=checkpoint_managers.AnyPreservationPolicy(
            [checkpoint_managers.LatestN(keep), best, steps]
        ),
        best_fn=lambda metrics: metrics["top1"],
    )
    options = ocp.CheckpointManagerOptions(
        create=not read_only,
        read_only=read_only,
        enable_async_checkpointing=not read_only,
        **({} if read_only else policy),
    )
    try:
        return Manager(folder, options=options)
    except (ValueError, TypeError, KeyError) as error:  # what its own files hold has a form that it does not know
        raise CheckpointError(
            f"{folder} cannot be opened ({reason(error)}): move its newest checkpoint out of the way"
        ) from error


@contextlib.contextmanager
def writing(folder: pathlib.Path) -> Iterator[None]:
    """Turns what orbax raises for a disk that takes no more into one line.

    Raises:
      SaveError: there is no room in the folder, or it may not be written to.
      OSError: another error of the system, with the folder as its file if it had none.
    """
    try:
        yield
    except (OSError, ValueError, RuntimeError) as error:
        found = _NO_ROOM.search(str(error))
        if not found:
            named = _of_the_system(error, folder)
            if named is error:
                raise
            raise named from error
        raise SaveError(
            f"a checkpoint cannot be written to {folder} ({found[0]}); the steps in it are whole: make room, "
            "and the same command goes on from the newest"
        ) from error


def _hush() -> None:
    """Keeps orbax from telling on stderr what it raises as well.

    It reports every save and every scan of a folder, and a write that failed with tracebacks from each of its threads.
    """
    for commentator in ("absl", "asyncio"):
        logging.getLogger(commentator).setLevel(logging.CRITICAL)
    if getattr(sys.excepthook, "__name__", "") != _but_closed_loops.__name__:
        _hooks.append(sys.excepthook)
        sys.excepthook = _but_closed_loops


_hooks: list[Callable] = []


def _but_closed_loops(kind: type[BaseException], error: BaseException, traceback: Any) -> None:
    """What tensorstore's threads meet when the writes that they report to have failed is no news."""
    if not (kind is RuntimeError and str(error) == "Event loop is closed"):
        _hooks[-1](kind, error, traceback)
