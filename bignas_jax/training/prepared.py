"""What a sampler of members prepares once for a run. It is kept in the run's folder."""

import pathlib
from typing import Any

from bignas_jax.errors import FileError
from bignas_jax.files import read_json, write_json
from bignas_jax.programs.processes import gather, own_index
from bignas_jax.spaces.space import Space
from bignas_jax.step.members.registry import members_class
from bignas_jax.step.recipe import Recipe

FILE = "members.json"


def prepared(workdir: pathlib.Path, space: Space, recipe: Recipe) -> Any:
    """What the sampler of this recipe prepares, see `Members`; None if it prepares nothing. It is equal on all hosts.

    The first process reads it from the run's folder, or has it made.

    Args:
      workdir: the run's folder.
      space: the search space.
      recipe: the settings of the step.
    Raises:
      ConfigError: there is no such sampler, or it cannot work with these settings.
    """
    prepare = getattr(members_class(space, recipe.members), "prepare", None)
    if prepare is None:
        return None
    return gather(prepare(space, recipe, _read(workdir / FILE)) if own_index() == 0 else None)[0]


def keep(workdir: pathlib.Path, made: Any) -> None:
    """Writes what `prepared` gave into the run's folder, if there is something and it is not there yet."""
    if made is not None and own_index() == 0 and made != _read(workdir / FILE):
        write_json(workdir / FILE, made)


def _read(path: pathlib.Path) -> Any:
    """The value in the file; None if there is none, or it cannot be read: it is made again then."""
    try:
        return read_json(path)
    except (OSError, FileError):
        return None
