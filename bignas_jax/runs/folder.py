"""What lies in a run's folder."""

import pathlib

from ml_collections import ConfigDict

from bignas_jax.config.files import load_run_config
from bignas_jax.errors import ConfigError


def begun(workdir: pathlib.Path) -> bool:
    """Whether the folder holds a run with checkpoints."""
    steps = [path for path in (workdir / "checkpoints").glob("[0-9]*") if path.name.isdigit()]
    return bool(steps) and (workdir / "config.json").is_file()


def supernet_config(folder: str) -> ConfigDict:
    path = pathlib.Path(folder) / "config.json"
    if not path.is_file():
        raise ConfigError(f"config.init_from: found no {path}, expected the folder of a run, such as exp/cifar10")
    return load_run_config(path)
