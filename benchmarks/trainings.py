"""Trainings of benchmarks: each is made once, goes on after an interruption, and is taken for no other one."""

import pathlib
from typing import Any

from bignas_jax.config.files import load_run_options
from bignas_jax.config.options import Options
from bignas_jax.config.phases import runs_of
from bignas_jax.errors import ConfigError
from bignas_jax.runs.folder import PHASES, begun
from bignas_jax.runs.identity import other_results
from bignas_jax.training.loop import train
from bignas_jax.training.origin import resolve


def train_once(options: Options, folder: pathlib.Path) -> list[dict[str, Any]]:
    """Trains in a folder, or goes on where a training stopped there, and gives the rows of the last evaluation.

    `train` lets a run go on with another loss or another schedule, and leaves a finished one as it is: its figures
    would stand under the name of what a benchmark asked for.

    Raises:
      ConfigError: the folder, or that of one of its phases, holds a training with other options, as far as they shape
        weights or accuracies.
    """
    for name, run in runs_of(options).items():
        part = folder / PHASES / name if name else folder
        if not begun(part):
            continue
        found = other_results(load_run_options(part / "config.json"), resolve(run, part))
        if found:
            raise ConfigError(
                f"{part} holds a training with other options ({'; '.join(found)}): move it away, or give another "
                "--workdir"
            )
    return train(options, folder)
