"""What a run is, and whether a config is still that run's."""

import pathlib

import jax
from ml_collections import ConfigDict

from bignas_jax.config.files import differences, from_json, load_run_config, to_json, with_defaults
from bignas_jax.errors import ConfigError

# What a folder's checkpoints depend on; anything else may change when a run goes on.
FIXED_FIELDS = (
    "config.arch",
    "config.init_from",
    "config.init_checkpoint",
    "config.space.",
    "config.model.num_classes",
    "config.optimizer.name",
    # Images that were trained on must not become held-out ones.
    "config.data.source",
    "config.data.holdout",
)


def claim(workdir: pathlib.Path, config: ConfigDict, stop: int) -> None:
    """Writes the config into the run's folder, after a comparison with the one that is there.

    The config of a run that has made its `stop` steps stays as it is.

    Raises:
      ConfigError: the folder holds checkpoints of another search space or model (the message shows the differences),
        or cannot be written to.
    """
    path, first = workdir / "config.json", jax.process_index() == 0
    steps = [int(folder.name) for folder in (workdir / "checkpoints").glob("[0-9]*") if folder.name.isdigit()]
    if steps and path.exists():
        changes = differences(load_run_config(path), config)
        fatal = [line for line in changes if line.startswith(FIXED_FIELDS) or _changes_state(line)]
        if fatal:
            raise ConfigError(
                f"{workdir} holds a run of another config ({'; '.join(fatal)}): "
                "give another --workdir, or the config that the run was started with"
            )
        finished = max(steps) >= stop
        if changes and first:
            verb = "the run is finished and is not changed by" if finished else "continuing with a changed config:"
            print(f"{verb} {'; '.join(changes)}")
        if finished:
            return
    if not first:
        return
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".tmp")
        temporary.write_text(to_json(config))
        temporary.replace(path)
    except OSError as error:
        raise ConfigError(f"--workdir: cannot write to {workdir} ({error.strerror}), expected a folder") from error


def _changes_state(line: str) -> bool:
    """Whether a changed field adds or removes a part of the train state: the moving average or the momentum."""
    name, _, change = line.partition(": ")
    switched = change.split(" -> ")
    return name in ("config.optimizer.ema_decay", "config.optimizer.momentum") and "0.0" in switched


NETWORK_FIELDS = ("config.space.", "config.model.num_classes")
# Images that were trained on must not become held-out ones.
HELD_OUT_FIELDS = ("config.data.source", "config.data.train_split", "config.data.holdout")


def check_run(config: ConfigDict, workdir: str | pathlib.Path, fields: tuple[str, ...]) -> None:
    """Refuses a config that is not that of the run in some fields (by the beginnings of their names).

    Other strides or another activation would leave all shapes as they are, and evaluate a network that nobody trained.

    Raises:
      ConfigError: with the differences.
    """
    path = pathlib.Path(workdir) / "config.json"
    if not path.is_file():
        return
    changes = differences(with_defaults(from_json(path.read_text())), config)
    fatal = [line for line in changes if line.startswith(fields)]
    if fatal:
        raise ConfigError(f"{workdir} was trained with another config ({'; '.join(fatal)}): leave these as they were")
