"""Checkpoints that a kill or a disk spoiled: they are cleared away, or kept in `damaged/`, so that a run goes on."""

import contextlib
import itertools
import os
import pathlib
import shutil

from bignas_jax.errors import CheckpointError, FileError
from bignas_jax.files import read_json
from bignas_jax.forms import check_form
from bignas_jax.runs.stored import LIST, score_of
from bignas_jax.text import tell

_LIST_FORM = {
    "item_handlers": ({}, str, None),
    **dict.fromkeys(("metrics", "performance_metrics", "custom_metadata"), ({}, None)),
    **dict.fromkeys(("init_timestamp_nsecs", "commit_timestamp_nsecs"), (int, None)),
}


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
        metrics, unreadable = folder / "metrics", not folder.is_dir() or _stops_orbax(folder / LIST)
        damaged = folder if unreadable else metrics
        if not unreadable and (score_of(folder) is not None or not (metrics / "metrics").exists()):
            continue
        if read_only:
            raise CheckpointError(f"{damaged} is damaged, and nothing may be changed here: move it out of the way")
        tell(f"{damaged} is damaged, and was moved to {checkpoints.parent / 'damaged'}")
        move_aside(damaged, checkpoints)


def move_aside(path: pathlib.Path, checkpoints: pathlib.Path) -> None:
    """Moves a folder to `damaged/`, under a name that is free there."""
    aside = checkpoints.parent / "damaged"
    aside.mkdir(exist_ok=True)
    name = "-".join(path.relative_to(checkpoints).parts)
    names = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
    path.rename(next(aside / free for free in names if not (aside / free).exists()))


def _stops_orbax(path: pathlib.Path) -> bool:
    """Whether orbax would not open a folder of checkpoints because of this list of a checkpoint's items.

    One that is missing or no JSON does not matter to it.
    """
    if os.path.lexists(path) and not path.is_file():
        return True
    with contextlib.suppress(OSError, FileError):
        found = read_json(path)
        try:
            check_form(found, {})
            check_form(found, {name: form for name, form in _LIST_FORM.items() if name in found})
        except FileError:
            return True
    return False
