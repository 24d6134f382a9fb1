"""The options of a run: one frozen dataclass for each group of fields, made once from the config.

Each field is declared here and nowhere else, with its default, its type, the values that it may hold and the words for
these values. The checks of a config, its defaults, `--help` and the messages are derived from the declaration. A recipe
must give the fields that have no default. The names that a config can choose, such as those of optimizers, are also
declared here, and all other code uses these enumerations.
"""

import dataclasses
import enum
import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, Self

from bignas_jax.errors import ConfigError


class Crops(enum.StrEnum):
    """Ways to crop a training image."""

    RESIZED = "resized"
    PADDED = "padded"
    NONE = "none"


class Policies(enum.StrEnum):
    """Policies that change the colours and shapes of training images."""

    NONE = "none"
    IMAGENET = "imagenet"
    CIFAR10 = "cifar10"
    SVHN = "svhn"
    RAND = "rand"


class OnCorrupt(enum.StrEnum):
    """Ways to handle an image that cannot be decoded."""

    ERROR = "error"
    SKIP = "skip"


class OnDamage(enum.StrEnum):
    """Ways to handle a damaged newest checkpoint."""

    FALL_BACK = "fall_back"
    REFUSE = "refuse"


class OnCollapse(enum.StrEnum):
    """Ways to handle a collapse: the losses of all members jump to the loss of guessing, and stay there."""

    TELL = "tell"
    STOP = "stop"


class Optimizers(enum.StrEnum):
    """Rules by which a step changes the weights."""

    SGD = "sgd"
    RMSPROP = "rmsprop"
    ADAMW = "adamw"


class Schedules(enum.StrEnum):
    """Ways in which the learning rate falls."""

    EXPONENTIAL = "exponential"
    COSINE = "cosine"


class Strategies(enum.StrEnum):
    """Ways to choose the architectures that a search scores."""

    COARSE_TO_FINE = "coarse_to_fine"
    EVOLUTION = "evolution"
    PARETO = "pareto"
    RANDOM = "random"
    AGEING_EVOLUTION = "ageing_evolution"
    ASNG = "asng"


class MemberSamplers(enum.StrEnum):
    """Rules by which the members of a step are chosen."""

    SANDWICH = "sandwich"
    BEST_UP = "best_up"
    WORST_UP = "worst_up"
    SINGLE = "single"
    SLICES = "slices"


class Losses(enum.StrEnum):
    """Losses of the members of a step."""

    SOFT_CROSS_ENTROPY = "soft_cross_entropy"
    LABELS = "labels"
    TRUSTED_TEACHER = "trusted_teacher"
    ALPHA_DIVERGENCE = "alpha_divergence"


class Regularised(enum.StrEnum):
    """The members of a sandwich that dropout and drop-connect act on."""

    BIGGEST = "biggest"
    ALL = "all"


class Costs(enum.StrEnum):
    """Kinds of cost. A search can limit each of them, and draws its front over one to three of them."""

    MACS = "macs"
    PARAMS = "params"
    LATENCY_MS = "latency_ms"
    OWN = "own"


@dataclasses.dataclass(frozen=True)
class Field:
    """The values that a field may hold.

    Attributes:
      kind: the type. A tuple holds numbers. A float may be given as an integer.
      ok: a further condition on the value.
      expected: type and condition in words, for messages and `--help`.
    """

    kind: type
    ok: Callable[[Any], bool]
    expected: str

    def holds(self, value: Any) -> bool:
        """Whether the field may hold this value."""
        return _has_type(self.kind, value) and self.ok(value)

    def canonical(self, value: Any) -> Any:
        """The value in the field's type: an integer becomes a float, or a list becomes a tuple of floats."""
        if not _has_type(self.kind, value):
            return value
        if self.kind is tuple:
            return tuple(float(v) for v in value)
        return float(value) if self.kind is float else value


def _has_type(kind: type, value: Any) -> bool:
    if kind is tuple:
        return isinstance(value, tuple | list) and all(_has_type(float, v) for v in value)
    if kind is float:  # an integer beyond all floats is not finite either
        return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < math.inf
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def _option(kind: type, ok: Callable[[Any], bool], expected: str, default: Any = dataclasses.MISSING) -> Any:
    """A field of a group. If it has no default, the recipe must give it."""
    return dataclasses.field(default=default, metadata={"field": Field(kind, ok, expected)})


def _integer(least: int, default: Any = dataclasses.MISSING, below: int = 2**31) -> Any:
    """An integer. It has an end, as what is counted up to it, or stored in 32 bits, would not."""
    words = f"an integer >= {least} and < {'2**31' if below == 2**31 else below}"
    return _option(int, lambda v: least <= v < below, words, default)


def _number(ok: Callable[[float], bool], expected: str, default: Any = dataclasses.MISSING) -> Any:
    return _option(float, ok, f"a number {expected}", default)


def _plugged(*names: str, default: Any = dataclasses.MISSING) -> Any:
    """A field for one of these names, or for a class of the user's own."""
    words = f"one of {', '.join(names)}, or a class of your own as package.module:Class"
    return _option(str, lambda v: v in names or bool(re.fullmatch(r"[\w.]+:\w+", v)), words, default)


def _positive(default: Any = dataclasses.MISSING) -> Any:
    return _number(lambda v: v > 0, "> 0", default)


def _not_negative(default: Any = dataclasses.MISSING) -> Any:
    return _number(lambda v: v >= 0, ">= 0", default)


def _fraction(default: Any = dataclasses.MISSING) -> Any:
    return _number(lambda v: 0 <= v <= 1, "from 0 to 1", default)


def _rate(default: Any = dataclasses.MISSING) -> Any:
    return _number(lambda v: 0 <= v < 1, ">= 0 and < 1", default)


def _numbers(length: int, ok: Callable[[tuple], bool], expected: str, default: Any = dataclasses.MISSING) -> Any:
    return _option(tuple, lambda v: len(v) == length and ok(v), expected, default)


def _budgets(unit: str) -> Any:
    expected = f"{unit}: a number > 0, several as (300e6, 600e6), or () for none"
    return _option(tuple, lambda v: all(x > 0 for x in v), expected, ())


def _costs(default: Any = dataclasses.MISSING) -> Any:
    """One kind of cost, or several by commas."""
    expected = f"one of {', '.join(Costs)}, or two or three of them by commas"

    def ok(text: str) -> bool:
        names = text.split(",")
        return len(names) <= 3 and len(set(names)) == len(names) and all(name in list(Costs) for name in names)

    return _option(str, ok, expected, default)


def _switch(default: Any = dataclasses.MISSING) -> Any:
    return _option(bool, lambda v: True, "True or False", default)


def _one_of(*names: str, default: Any = dataclasses.MISSING) -> Any:
    return _option(str, lambda v: v in names, "one of " + ", ".join(names), default)


def _text(default: Any = dataclasses.MISSING, ok: Callable[[str], bool] = lambda v: True,
          expected: str = "a string") -> Any:
    return _option(str, ok, expected, default)


def _name() -> Any:
    return _text(ok=bool, expected="a string that is not empty")


class Group:
    """Options that belong together. Each field is checked when the group is made.

    Attributes:
      prefix: the text before the names of its fields in a config, with the dot.

    Raises:
      ConfigError: a field has a value that it may not hold; the message names the field.
    """

    prefix: ClassVar[str] = ""

    def __init_subclass__(cls, part: str = ""):
        cls.prefix = f"{part}." if part else ""

    def __post_init__(self):
        for option in dataclasses.fields(self):
            field, value = option.metadata.get("field"), getattr(self, option.name)
            if field is not None and not field.holds(value):
                raise ConfigError(f"config.{self.prefix}{option.name}: found {value!r}, expected {field.expected}")

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Self:
        """The group from its part of a config. Values are brought to the types of their fields (`Field.canonical`).

        Args:
          values: a mapping or a ConfigDict. Fields that it does not have get their defaults.
        Raises:
          ConfigError: a field is missing or unknown, or has a value that it may not hold.
        """
        if not hasattr(values, "items"):
            raise ConfigError(f"config.{cls.prefix.removesuffix('.')}: found {values!r}, expected a group of fields")
        found, left = {}, dict(values.items())
        for name, field, inner, default in _members(cls):
            if name in left:
                value = left.pop(name)
                found[name] = field.canonical(value) if field else inner.of(value) if inner else plain(value)
            elif default is dataclasses.MISSING:
                others = "a group of fields" if inner else "the choices of a search space"
                expected = field.expected if field else others
                raise ConfigError(f"config.{cls.prefix}{name}: found nothing, expected {expected}")
        for name in left:
            raise ConfigError(f"config.{cls.prefix}{name}: found an unknown field")
        return cls(**found)

    def to_dict(self) -> dict[str, Any]:
        """The group as its part of a config: nested dictionaries, sorted by name as in a ConfigDict."""
        values = {option.name: getattr(self, option.name) for option in dataclasses.fields(self)}
        return {
            name: value.to_dict() if isinstance(value, Group) else plain(value)
            for name, value in sorted(values.items())
        }


def _members(group: type[Group]) -> Iterator[tuple[str, Field | None, type[Group] | None, Any]]:
    """Name, field, group type and default of each option of a group.

    An option is a field, or another group, or the space, or the phases. The field is None unless the option is a field,
    and the type is None unless it is a group.
    """
    for option in dataclasses.fields(group):
        inner = option.type if isinstance(option.type, type) and issubclass(option.type, Group) else None
        made = option.default_factory is not dataclasses.MISSING
        yield option.name, option.metadata.get("field"), inner, option.default_factory() if made else option.default


def plain(value: Any) -> Any:
    """A config, or a part of it, as dictionaries that are sorted by name, with tuples in place of lists."""
    if isinstance(value, Mapping) or hasattr(value, "items"):
        return {name: plain(v) for name, v in sorted(value.items(), key=lambda item: str(item[0]))}
    return tuple(plain(v) for v in value) if isinstance(value, list | tuple) else value


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model(Group, part="model"):
    """The supernet: its classes, its regularisation and its arithmetic."""

    num_classes: int = _integer(2)
    dropout: float = _rate(0.0)
    drop_connect: float = _rate(0.0)
    dtype: str = _one_of("float32", "bfloat16", default="float32")
    sync_batch_norm: bool = _switch(False)
    zero_gammas: bool = _switch(True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Augment(Group, part="data.augment"):
    """How training images are changed."""

    crop: str = _one_of(*Crops)
    crop_scale: tuple[float, ...] = _numbers(
        2, lambda v: 0 < v[0] <= v[1] <= 1, "two numbers > 0 and <= 1, ascending"
    )
    crop_ratio: tuple[float, ...] = _numbers(2, lambda v: 0 < v[0] <= v[1], "two numbers > 0, ascending")
    padding: int = _integer(0, below=10_000)
    flip: float = _fraction()
    policy: str = _one_of(*Policies)
    rand_ops: int = _integer(0, below=100)
    rand_magnitude: int = _option(int, lambda v: 0 <= v <= 30, "an integer from 0 to 30")
    color_jitter: tuple[float, ...] = _numbers(
        4,
        lambda v: min(v) >= 0 and v[3] <= 0.5,
        "four numbers >= 0 (brightness, contrast, saturation, hue <= 0.5)",
    )
    erasing: float = _fraction(0.0)
    mixup: float = _not_negative(0.0)
    cutmix: float = _not_negative(0.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data(Group, part="data"):
    """The images: where they are, and how they are prepared and read."""

    source: str = _text(
        ok=lambda v: bool(re.fullmatch(r"\w+", v)),
        expected="folder, tar, arrow, digits, or the name of a torchvision data set such as cifar10",
    )
    root: str = _text()
    train_split: str = _name()
    val_split: str = _name()
    image_column: str = _text("", expected="a column of the Arrow files, or nothing for the only one of images")
    label_column: str = _text("", expected="a column of the Arrow files, or nothing for the only one of classes")
    image_size: int = _integer(1, below=10_000)
    eval_resize: int = _integer(1, below=10_000)
    mean: tuple[float, ...] = _numbers(3, lambda v: all(0 <= x <= 1 for x in v), "three numbers from 0 to 1")
    std: tuple[float, ...] = _numbers(3, lambda v: all(x > 0 for x in v), "three numbers > 0")
    num_workers: int = _integer(0, below=1000)
    holdout: int = _integer(0)
    on_corrupt: str = _one_of(*OnCorrupt)
    max_pixels: int = _integer(1, 178_956_970)
    augment: Augment


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sandwich(Group, part="sandwich"):
    """The members of a step and their loss."""

    num_random: int = _integer(0, 2, below=1000)
    label_smoothing: float = _rate(0.0)
    members: str = _plugged(*MemberSamplers, default=MemberSamplers.SANDWICH.value)
    candidates: int = _integer(1, 3, below=1000)
    budget_macs: float = _not_negative(0.0)
    uniform_budgets: bool = _switch(False)
    predictor: str = _text("", expected="the folder of a searched run, or nothing to score candidates by their loss")
    loss: str = _plugged(*Losses, default=Losses.SOFT_CROSS_ENTROPY.value)
    regularised: str = _one_of(*Regularised, default=Regularised.BIGGEST.value)
    resolve_conflicts: bool = _switch(False)
    resolve_conflicts_after: float = _not_negative(0.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Teacher(Group, part="teacher"):
    """A frozen network from outside the run, whose predictions are learnt from beside the labels."""

    source: str = _text("", expected="a run's folder or an ONNX file whose logits teach, or nothing")
    arch: str = _text("max", bool, "max, min, a JSON file or JSON: the architecture of the run in source")
    checkpoint: str = _text("newest", lambda v: bool(re.fullmatch(r"newest|best|\d+", v)), "newest, best or a step")
    weight: float = _positive(1.0)
    label_weight: float = _not_negative(1.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optimizer(Group, part="optimizer"):
    """The update of a step, and the learning rate over the run."""

    name: str = _one_of(*Optimizers, default=Optimizers.SGD.value)
    learning_rate: float = _positive(0.1)
    schedule: str = _one_of(*Schedules, default=Schedules.COSINE.value)
    decay_rate: float = _number(lambda v: 0 < v <= 1, "> 0 and <= 1", 0.97)
    decay_epochs: float = _positive(2.4)
    staircase: bool = _switch(True)
    end_factor: float = _fraction(0.0)
    warmup_epochs: float = _not_negative(0.0)
    momentum: float = _rate(0.9)
    nesterov: bool = _switch(True)
    rmsprop_decay: float = _number(lambda v: 0 < v < 1, "> 0 and < 1", 0.9)
    rmsprop_eps: float = _positive(1e-3)
    adam_decay: float = _number(lambda v: 0 < v < 1, "> 0 and < 1", 0.999)
    adam_eps: float = _positive(1e-8)
    weight_decay: float = _not_negative(1e-5)
    clip_norm: float = _not_negative(0.0)
    clip_value: float = _not_negative(0.0)
    ema_decay: float = _rate(0.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Calibration(Group, part="calibration"):
    """The training images that set the batch-norm statistics of a child."""

    num_images: int = _integer(1, 4096)
    batch_size: int = _integer(1, 256)
    biased_variance: bool = _switch(False)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation(Group, part="evaluation"):
    """How, and how often in training, children are scored."""

    batch_size: int = _integer(1, 256)
    every_epochs: float = _positive(1.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Search(Group, part="search"):
    """A search: its strategy, its budgets, and how candidates are scored."""

    strategy: str = _plugged(*Strategies, default=Strategies.COARSE_TO_FINE.value)
    seed: int = _integer(0, 0)
    num_evaluations: int = _integer(1, 300)
    max_macs: tuple[float, ...] = _budgets("multiply-adds")
    max_params: tuple[float, ...] = _budgets("parameters")
    max_latency_ms: tuple[float, ...] = _budgets("milliseconds")
    min_macs: tuple[float, ...] = _budgets("multiply-adds")
    min_params: tuple[float, ...] = _budgets("parameters")
    min_latency_ms: tuple[float, ...] = _budgets("milliseconds")
    max_own: tuple[float, ...] = _budgets("what own_cost gives")
    min_own: tuple[float, ...] = _budgets("what own_cost gives")
    own_cost: str = _text(
        "",
        lambda v: not v or bool(re.fullmatch(r"[\w.]+:\w+", v)),
        "a function of your own as package.module:function, or nothing",
    )
    max_resolution: int = _integer(0, 0)
    cost: str = _costs(default=Costs.MACS.value)
    population: int = _integer(2, 32, below=100_000)
    mutation_probability: float = _fraction(0.1)
    first_part: float = _number(lambda v: 0 < v <= 1, "> 0 and <= 1, of the held-out images", 0.25)
    confidence: float = _not_negative(2.0)
    preview: bool = _switch(False)
    calibration_images: int = _integer(0, 0)
    quantized: bool = _switch(False)
    predictor: bool = _switch(False)
    predictor_pool: int = _integer(2, 4, below=1000)
    predictor_min_tau: float = _fraction(0.3)
    latency_batch_size: int = _integer(1, 1)
    latency_table: str = _text("", expected="the CSV of a device's times, or nothing to measure on this device")
    resident_gb: float = _not_negative(0.0)

    @property
    def costs(self) -> tuple[str, ...]:
        """The kinds of cost of the front. The first one is the axis of plots."""
        return tuple(self.cost.split(","))

    def uses(self, cost: Costs) -> bool:
        """Whether a budget or the front needs this kind of cost."""
        return cost in self.costs or bool(self.limits()[cost.value] or self.floors()[cost.value])

    def limits(self) -> dict[str, tuple[float, ...]]:
        """The limits by kind of cost. Position n of each is the n-th budget; a single value belongs to all budgets."""
        return {cost.value: getattr(self, f"max_{cost}") for cost in Costs}

    def floors(self) -> dict[str, tuple[float, ...]]:
        """The least that is asked for by kind of cost, in the form of `limits`."""
        return {cost.value: getattr(self, f"min_{cost}") for cost in Costs}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checkpoint(Group, part="checkpoint"):
    """How often the train state is saved, and how many checkpoints are kept."""

    every_steps: int = _integer(1, 1000)
    keep: int = _integer(1, 3)
    on_damage: str = _one_of(*OnDamage, default=OnDamage.FALL_BACK.value)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Log(Group, part="log"):
    """How often metrics are logged, how many images, and to which services besides the run's folder."""

    every_steps: int = _integer(1, 50)
    images: int = _integer(0, 16, below=10_000)
    wandb: str = _text("", lambda v: v in ("", "offline", "online"), "offline or online, or nothing without W&B")
    mlflow: str = _text("", expected="a tracking URI such as http://HOST:5000, or nothing without MLflow")
    project: str = _text("bignas_jax", lambda v: bool(v.strip()), "the project of W&B and the experiment of MLflow")


def _is_address(text: str) -> bool:
    return bool(re.fullmatch(r"\S+:\d{1,5}", text)) and 0 < int(text.rpartition(":")[2]) < 2**16


@dataclasses.dataclass(frozen=True, kw_only=True)
class Distributed(Group, part="distributed"):
    """The processes of a run on several hosts."""

    coordinator: str = _text(
        "", lambda v: not v or _is_address(v), "host:port, or nothing for one process"
    )
    num_processes: int = _integer(1, 1)
    process_id: int = _integer(0, 0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(Group):
    """All options of a run.

    Attributes:
      space: the choices of the search space, as `registry.space_of` reads them: plain dictionaries and tuples.
      phases: the phases before the run, as `phases.configs_of` reads them: name to fields; none by default.
    """

    seed: int = _option(int, lambda v: 0 <= v < 2**32, "an integer >= 0 and < 2**32", 0)
    batch_size: int = _integer(1, 128)
    epochs: int = _integer(1, 10)
    arch: str = _text("", expected="max, min, a JSON file or JSON to train one child, or nothing for a supernet")
    init_from: str = _text("", expected="a run's folder for the first weights (with arch a slice), or nothing")
    init_checkpoint: str = _text(
        "newest",
        lambda v: bool(re.fullmatch(r"newest|best|none|\d+", v)),
        "newest, best, a step, or none (the space of init_from with fresh weights)",
    )
    model: Model
    data: Data
    sandwich: Sandwich = Sandwich()
    teacher: Teacher = Teacher()
    optimizer: Optimizer = Optimizer()
    calibration: Calibration = Calibration()
    evaluation: Evaluation = Evaluation()
    search: Search = Search()
    checkpoint: Checkpoint = Checkpoint()
    log: Log = Log()
    max_nonfinite_steps: int = _integer(1, 20)
    on_collapse: str = _one_of(*OnCollapse, default=OnCollapse.TELL.value)
    distributed: Distributed = Distributed()
    num_devices: int = _integer(0, 0)
    max_steps: int = _integer(0, 0)
    remat: bool = _switch(False)
    micro_batches: int = _integer(1, 1)
    deterministic: bool = _switch(False)
    space: Mapping[str, Any]
    phases: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """See `Group.to_dict`. A run without phases says nothing of them."""
        values = super().to_dict()
        return values if self.phases else {name: value for name, value in values.items() if name != "phases"}


def declared(group: type = Options, prefix: str = "") -> Iterator[tuple[str, Field, Any]]:
    """Every field but the space and the phases: its dotted name, its Field, its default or dataclasses.MISSING."""
    for name, field, inner, default in _members(group):
        if inner is not None:
            yield from declared(inner, f"{prefix}{name}.")
        elif field is not None:
            yield prefix + name, field, default
