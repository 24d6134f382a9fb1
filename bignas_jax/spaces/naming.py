"""Architectures by name: the names that a user writes on the command line, and the names of a space's two ends."""

import pathlib
from collections.abc import Container, Sequence

from bignas_jax.errors import ConfigError
from bignas_jax.files import read_text
from bignas_jax.spaces.architecture import Architecture, json_value
from bignas_jax.spaces.space import Space


def extremes(space: Space) -> dict[str, Architecture]:
    """The biggest architecture under MAX and the smallest under MIN. If they are the same, it is under CHILD."""
    if space.size == 1:
        return {"CHILD": space.biggest}
    return {"MAX": space.biggest, "MIN": space.smallest}


def read_architectures(space: Space, names: Sequence[str], flag: str = "--arch") -> dict[str, Architecture]:
    """Architectures by name, from 'max', 'min', the path of a JSON file, or JSON itself.

    Each architecture has a name of its own, also if two files have the same name. MAX and MIN are always the two ends
    of the space, whatever the name of a file is.

    Args:
      space: the space that the architectures must be in.
      names: the names, as a user writes them.
      flag: the command line's flag that gave the names, for messages.
    Returns:
      Name to architecture, in the order of `names`.
    Raises:
      ConfigError: a file is missing or malformed, or an architecture is not in the space; one line that names it.
    """
    found = {}
    for name in names:
        label, text = name, name
        try:
            if name in ("max", "min"):
                arch = space.biggest if name == "max" else space.smallest
                found |= {label: known for label, known in extremes(space).items() if known == arch}
                continue
            if not name.lstrip().startswith("{"):
                path = pathlib.Path(name)
                # Searched children are all called architecture.json; their folder tells them apart.
                label = path.parent.name if path.stem == "architecture" and path.parent.name else path.stem
                text = read_text(path)
            else:
                label = f"given{sum(key.startswith('given') for key in found) + 1}"
            arch = space.read(json_value(text))
            space.check(arch)
        except OSError as error:
            raise ConfigError(
                f"{flag}: cannot read {name} ({error.strerror}), expected max, min, a JSON file, or JSON"
            ) from error
        except ValueError as error:
            raise ConfigError(f"{flag} {name}: {error}") from error
        found[_unused(label, {*found, *(end for end, known in extremes(space).items() if known != arch)})] = arch
    return found


def _unused(label: str, taken: Container[str]) -> str:
    number, free = 2, label
    while free in taken:
        free, number = f"{label}-{number}", number + 1
    return free
