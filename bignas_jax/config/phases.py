"""The runs of a schedule of phases, as configs (Cai et al., 2020, Once-for-All, section 3.3: progressive shrinking).

`config.phases` names what comes before the run of the config itself. Each phase is a run on a part of the space. It
says in `largest` how many of the largest values of each kind of choice are open, gives its `epochs`, and may give other
fields anew. Whatever it does not give is as in the config. Phases are ordered by the numbers in their names. Each one
starts from the weights of the one before it, and the run itself from those of the last phase.
"""

import re
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from bignas_jax.config.declare import plain
from bignas_jax.config.names import FIELDS, flat, nearest
from bignas_jax.config.options import Options
from bignas_jax.errors import ConfigError
from bignas_jax.spaces.nesting import why_not_within
from bignas_jax.spaces.registry import space_of
from bignas_jax.spaces.space import KINDS, Space
from bignas_jax.spaces.staged import natural_key

PHASE = "phase:"  # before a phase's name, where a field names the folder of a run
# A phase may give these anew: fields, and groups of fields. All phases share the others.
OWN = (
    "epochs", "max_steps", "batch_size", "micro_batches", "remat", "model.dropout", "model.drop_connect", "sandwich.",
    "teacher.", "optimizer.", "data.augment.", "evaluation.", "checkpoint.", "log.",
)  # fmt: skip


def runs_of(options: Options) -> dict[str, Options]:
    """The options of each run of a schedule by the phase's name, in order; those of the run itself are under ''.

    Raises:
      ConfigError: as `configs_of` does.
    """
    if not options.phases:
        return {"": options}
    return {name: Options.of(values) for name, values in configs_of(options.to_dict()).items()}


def configs_of(config: Mapping[str, Any] | ConfigDict) -> dict[str, dict[str, Any]]:
    """The configs of a schedule's runs by the phase's name, in order; that of the run itself is under ''.

    Args:
      config: whose fields outside of `phases` are known to be good. Without phases it is that of one run.
    Raises:
      ConfigError: a phase is malformed, or leaves out choices of the phase before it; the message names the field.
    """
    values = plain(config)
    phases = values.pop("phases", {})
    if not isinstance(phases, Mapping):
        raise ConfigError(f"config.phases: found {phases!r}, expected a mapping of name to fields, or nothing")
    if not phases:
        return {"": values}
    _check_alone(values)
    names, whole = sorted(phases, key=natural_key), space_of(values["space"])
    found, last, space = {}, "", None
    for number, name in enumerate([*names, ""]):
        own, part = _phase(name, phases[name], values, whole) if name else (dict(values, phases=phases), whole)
        if number:
            _check_nested(last, space, name, part)
            own["init_from"] = PHASE + last
            if own["init_checkpoint"] != "best":
                own["init_checkpoint"] = "newest"  # a step is one of the run that the first phase starts from
        own["teacher"] = _teacher(name, phases.get(name, {}), own["teacher"], names[:number], names)
        found[name], last, space = own, name, part
    return found


def _check_nested(last: str, space: Space, name: str, part: Space) -> None:
    """Refuses a phase that leaves out choices which the phase before it trains."""
    reason = why_not_within(space, part)
    if reason is not None:
        raise ConfigError(
            f"config.phases.{name}.largest: found fewer choices than in {last} ({reason}), expected at least those: "
            "each phase opens more, in the order of the numbers in the names"
        )


def _check_alone(values: Mapping[str, Any]) -> None:
    """Refuses fields that contradict phases."""
    if values["arch"]:
        raise ConfigError("config.phases: found phases beside config.arch, expected none: a single child has no phases")
    if values["init_checkpoint"] == "none":
        raise ConfigError(
            "config.init_checkpoint: found 'none' with config.phases, expected newest, best or a step: each phase "
            "starts from the weights of the one before it"
        )


def _phase(name: str, given: Any, values: Mapping[str, Any], whole: Space) -> tuple[dict[str, Any], Space]:
    """The config of a phase, and its space."""
    where = f"config.phases.{name}"
    if not re.fullmatch(r"\w+", name):
        raise ConfigError(f"{where}: found the name {name!r}, expected letters, digits and _: it names a folder")
    if not isinstance(given, Mapping):
        raise ConfigError(f"{where}: found {given!r}, expected a group of fields")
    given = dict(given)
    space = _restricted(where, given.pop("largest", {}), whole)
    if "epochs" not in given:
        raise ConfigError(f"{where}.epochs: found nothing, expected {FIELDS['epochs'].expected}")
    own = plain(values) | {"space": plain(space.to_dict())}
    for field, value in flat(given).items():
        _check(where, field, value)
        *way, last = field.split(".")
        owner = own
        for part in way:
            owner = owner[part]
        owner[last] = FIELDS[field].canonical(value)
    return own, space


def _restricted(where: str, largest: Any, whole: Space) -> Space:
    """The part of the space that a phase trains."""
    if not isinstance(largest, Mapping) or not all(type(number) is int and number >= 1 for number in largest.values()):
        raise ConfigError(
            f"{where}.largest: found {largest!r}, expected numbers >= 1 of values to keep, by the kind of choice "
            f"({', '.join(KINDS)})"
        )
    try:
        return whole.restricted(largest=largest)
    except ValueError as error:
        raise ConfigError(f"{where}.{error}") from error


def _check(where: str, name: str, value: Any) -> None:
    """Refuses a field that a phase cannot give, or a value that it may not hold."""
    allowed = [field for field in FIELDS if field.startswith(OWN)]
    if name not in FIELDS:
        near = nearest(name, [*allowed, "largest"]).replace("config.", f"{where}.")
        raise ConfigError(f"{where}.{name}: found an unknown field{near}")
    if name not in allowed:
        raise ConfigError(f"{where}.{name}: found a field that all phases share, expected it as config.{name} alone")
    if not FIELDS[name].holds(value):
        raise ConfigError(f"{where}.{name}: found {value!r}, expected {FIELDS[name].expected}")


def _teacher(name: str, given: Any, teacher: dict[str, Any], earlier: list[str], names: list[str]) -> dict[str, Any]:
    """The teacher of a run. A phase that teaches by the config's own field teaches the runs after it alone.

    Args:
      name: of the run's phase.
      given: the phase's own fields.
      teacher: the fields of the teacher, with the phase's own among them.
      earlier: the phases before it.
      names: all phases.
    """
    source, own = teacher["source"], "source" in given.get("teacher", {})
    phase = source.removeprefix(PHASE)
    if not source.startswith(PHASE) or phase in earlier:
        return teacher
    if phase in names and not own:
        return teacher | {"source": ""}
    where, known = (f"phases.{name}.teacher", earlier) if own else ("teacher", names)
    listed = ", ".join(PHASE + other for other in known) or "none here"
    raise ConfigError(
        f"config.{where}.source: found {source!r}, expected an earlier phase ({listed}), a run's folder or an ONNX file"
    )
