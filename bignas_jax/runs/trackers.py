"""Metrics to services beside the run's own files: Weights & Biases, and MLflow (config.log.wandb, config.log.mlflow).

A tracker works in a thread of its own, so that a slow server does not hold a step up. A service that fails ends its
tracker with one line, and the training goes on: metrics.jsonl has everything. When the run is started again, the same
run of the service goes on. Each service is asked what it has, so no point of a curve is sent twice after a kill. What
it lacks is sent from metrics.jsonl.
"""

import importlib.util
import pathlib
import queue
import threading
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

from bignas_jax.config.options import Options
from bignas_jax.errors import ConfigError
from bignas_jax.text import shown

PATIENCE = 60.0  # seconds that the end of a run waits for a service to take what is left
AT_A_STOP = 10.0  # the same after a signal, which another one may follow


class About(NamedTuple):
    """What a service is told of a run.

    Attributes:
        workdir: the run's folder; its name is the run's.
        target: the value of config.log.wandb or config.log.mlflow.
        project: the project of W&B, the experiment of MLflow.
        config: the values of the config by field, such as "data.source".
    """

    workdir: pathlib.Path
    target: str
    project: str
    config: dict[str, Any]


class Service(Protocol):
    """One run of a service. Any method may raise whatever its library does."""

    def new(self, step: int, values: Mapping[str, float]) -> dict[str, float]:
        """Those of the values that the run does not have of this step."""

    def send(self, step: int, values: Mapping[str, float]) -> None:
        """Adds a point to each of these curves."""

    def close(self, finished: bool) -> None:
        """Ends the run, or leaves it to be continued."""


class Tracker:
    """Sends records to a service, in order, in a thread.

    Args:
        title: the name of the service, for messages.
        open_service: opens the run; called in the thread.
        say: shows a line to the user.
    """

    def __init__(self, title: str, open_service: Callable[[], Service], say: Callable[[str], None]):
        self._title, self._open, self._say = title, open_service, say
        self._records: queue.SimpleQueue[tuple[int, Mapping[str, float]] | bool] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name=f"tracker {title}", daemon=True)
        self._thread.start()

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Sends numbers by curve name, soon."""
        self._records.put((step, dict(values)))

    def close(self, finished: bool, patience: float | None = None) -> None:
        """Waits until all is sent, but no longer than `patience` seconds."""
        patience = (PATIENCE if finished else AT_A_STOP) if patience is None else patience
        self._records.put(finished)
        self._thread.join(patience)
        if self._thread.is_alive():
            self._say(f"{self._title}: found no answer in {patience:.0f} s, so the last metrics may be missing there")

    def _work(self) -> None:
        try:
            service = self._open()
            while not isinstance(record := self._records.get(), bool):
                step, values = record
                if new := service.new(step, values):
                    service.send(step, new)
            service.close(finished=record)
        except Exception as error:  # noqa: BLE001 - whatever a library raises, the training goes on
            reason = " ".join(str(error).split())[:300] or type(error).__name__
            self._say(f"{self._title}: metrics are not sent any more ({shown(reason)}); metrics.jsonl has them all")


def missing(options: Options) -> None:
    """Refuses a service whose package is not installed. Raises ConfigError."""
    for field, package, install in (("wandb", "wandb", "wandb"), ("mlflow", "mlflow", "mlflow")):
        value = getattr(options.log, field)
        if value and importlib.util.find_spec(package) is None:
            raise ConfigError(
                f"config.log.{field}: found {value!r} but no package {package}, expected it to be installed: pip "
                f"install {install}, or leave the field empty"
            )


def start(options: Options, workdir: pathlib.Path, say: Callable[[str], None]) -> list[Tracker]:
    """The trackers that a config asks for, at work."""
    found = []
    config = _flat(options.to_dict())
    if options.log.wandb:
        from bignas_jax.runs.wandb_run import WandbRun

        about = About(workdir, options.log.wandb, options.log.project, config)
        found.append(Tracker("W&B", lambda: WandbRun(about), say))
    if options.log.mlflow:
        from bignas_jax.runs.mlflow_run import MlflowRun

        of_mlflow = About(workdir, options.log.mlflow, options.log.project, config)
        found.append(Tracker("MLflow", lambda: MlflowRun(of_mlflow), say))
    return found


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values of nested dictionaries by dotted names."""
    found = {}
    for name, value in values.items():
        inside = isinstance(value, Mapping)
        found |= _flat(value, f"{prefix}{name}.") if inside else {f"{prefix}{name}": value}
    return found
