"""What lies in a run's folder."""

import json
import os
import pathlib

from bignas_jax.config.files import load_run_options
from bignas_jax.config.options import Options
from bignas_jax.errors import ConfigError


def steps(workdir: pathlib.Path) -> list[int]:
    """The steps of the checkpoints in a folder, ascending; weights that were imported are step 0."""
    found = [path for path in (workdir / "checkpoints").glob("[0-9]*") if path.name.isdecimal() and path.is_dir()]
    return sorted(int(path.name) for path in found)


def begun(workdir: pathlib.Path) -> bool:
    """Whether the folder holds a run with checkpoints."""
    return bool(steps(workdir)) and os.path.lexists(workdir / "config.json")


def trained(workdir: pathlib.Path) -> bool:
    """Whether the folder holds a run that has made steps."""
    return begun(workdir) and steps(workdir)[-1] > 0


def scored_step(workdir: pathlib.Path) -> int | None:
    """The step that the validation split was last scored at; None where none was."""
    try:
        return json.loads((workdir / "evaluation_val.json").read_text())["step"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def supernet_options(folder: str) -> Options:
    """The options of the run that `config.init_from` names.

    Raises:
      ConfigError: it is no run's folder.
    """
    path = pathlib.Path(folder) / "config.json"
    if not os.path.lexists(path):
        raise ConfigError(f"config.init_from: found no {path}, expected the folder of a run, such as exp/cifar10")
    return load_run_options(path)
