"""The options of a run: one frozen dataclass for each group of fields, made once from the config.

Each field is declared here and nowhere else, with its default, its type, the values that it may hold and the words for
these values. The checks of a config, its defaults, `--help` and the messages are derived from the declaration. A recipe
must give the fields that have no default.
"""

import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import Any

from bignas_jax.config import declare
from bignas_jax.config.choices import (
    Costs,
    Crops,
    Losses,
    MemberSamplers,
    OnCollapse,
    OnCorrupt,
    OnDamage,
    Optimizers,
    Policies,
    Regularised,
    Schedules,
    Strategies,
)
from bignas_jax.config.declare import Field, Group


def _budgets(unit: str) -> Any:
    expected = f"{unit}: a number > 0, several as (300e6, 600e6), or () for none"
    return declare.option(tuple, lambda v: all(x > 0 for x in v), expected, ())


def _costs(default: Any = dataclasses.MISSING) -> Any:
    """One kind of cost, or several by commas."""
    expected = f"one of {', '.join(Costs)}, or two or three of them by commas"

    def ok(text: str) -> bool:
        names = text.split(",")
        return len(names) <= 3 and len(set(names)) == len(names) and all(name in list(Costs) for name in names)

    return declare.option(str, ok, expected, default)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model(Group, part="model"):
    """The supernet: its classes, its regularisation and its arithmetic."""

    num_classes: int = declare.integer(2)
    dropout: float = declare.rate(0.0)
    drop_connect: float = declare.rate(0.0)
    dtype: str = declare.one_of("float32", "bfloat16", default="float32")
    sync_batch_norm: bool = declare.switch(False)
    zero_gammas: bool = declare.switch(True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Augment(Group, part="data.augment"):
    """How training images are changed."""

    crop: str = declare.one_of(*Crops)
    crop_scale: tuple[float, ...] = declare.numbers(
        2, lambda v: 0 < v[0] <= v[1] <= 1, "two numbers > 0 and <= 1, ascending"
    )
    crop_ratio: tuple[float, ...] = declare.numbers(2, lambda v: 0 < v[0] <= v[1], "two numbers > 0, ascending")
    padding: int = declare.integer(0, below=10_000)
    flip: float = declare.fraction()
    policy: str = declare.one_of(*Policies)
    rand_ops: int = declare.integer(0, below=100)
    rand_magnitude: int = declare.option(int, lambda v: 0 <= v <= 30, "an integer from 0 to 30")
    color_jitter: tuple[float, ...] = declare.numbers(
        4,
        lambda v: min(v) >= 0 and v[3] <= 0.5,
        "four numbers >= 0 (brightness, contrast, saturation, hue <= 0.5)",
    )
    erasing: float = declare.fraction(0.0)
    mixup: float = declare.not_negative(0.0)
    cutmix: float = declare.not_negative(0.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data(Group, part="data"):
    """The images: where they are, and how they are prepared and read."""

    source: str = declare.text(
        ok=lambda v: bool(re.fullmatch(r"\w+", v)),
        expected="folder, tar, arrow, digits, or the name of a torchvision data set such as cifar10",
    )
    root: str = declare.text()
    train_split: str = declare.name()
    val_split: str = declare.name()
    image_column: str = declare.text("", expected="a column of the Arrow files, or nothing for the only one of images")
    label_column: str = declare.text("", expected="a column of the Arrow files, or nothing for the only one of classes")
    image_size: int = declare.integer(1, below=10_000)
    eval_resize: int = declare.integer(1, below=10_000)
    mean: tuple[float, ...] = declare.numbers(3, lambda v: all(0 <= x <= 1 for x in v), "three numbers from 0 to 1")
    std: tuple[float, ...] = declare.numbers(3, lambda v: all(x > 0 for x in v), "three numbers > 0")
    num_workers: int = declare.integer(0, below=1000)
    holdout: int = declare.integer(0)
    on_corrupt: str = declare.one_of(*OnCorrupt)
    max_pixels: int = declare.integer(1, 178_956_970)
    augment: Augment


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sandwich(Group, part="sandwich"):
    """The members of a step and their loss."""

    num_random: int = declare.integer(0, 2, below=1000)
    label_smoothing: float = declare.rate(0.0)
    members: str = declare.plugged(*MemberSamplers, default=MemberSamplers.SANDWICH.value)
    candidates: int = declare.integer(1, 3, below=1000)
    budget_macs: float = declare.not_negative(0.0)
    uniform_budgets: bool = declare.switch(False)
    predictor: str = declare.text(
        "", expected="the folder of a searched run, or nothing to score candidates by their loss"
    )
    loss: str = declare.plugged(*Losses, default=Losses.SOFT_CROSS_ENTROPY.value)
    student_weight: float = declare.positive(1.0)
    student_ramp: float = declare.fraction(0.0)
    student_start: float = declare.rate(0.0)
    regularised: str = declare.one_of(*Regularised, default=Regularised.BIGGEST.value)
    resolve_conflicts: bool = declare.switch(False)
    resolve_conflicts_after: float = declare.not_negative(0.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Teacher(Group, part="teacher"):
    """A frozen network from outside the run, whose predictions are learnt from beside the labels."""

    source: str = declare.text("", expected="a run's folder or an ONNX file whose logits teach, or nothing")
    arch: str = declare.text("max", bool, "max, min, a JSON file or JSON: the architecture of the run in source")
    checkpoint: str = declare.text(
        "newest", lambda v: bool(re.fullmatch(r"newest|best|\d+", v)), "newest, best or a step"
    )
    weight: float = declare.positive(1.0)
    label_weight: float = declare.not_negative(1.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optimizer(Group, part="optimizer"):
    """The update of a step, and the learning rate over the run."""

    name: str = declare.one_of(*Optimizers, default=Optimizers.SGD.value)
    learning_rate: float = declare.positive(0.1)
    schedule: str = declare.one_of(*Schedules, default=Schedules.COSINE.value)
    decay_rate: float = declare.number(lambda v: 0 < v <= 1, "> 0 and <= 1", 0.97)
    decay_epochs: float = declare.positive(2.4)
    staircase: bool = declare.switch(True)
    end_factor: float = declare.fraction(0.0)
    warmup_epochs: float = declare.not_negative(0.0)
    momentum: float = declare.rate(0.9)
    nesterov: bool = declare.switch(True)
    rmsprop_decay: float = declare.number(lambda v: 0 < v < 1, "> 0 and < 1", 0.9)
    rmsprop_eps: float = declare.positive(1e-3)
    adam_decay: float = declare.number(lambda v: 0 < v < 1, "> 0 and < 1", 0.999)
    adam_eps: float = declare.positive(1e-8)
    weight_decay: float = declare.not_negative(1e-5)
    clip_norm: float = declare.not_negative(0.0)
    clip_value: float = declare.not_negative(0.0)
    ema_decay: float = declare.rate(0.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Calibration(Group, part="calibration"):
    """The training images that set the batch-norm statistics of a child."""

    num_images: int = declare.integer(1, 4096)
    batch_size: int = declare.integer(1, 256)
    biased_variance: bool = declare.switch(False)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation(Group, part="evaluation"):
    """How, and how often in training, children are scored."""

    batch_size: int = declare.integer(1, 256)
    every_epochs: float = declare.positive(1.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Search(Group, part="search"):
    """A search: its strategy, its budgets, and how candidates are scored."""

    strategy: str = declare.plugged(*Strategies, default=Strategies.COARSE_TO_FINE.value)
    seed: int = declare.integer(0, 0)
    num_evaluations: int = declare.integer(1, 300)
    max_macs: tuple[float, ...] = _budgets("multiply-adds")
    max_params: tuple[float, ...] = _budgets("parameters")
    max_latency_ms: tuple[float, ...] = _budgets("milliseconds")
    min_macs: tuple[float, ...] = _budgets("multiply-adds")
    min_params: tuple[float, ...] = _budgets("parameters")
    min_latency_ms: tuple[float, ...] = _budgets("milliseconds")
    max_own: tuple[float, ...] = _budgets("what own_cost gives")
    min_own: tuple[float, ...] = _budgets("what own_cost gives")
    own_cost: str = declare.text(
        "",
        lambda v: not v or bool(re.fullmatch(r"[\w.]+:\w+", v)),
        "a function of your own as package.module:function, or nothing",
    )
    max_resolution: int = declare.integer(0, 0)
    cost: str = _costs(default=Costs.MACS.value)
    population: int = declare.integer(2, 32, below=100_000)
    mutation_probability: float = declare.fraction(0.1)
    first_part: float = declare.number(lambda v: 0 < v <= 1, "> 0 and <= 1, of the held-out images", 0.25)
    confidence: float = declare.not_negative(2.0)
    preview: bool = declare.switch(False)
    calibration_images: int = declare.integer(0, 0)
    quantized: bool = declare.switch(False)
    predictor: bool = declare.switch(False)
    predictor_pool: int = declare.integer(2, 4, below=1000)
    predictor_min_tau: float = declare.fraction(0.3)
    latency_batch_size: int = declare.integer(1, 1)
    latency_table: str = declare.text("", expected="the CSV of a device's times, or nothing to measure on this device")
    resident_gb: float = declare.not_negative(0.0)

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

    every_steps: int = declare.integer(1, 1000)
    keep: int = declare.integer(1, 3)
    on_damage: str = declare.one_of(*OnDamage, default=OnDamage.FALL_BACK.value)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Log(Group, part="log"):
    """How often metrics are logged, how many images, and to which services besides the run's folder."""

    every_steps: int = declare.integer(1, 50)
    images: int = declare.integer(0, 16, below=10_000)
    wandb: str = declare.text("", lambda v: v in ("", "offline", "online"), "offline or online, or nothing without W&B")
    mlflow: str = declare.text("", expected="a tracking URI such as http://HOST:5000, or nothing without MLflow")
    project: str = declare.text(
        "bignas_jax", lambda v: bool(v.strip()), "the project of W&B and the experiment of MLflow"
    )


def _is_address(text: str) -> bool:
    return bool(re.fullmatch(r"\S+:\d{1,5}", text)) and 0 < int(text.rpartition(":")[2]) < 2**16


@dataclasses.dataclass(frozen=True, kw_only=True)
class Distributed(Group, part="distributed"):
    """The processes of a run on several hosts."""

    coordinator: str = declare.text(
        "", lambda v: not v or _is_address(v), "host:port, or nothing for one process"
    )
    num_processes: int = declare.integer(1, 1)
    process_id: int = declare.integer(0, 0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(Group):
    """All options of a run.

    Attributes:
      space: the choices of the search space, as `registry.space_of` reads them: plain dictionaries and tuples.
      phases: the phases before the run, as `phases.configs_of` reads them: name to fields; none by default.
    """

    seed: int = declare.option(int, lambda v: 0 <= v < 2**32, "an integer >= 0 and < 2**32", 0)
    batch_size: int = declare.integer(1, 128)
    epochs: int = declare.integer(1, 10)
    arch: str = declare.text("", expected="max, min, a JSON file or JSON to train one child, or nothing for a supernet")
    init_from: str = declare.text("", expected="a run's folder for the first weights (with arch a slice), or nothing")
    init_checkpoint: str = declare.text(
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
    max_nonfinite_steps: int = declare.integer(1, 20)
    on_collapse: str = declare.one_of(*OnCollapse, default=OnCollapse.TELL.value)
    distributed: Distributed = Distributed()
    num_devices: int = declare.integer(0, 0)
    max_steps: int = declare.integer(0, 0)
    remat: bool = declare.switch(False)
    micro_batches: int = declare.integer(1, 1)
    deterministic: bool = declare.switch(False)
    space: Mapping[str, Any]
    phases: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """See `Group.to_dict`. A run without phases says nothing of them."""
        values = super().to_dict()
        return values if self.phases else {name: value for name, value in values.items() if name != "phases"}


def declared(group: type = Options, prefix: str = "") -> Iterator[tuple[str, Field, Any]]:
    """Every field but the space and the phases: its dotted name, its Field, its default or dataclasses.MISSING."""
    for name, field, inner, default in declare.members(group):
        if inner is not None:
            yield from declared(inner, f"{prefix}{name}.")
        elif field is not None:
            yield prefix + name, field, default
