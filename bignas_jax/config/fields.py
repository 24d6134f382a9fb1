"""The fields of a config: what each may hold, the defaults of a run, and the file form."""

import dataclasses
import difflib
import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ml_collections import ConfigDict

from bignas_jax.errors import ConfigError
from bignas_jax.spaces.registry import space_of


@dataclasses.dataclass(frozen=True)
class Field:
    """What a field may hold: its type (a tuple is one of numbers), a further condition, and both in words."""

    kind: type
    ok: Callable[[Any], bool]
    expected: str


def _integer(least: int) -> Field:
    return Field(int, lambda v: v >= least, f"an integer >= {least}")


def _number(ok: Callable[[float], bool], expected: str) -> Field:
    return Field(float, ok, f"a number {expected}")


def _one_of(*names: str) -> Field:
    return Field(str, lambda v: v in names, "one of " + ", ".join(names))


def _budgets(unit: str) -> Field:
    return Field(tuple, lambda v: all(x > 0 for x in v),
                 f"{unit}: a number > 0, several as (300e6, 600e6), or () for none")


def _numbers(length: int, ok: Callable[[tuple], bool], expected: str) -> Field:
    return Field(tuple, lambda v: len(v) == length and ok(v), expected)


_POSITIVE = _number(lambda v: v > 0, "> 0")
_NOT_NEGATIVE = _number(lambda v: v >= 0, ">= 0")
_FRACTION = _number(lambda v: 0 <= v <= 1, "from 0 to 1")
_RATE = _number(lambda v: 0 <= v < 1, ">= 0 and < 1")
_SWITCH = Field(bool, lambda v: True, "True or False")
_TEXT = Field(str, lambda v: True, "a string")
_NAME = Field(str, lambda v: bool(v), "a string that is not empty")

# Every field but those of `space`, which the space's family checks.
FIELDS: dict[str, Field] = {
    "seed": Field(int, lambda v: 0 <= v < 2**32, "an integer >= 0 and < 2**32"),
    "batch_size": _integer(1),
    "epochs": _integer(1),
    "arch": Field(str, lambda v: True, "max, min, a JSON file or JSON to train one child, or nothing for a supernet"),
    "init_from": Field(str, lambda v: True, "the folder of a run, whose slice is the child's start, or nothing"),
    "init_checkpoint": Field(str, lambda v: bool(re.fullmatch(r"newest|best|none|\d+", v)),
                             "newest, best, a step, or none (the space of init_from with fresh weights)"),
    "model.num_classes": _integer(2),
    "model.dropout": _RATE,
    "model.drop_connect": _RATE,
    "model.dtype": _one_of("float32", "bfloat16"),
    "model.sync_batch_norm": _SWITCH,
    "data.source": Field(str, lambda v: bool(re.fullmatch(r"\w+", v)),
                         "folder, digits, or the name of a torchvision data set such as cifar10"),
    "data.root": _TEXT,
    "data.train_split": _NAME,
    "data.val_split": _NAME,
    "data.image_size": _integer(1),
    "data.eval_resize": _integer(1),
    "data.mean": _numbers(3, lambda v: all(0 <= x <= 1 for x in v), "three numbers from 0 to 1"),
    "data.std": _numbers(3, lambda v: all(x > 0 for x in v), "three numbers > 0"),
    "data.num_workers": _integer(0),
    "data.holdout": _integer(0),
    "data.on_corrupt": _one_of("error", "skip"),
    "data.augment.crop": _one_of("resized", "padded", "none"),
    "data.augment.crop_scale": _numbers(2, lambda v: 0 < v[0] <= v[1] <= 1,
                                        "two numbers > 0 and <= 1, ascending"),
    "data.augment.crop_ratio": _numbers(2, lambda v: 0 < v[0] <= v[1], "two numbers > 0, ascending"),
    "data.augment.padding": _integer(0),
    "data.augment.flip": _FRACTION,
    "data.augment.policy": _one_of("none", "imagenet", "cifar10", "svhn", "rand"),
    "data.augment.rand_ops": _integer(0),
    "data.augment.rand_magnitude": Field(int, lambda v: 0 <= v <= 30, "an integer from 0 to 30"),
    "data.augment.color_jitter": _numbers(4, lambda v: min(v) >= 0 and v[3] <= 0.5,
                                          "four numbers >= 0 (brightness, contrast, saturation, hue <= 0.5)"),
    "sandwich.num_random": _integer(0),
    "sandwich.label_smoothing": _RATE,
    "optimizer.name": _one_of("sgd", "rmsprop"),
    "optimizer.learning_rate": _POSITIVE,
    "optimizer.schedule": _one_of("exponential", "cosine"),
    "optimizer.decay_rate": _number(lambda v: 0 < v <= 1, "> 0 and <= 1"),
    "optimizer.decay_epochs": _POSITIVE,
    "optimizer.staircase": _SWITCH,
    "optimizer.end_factor": _FRACTION,
    "optimizer.warmup_epochs": _NOT_NEGATIVE,
    "optimizer.momentum": _RATE,
    "optimizer.nesterov": _SWITCH,
    "optimizer.rmsprop_decay": _number(lambda v: 0 < v < 1, "> 0 and < 1"),
    "optimizer.rmsprop_eps": _POSITIVE,
    "optimizer.weight_decay": _NOT_NEGATIVE,
    "optimizer.clip_norm": _NOT_NEGATIVE,
    "optimizer.ema_decay": _RATE,
    "calibration.num_images": _integer(1),
    "calibration.batch_size": _integer(1),
    "evaluation.batch_size": _integer(1),
    "evaluation.every_epochs": _POSITIVE,
    "search.strategy": _one_of("coarse_to_fine", "evolution", "pareto", "random"),
    "search.seed": _integer(0),
    "search.num_evaluations": _integer(1),
    "search.max_macs": _budgets("multiply-adds"),
    "search.max_params": _budgets("parameters"),
    "search.max_latency_ms": _budgets("milliseconds"),
    "search.max_resolution": _integer(0),
    "search.cost": _one_of("macs", "params", "latency_ms"),
    "search.population": _integer(2),
    "search.mutation_probability": _FRACTION,
    "search.first_part": _number(lambda v: 0 < v <= 1, "> 0 and <= 1, of the held-out images"),
    "search.confidence": _NOT_NEGATIVE,
    "search.calibration_images": _integer(0),
    "search.predictor": _SWITCH,
    "search.predictor_pool": _integer(2),
    "search.predictor_min_tau": _FRACTION,
    "search.latency_batch_size": _integer(1),
    "search.resident_gb": _NOT_NEGATIVE,
    "checkpoint.every_steps": _integer(1),
    "checkpoint.keep": _integer(1),
    "log.every_steps": _integer(1),
    "log.images": _integer(0),
    "max_nonfinite_steps": _integer(1),
    "distributed.coordinator": Field(str, lambda v: not v or bool(re.fullmatch(r".+:\d+", v)),
                                     "host:port, or nothing for one process"),
    "distributed.num_processes": _integer(1),
    "distributed.process_id": _integer(0),
    "num_devices": _integer(0),
    "max_steps": _integer(0),
    "remat": _SWITCH,
}


# Position n of each is the n-th budget of a search; a single value holds for all.
BUDGETS = ("search.max_macs", "search.max_params", "search.max_latency_ms")


def base() -> ConfigDict:
    """The fields that most recipes leave alone; a recipe adds `space`, `data` and `model.num_classes`."""
    return ConfigDict(dict(
        seed=0,
        batch_size=128,
        epochs=10,
        arch="",
        init_from="",
        init_checkpoint="newest",
        model=dict(dropout=0.0, drop_connect=0.0, dtype="float32", sync_batch_norm=False),
        sandwich=dict(num_random=2, label_smoothing=0.0),
        optimizer=dict(
            name="sgd", learning_rate=0.1, momentum=0.9, nesterov=True, rmsprop_decay=0.9, rmsprop_eps=1e-3,
            schedule="cosine", decay_rate=0.97, decay_epochs=2.4, staircase=True, end_factor=0.0,
            warmup_epochs=0.0, weight_decay=1e-5, clip_norm=0.0, ema_decay=0.0),
        calibration=dict(num_images=4096, batch_size=256),
        evaluation=dict(batch_size=256, every_epochs=1.0),
        search=dict(
            strategy="coarse_to_fine", seed=0, num_evaluations=300, max_macs=(), max_params=(), max_latency_ms=(),
            max_resolution=0, cost="macs", population=32, mutation_probability=0.1, first_part=0.25, confidence=2.0,
            calibration_images=0, predictor=False, predictor_pool=4, predictor_min_tau=0.3, latency_batch_size=1,
            resident_gb=0.0),
        checkpoint=dict(every_steps=1000, keep=3),
        log=dict(every_steps=50, images=16),
        max_nonfinite_steps=20,
        distributed=dict(coordinator="", num_processes=1, process_id=0),
        num_devices=0,
        max_steps=0,
        remat=False,
    ))




def flat(config: Mapping[str, Any] | ConfigDict, prefix: str = "") -> dict[str, Any]:
    """The values of a config by dotted name, in order."""
    values = {}
    for name, value in config.items():
        if isinstance(value, Mapping | ConfigDict) and value:
            values.update(flat(value, f"{prefix}{name}."))
        else:
            values[prefix + name] = value
    return values


def nearest(name: str, names: Iterable[str]) -> str:
    """', did you mean config.<one of names>?', or nothing where none is near."""
    close = difflib.get_close_matches(name, list(names), n=1)
    return f", did you mean config.{close[0]}?" if close else ""


def _has_type(kind: type, value: Any) -> bool:
    if kind is tuple:
        return isinstance(value, tuple | list) and all(_has_type(float, v) for v in value)
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def _check_fields(config: ConfigDict) -> dict[str, Any]:
    """The values by name, without `space`'s, after a check of each on its own."""
    values = {name: value for name, value in flat(config).items() if name.split(".")[0] != "space"}
    for name in values:
        if name not in FIELDS:
            raise ConfigError(f"config.{name}: found an unknown field" + nearest(name, FIELDS))
    for name, field in FIELDS.items():
        if name not in values:
            raise ConfigError(f"config.{name}: found nothing, expected {field.expected}")
        if not _has_type(field.kind, values[name]) or not field.ok(values[name]):
            raise ConfigError(f"config.{name}: found {values[name]!r}, expected {field.expected}")
    return values


def _check_together(v: Mapping[str, Any]) -> None:
    """Refuses values that are possible one by one but not together."""
    processes = v["distributed.num_processes"]
    budgets = max(len(v[name]) for name in BUDGETS)
    rules = (
        ("init_from", not v["init_from"] or bool(v["arch"]), "nothing without config.arch, the child to take from it"),
        ("optimizer.nesterov", not v["optimizer.nesterov"] or v["optimizer.name"] == "sgd",
         f"False with optimizer.name {v['optimizer.name']} (Nesterov's momentum goes with sgd)"),
        ("optimizer.warmup_epochs", v["optimizer.warmup_epochs"] < v["epochs"],
         f"less than epochs ({v['epochs']})"),
        ("data.eval_resize", v["data.eval_resize"] >= v["data.image_size"],
         f"at least data.image_size ({v['data.image_size']})"),
        ("calibration.num_images", v["calibration.num_images"] >= v["calibration.batch_size"],
         f"at least calibration.batch_size ({v['calibration.batch_size']})"),
        ("data.augment.padding", v["data.augment.crop"] != "padded" or v["data.augment.padding"] >= 1,
         "at least 1 with data.augment.crop padded"),
        ("data.augment.rand_ops", v["data.augment.policy"] != "rand" or v["data.augment.rand_ops"] >= 1,
         "at least 1 with data.augment.policy rand"),
        ("distributed.coordinator", bool(v["distributed.coordinator"]) or processes == 1,
         f"host:port with {processes} processes"),
        ("distributed.process_id", v["distributed.process_id"] < processes,
         f"less than distributed.num_processes ({processes})"),
        *((name, len(v[name]) in (0, 1, budgets), f"one value, or {budgets} as in the other budgets")
          for name in BUDGETS),
        ("batch_size", v["batch_size"] % processes == 0,
         f"a multiple of distributed.num_processes ({processes})"),
        ("batch_size", v["batch_size"] % max(v["num_devices"], 1) == 0,
         f"a multiple of num_devices ({v['num_devices']})"),
    )
    for name, ok, expected in rules:
        if not ok:
            raise ConfigError(f"config.{name}: found {v[name]!r}, expected {expected}")


def validate(config: ConfigDict) -> None:
    """Refuses a config that cannot work, before any work starts.

    Raises:
      ConfigError: a field is missing, unknown, of the wrong type, impossible, or at odds with another.
    """
    values = _check_fields(config)
    if "space" not in config:
        raise ConfigError("config.space: found nothing, expected the choices of a search space")
    try:
        space_of(config["space"])
    except ValueError as error:
        raise ConfigError(f"config.{error}") from error
    _check_together(values)


def canonical(config: ConfigDict) -> ConfigDict:
    """A copy in which integers in number fields are floats and lists are tuples; other values as they are."""
    result = _tupled(config)
    for name, field in FIELDS.items():
        *path, last = name.split(".")
        owner = result
        for part in path:
            owner = owner.get(part) if isinstance(owner, dict) else None
        value = owner.get(last) if isinstance(owner, dict) else None
        if value is None or not _has_type(field.kind, value):
            continue
        if field.kind is float:
            owner[last] = float(value)
        elif field.kind is tuple:
            owner[last] = tuple(float(v) for v in value)
    return ConfigDict(result)


def _tupled(value: Any) -> Any:
    if isinstance(value, Mapping | ConfigDict):
        return {name: _tupled(v) for name, v in value.items()}
    return tuple(_tupled(v) for v in value) if isinstance(value, list | tuple) else value






