"""The fields of a config: their names, their defaults, and the checks of their values.

The fields themselves are declared in `options`, and the runs of a schedule made in `phases`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from bignas_jax.config.choices import Costs, Crops, Optimizers, Policies
from bignas_jax.config.declare import plain
from bignas_jax.config.names import FIELDS, flat, nearest
from bignas_jax.config.options import declared
from bignas_jax.config.phases import configs_of
from bignas_jax.errors import ConfigError
from bignas_jax.spaces.registry import space_of

# Position n of each is the n-th budget of a search. A single value belongs to all budgets.
BUDGETS = tuple(f"search.{end}_{cost}" for end in ("max", "min") for cost in Costs)


def base() -> ConfigDict:
    """A config of all fields that have a default. A recipe adds the others: `space`, `data` and `model.num_classes`."""
    values: dict[str, Any] = {}
    for name, _, default in declared():
        if default is not dataclasses.MISSING:
            *path, last = name.split(".")
            owner = values
            for part in path:
                owner = owner.setdefault(part, {})
            owner[last] = default
    return ConfigDict(values)


def _check_fields(config: ConfigDict) -> dict[str, Any]:
    """Checks each field on its own. Returns the values by name, without the fields of `space` and of `phases`."""
    values = {name: value for name, value in flat(config).items() if name.split(".")[0] not in ("space", "phases")}
    for name in values:
        if name not in FIELDS:
            raise ConfigError(f"config.{name}: found an unknown field" + nearest(name, FIELDS))
    for name, field in FIELDS.items():
        if name not in values:
            raise ConfigError(f"config.{name}: found nothing, expected {field.expected}")
        if not field.holds(values[name]):
            raise ConfigError(f"config.{name}: found {values[name]!r}, expected {field.expected}")
    return values


def _check_together(v: Mapping[str, Any]) -> None:
    """Refuses values that are possible each on its own but not together."""
    processes = v["distributed.num_processes"]
    budgets = max(len(v[name]) for name in BUDGETS)
    rules = (
        ("optimizer.nesterov", not v["optimizer.nesterov"] or v["optimizer.name"] == Optimizers.SGD,
         f"False with optimizer.name {v['optimizer.name']} (Nesterov's momentum goes with sgd)"),
        ("optimizer.warmup_epochs", v["optimizer.warmup_epochs"] < v["epochs"],
         f"less than epochs ({v['epochs']})"),
        ("sandwich.student_ramp", v["sandwich.student_start"] + v["sandwich.student_ramp"] <= 1 + 1e-9,
         f"at most what sandwich.student_start leaves ({1 - v['sandwich.student_start']:g})"),
        ("data.eval_resize", v["data.eval_resize"] >= v["data.image_size"],
         f"at least data.image_size ({v['data.image_size']})"),
        ("calibration.num_images", v["calibration.num_images"] >= v["calibration.batch_size"],
         f"at least calibration.batch_size ({v['calibration.batch_size']})"),
        ("data.augment.padding", v["data.augment.crop"] != Crops.PADDED or v["data.augment.padding"] >= 1,
         "at least 1 with data.augment.crop padded"),
        ("data.augment.rand_ops", v["data.augment.policy"] != Policies.RAND or v["data.augment.rand_ops"] >= 1,
         "at least 1 with data.augment.policy rand"),
        ("distributed.coordinator", bool(v["distributed.coordinator"]) or processes == 1,
         f"host:port with {processes} processes"),
        ("distributed.process_id", v["distributed.process_id"] < processes,
         f"less than distributed.num_processes ({processes})"),
        *((name, len(v[name]) in (0, 1, budgets), f"one value, or {budgets} as in the other budgets")
          for name in BUDGETS),
        ("search.own_cost", bool(v["search.own_cost"]) or not (
            Costs.OWN in v["search.cost"].split(",") or v["search.max_own"] or v["search.min_own"]),
         "package.module:function with search.max_own, search.min_own or a search.cost of own"),
        ("batch_size", v["batch_size"] % processes == 0,
         f"a multiple of distributed.num_processes ({processes})"),
        ("batch_size", v["batch_size"] % max(v["num_devices"], 1) == 0,
         f"a multiple of num_devices ({v['num_devices']})"),
        ("micro_batches", v["batch_size"] % (v["micro_batches"] * max(v["num_devices"], 1)) == 0,
         f"a divisor of the images of a step on each device ({v['batch_size'] // max(v['num_devices'], 1)})"),
    )
    for name, ok, expected in rules:
        if not ok:
            raise ConfigError(f"config.{name}: found {v[name]!r}, expected {expected}")


def validate(config: ConfigDict | Mapping[str, Any]) -> None:
    """Refuses a config that cannot work, before any work starts.

    Raises:
      ConfigError: a field is missing or unknown, has a wrong type or an impossible value, or contradicts another field.
    """
    values = _check_fields(config)
    if "space" not in config:
        raise ConfigError("config.space: found nothing, expected the choices of a search space")
    try:
        space_of(config["space"])
    except ValueError as error:
        raise ConfigError(f"config.{error}") from error
    _check_together(values)
    for name, own in configs_of(config).items():
        try:
            _check_together(_check_fields(own))
        except ConfigError as error:
            raise ConfigError(f"config.phases.{name}: with its fields, {error}") from error


def canonical(config: ConfigDict) -> ConfigDict:
    """A copy with floats in place of integers, where a field is a number, and tuples in place of lists."""
    result = plain(config)
    for name, field in FIELDS.items():
        *path, last = name.split(".")
        owner = result
        for part in path:
            owner = owner.get(part) if isinstance(owner, dict) else None
        if isinstance(owner, dict) and last in owner:
            owner[last] = field.canonical(owner[last])
    return ConfigDict(result)
