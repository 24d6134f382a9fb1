"""A run in MLflow (mlflow.org), at the tracking URI that config.log.mlflow gives; <workdir>/mlflow.json names it."""

import time
from collections.abc import Mapping

from bignas_jax.errors import FileError
from bignas_jax.files import read_json, write_json
from bignas_jax.runs.trackers import About

_AT_ONCE = 100  # parameters that one request may carry
_LONGEST = 500  # characters of a parameter, in every store of MLflow


class MlflowRun:
    """The run of MLflow that belongs to a run's folder: a new one, or the one that its mlflow.json names.

    Args:
        about: `target` is the tracking URI. At another URI than before, a new run begins.
    Raises:
        FileError: mlflow.json is damaged.
        MlflowException: the server cannot be reached, the run was removed there, or the like.
    """

    def __init__(self, about: About):
        from mlflow import entities, tracking  # here, because it is no requirement

        path = about.workdir / "mlflow.json"
        self._entities, self._client = entities, tracking.MlflowClient(about.target)
        self._last: dict[str, int] = {}  # the last step of each curve
        try:
            known = read_json(path)
            uri, self._id = str(known["uri"]), str(known["run"])
        except FileNotFoundError:
            uri = ""
        except (KeyError, TypeError, ValueError) as error:
            reason = error if isinstance(error, FileError) else "found something else"
            raise FileError(f"{path}: {reason}, expected what an earlier start wrote: remove it") from None
        if uri == about.target:
            self._client.update_run(self._id, status="RUNNING")
            for curve in self._client.get_run(self._id).data.metrics:
                points = self._client.get_metric_history(self._id, curve)
                self._last[curve] = max((point.step for point in points), default=-1)
            return
        self._id = self._begun(about)
        write_json(path, {"uri": about.target, "run": self._id})

    def _begun(self, about: About) -> str:
        """The id of a new run, which has the config as its parameters."""
        found = self._client.get_experiment_by_name(about.project)
        experiment = found.experiment_id if found else self._client.create_experiment(about.project)
        name = self._client.create_run(experiment, run_name=about.workdir.resolve().name).info.run_id
        params = [self._entities.Param(field, str(value)[:_LONGEST]) for field, value in about.config.items()]
        for first in range(0, len(params), _AT_ONCE):
            self._client.log_batch(name, params=params[first : first + _AT_ONCE])
        return name

    def new(self, step: int, values: Mapping[str, float]) -> dict[str, float]:
        """Those of the values that the run does not have of this step."""
        return {name: value for name, value in values.items() if step > self._last.get(name, -1)}

    def send(self, step: int, values: Mapping[str, float]) -> None:
        """Adds a point to each of these curves."""
        now = int(time.time() * 1000)
        points = [self._entities.Metric(name, float(value), now, step) for name, value in values.items()]
        self._client.log_batch(self._id, points)
        self._last |= dict.fromkeys(values, step)

    def close(self, finished: bool) -> None:
        """Marks the run as finished, or as stopped."""
        self._client.set_terminated(self._id, "FINISHED" if finished else "KILLED")
