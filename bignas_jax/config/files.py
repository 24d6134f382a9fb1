"""A config as text: the file that a run leaves in its folder, and the differences between two configs."""

import json
from pathlib import Path

from ml_collections import ConfigDict

from bignas_jax.config.declare import plain
from bignas_jax.config.fields import base, flat
from bignas_jax.config.options import Options
from bignas_jax.errors import ConfigError, FileError
from bignas_jax.files import parse_json, read_text


def with_defaults(config: ConfigDict) -> ConfigDict:
    """The config with the defaults of all fields that it does not have.

    A run's folder, or a recipe, may be older than a field.
    """
    values = config.to_dict()
    for name, default in flat(base()).items():
        *path, last = name.split(".")
        owner = values
        for part in path:
            owner = owner.setdefault(part, {}) if isinstance(owner, dict) else None
        if isinstance(owner, dict):  # else a value stands where a group should, which the checks name
            owner.setdefault(last, default)
    return ConfigDict(values)


def to_json(config: ConfigDict | Options) -> str:
    """A config or options as indented JSON. `from_json` is the inverse."""
    return json.dumps(config.to_dict(), indent=2) + "\n"


def from_json(text: str) -> ConfigDict:
    """The inverse of `to_json`, with tuples in place of lists. The config is locked and not validated.

    Raises:
      ConfigError: the text is not a JSON object.
    """
    try:
        values = parse_json(text)
    except FileError as error:
        raise ConfigError(f"config: {error}, expected what to_json wrote") from error
    if not isinstance(values, dict):
        raise ConfigError(f"config: found JSON of type {type(values).__name__}, expected an object")
    return ConfigDict(plain(values)).lock()


def differences(old: Options | ConfigDict, new: Options | ConfigDict) -> list[str]:
    """One line for each field that differs, such as 'config.optimizer.momentum: 0.9 -> 0.8'."""
    before, after = flat(old.to_dict()), flat(new.to_dict())
    lines = []
    for name in dict.fromkeys([*before, *after]):
        if name not in before or name not in after or before[name] != after[name]:
            a, b = (repr(side[name]) if name in side else "absent" for side in (before, after))
            lines.append(f"config.{name}: {a} -> {b}")
    return lines


def load_run_config(path: Path) -> ConfigDict:
    """The config.json of a run's folder, unlocked. Fields that are newer than the file have their defaults.

    Args:
      path: the path of the config.json.
    Raises:
      ConfigError: the file cannot be read, or it is not a config that training wrote.
    """
    try:
        return with_defaults(from_json(read_text(path)).unlock())
    except (ConfigError, FileError) as error:
        raise ConfigError(f"{path}: {error}") from error
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}, expected the config that training wrote") from error


def load_run_options(path: Path) -> Options:
    """The options of the config.json in a run's folder. Fields that are newer than the file have their defaults.

    Args:
      path: the path of the config.json.
    Raises:
      ConfigError: the file cannot be read, or it is not a config that training wrote.
    """
    try:
        return Options.of(load_run_config(path))
    except ConfigError as error:
        raise error if str(error).startswith(str(path)) else ConfigError(f"{path}: {error}") from error
