"""What lies in a run's folder."""

import dataclasses
import json
import os
import pathlib

from bignas_jax.config.files import load_run_options
from bignas_jax.config.options import Options
from bignas_jax.config.phases import PHASE
from bignas_jax.errors import ConfigError

PHASES = "phases"  # the folder of the runs before a run, in its own folder


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


def located(options: Options, workdir: pathlib.Path) -> Options:
    """The options with folders in place of the phases that `init_from` and `teacher.source` name.

    A phase is named and not its folder, so that the folder of all can be moved.

    Args:
      options: of a run.
      workdir: its folder, in which the phases are, or which is one of them.
    """

    def folder(source: str) -> str:
        if not source.startswith(PHASE):
            return source
        beside = workdir.parent / source.removeprefix(PHASE)
        is_phase = workdir.parent.name == PHASES and beside.is_dir()
        return str(beside if is_phase else workdir / PHASES / beside.name)

    teacher = dataclasses.replace(options.teacher, source=folder(options.teacher.source))
    return dataclasses.replace(options, init_from=folder(options.init_from), teacher=teacher)


def supernet_options(folder: str) -> Options:
    """The options of the run that `config.init_from` names.

    Raises:
      ConfigError: it is no run's folder.
    """
    path = pathlib.Path(folder) / "config.json"
    if not os.path.lexists(path):
        raise ConfigError(f"config.init_from: found no {path}, expected the folder of a run, such as exp/cifar10")
    return load_run_options(path)
