"""Checkpoints that a kill or a disk spoiled: they are cleared away, or kept in `damaged/`, so that a run goes on."""

import contextlib
import itertools
import json
import pathlib
import shutil
import sys

from bignas_jax.errors import CheckpointError
from bignas_jax.runs.stored import LIST, score_of


def clear_what_orbax_cannot_open(checkpoints: pathlib.Path, read_only: bool) -> None:
    """Removes what a killed save left, and moves files away whose damage would keep orbax from opening the folder.

    Args:
      checkpoints: the folder of all checkpoints of a run.
      read_only: move and remove nothing.
    Raises:
      CheckpointError: there are such files, and nothing may be moved.
    """
    for path in [] if read_only else checkpoints.glob("*.orbax-checkpoint-tmp*"):
        shutil.rmtree(path)
    for step in sorted(int(path.name) for path in checkpoints.glob("[0-9]*") if path.name.isdecimal()):
        folder = checkpoints / str(step)
        metrics, unreadable = folder / "metrics", False
        with contextlib.suppress(ValueError, OSError):
            unreadable = not isinstance(json.loads((folder / LIST).read_text()), dict)
        damaged = folder if unreadable else metrics
        if not unreadable and (score_of(folder) is not None or not (metrics / "metrics").exists()):
            continue
        if read_only:
            raise CheckpointError(f"{damaged} is damaged, and nothing may be changed here: move it out of the way")
        print(f"{damaged} is damaged, and was moved to {checkpoints.parent / 'damaged'}", file=sys.stderr)
        move_aside(damaged, checkpoints)


def move_aside(path: pathlib.Path, checkpoints: pathlib.Path) -> None:
    """Moves a folder to `damaged/`, under a name that is free there."""
    aside = checkpoints.parent / "damaged"
    aside.mkdir(exist_ok=True)
    name = "-".join(path.relative_to(checkpoints).parts)
    names = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
    path.rename(next(aside / free for free in names if not (aside / free).exists()))
