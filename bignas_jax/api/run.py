"""A run's folder, opened for use from Python."""

import collections
import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import jax
import numpy as np

from bignas_jax.api import found as findings
from bignas_jax.api import statistics as kept
from bignas_jax.api.child import Child
from bignas_jax.api.found import Found
from bignas_jax.config import fields
from bignas_jax.config.choices import Costs
from bignas_jax.config.files import load_run_config
from bignas_jax.config.options import Options, Search
from bignas_jax.errors import ConfigError
from bignas_jax.nets.slicing import param_shapes, single, slice_params, slice_statistics
from bignas_jax.programs.buckets import Bucket
from bignas_jax.programs.devices import make_mesh, replicate
from bignas_jax.programs.kept import identity_of, use_compilation_cache
from bignas_jax.runs.checkpoint import Checkpoints
from bignas_jax.runs.identity import DATA, Use, check_run
from bignas_jax.runs.session import CLASSES, Session, network_identity
from bignas_jax.spaces.architecture import Architecture
from bignas_jax.spaces.cost import count
from bignas_jax.spaces.layers import statistics
from bignas_jax.spaces.naming import read_architectures
from bignas_jax.spaces.registry import space_of
from bignas_jax.spaces.space import Space

KEPT = 32  # children that a run keeps: each has weights and programs of its own
STATISTICS = ("calibrated", "stored", "batch")

Given = str | os.PathLike | Mapping | Architecture | Found


def open_run(
    workdir: str | os.PathLike, checkpoint: str | int = "newest", overrides: Mapping[str, Any] | None = None
) -> "Run":
    """Opens a run's folder. The data set is not opened until something needs it.

    Args:
      workdir: the run's folder, such as 'exp/digits'.
      checkpoint: 'newest', 'best' or a step.
      overrides: values of the config by dotted name, such as {'data.root': '/photos', 'num_devices': 1}.
    Raises:
      ConfigError: it is no run's folder, or an override cannot work.
      CheckpointError: there is no such checkpoint.
    """
    workdir = pathlib.Path(workdir)
    path = workdir / "config.json"
    if not path.is_file():
        raise ConfigError(f"open_run: found no {path}, expected the folder of a run, such as exp/digits: train one")
    config = load_run_config(path)
    config.distributed = fields.base().distributed  # of the command that trained
    return Run(workdir, _with(config, overrides or {}), checkpoint)


def _with(config: Any, overrides: Mapping[str, Any]) -> Options:
    """The options of a config with other values, checked."""
    values = config.to_dict()
    for name, value in overrides.items():
        if name not in fields.FIELDS:
            raise ConfigError(f"config.{name}: found an unknown field" + fields.nearest(name, fields.FIELDS))
        *way, last = name.split(".")
        owner = values
        for part in way:
            owner = owner[part]
        # A single number is one budget.
        alone = fields.FIELDS[name].kind is tuple and isinstance(value, int | float) and not isinstance(value, bool)
        owner[last] = (value,) if alone else value
    config = fields.canonical(type(config)(values))
    fields.validate(config)
    return Options.of(config)


class Run:
    """A trained run: its space, its children, its searches. `open_run` makes it.

    It computes in float32, also if the run was trained in bfloat16, as its exports do.

    Args:
      workdir: the run's folder.
      options: of the run.
      checkpoint: 'newest', 'best' or a step.
    Attributes:
      workdir: the run's folder.
      options: of the run.
      space: the search space.
      step: the checkpoint's step.
    Raises:
      CheckpointError: there is no such checkpoint.
    """

    def __init__(self, workdir: pathlib.Path, options: Options, checkpoint: str | int = "newest"):
        check_run(options, workdir, Use.EXPORT)
        self.workdir = workdir
        self.options = dataclasses.replace(options, model=dataclasses.replace(options.model, dtype="float32"))
        self._searched_as = options
        self.space: Space = space_of(options.space)
        checkpoints = self._checkpoints()
        try:
            self.step = checkpoints.find(str(checkpoint))
        finally:
            checkpoints.close()
        self._which = "newest" if checkpoint == "newest" else str(self.step)
        self._children: collections.OrderedDict[Any, Child] = collections.OrderedDict()

    def __repr__(self) -> str:
        return f"Run({str(self.workdir)!r}, step {self.step}, {self.space.size:,} architectures)"

    @cached_property
    def class_names(self) -> tuple[str, ...]:
        """The names of the classes, in the order of the logits."""
        path = self.workdir / CLASSES
        return tuple(json.loads(path.read_text())) if path.is_file() else self.session.dataset.class_names

    @property
    def num_classes(self) -> int:
        """The number of classes."""
        return self.options.model.num_classes

    def sample(self, seed: int = 0) -> Architecture:
        """An architecture of the space, each choice drawn uniformly. The same seed gives the same architecture."""
        return self.space.sample(np.random.default_rng(seed))

    def child(
        self,
        arch: Given | None = None,
        *,
        statistics: Any = "calibrated",
        macs: float | None = None,
        params: float | None = None,
        latency_ms: float | None = None,
    ) -> Child:
        """A child: the slice of the weights, with batch-norm statistics.

        The last 32 children are kept, with their statistics and compiled programs: the same call gives the same child.
        Calibrated statistics are also kept in the run's folder, so that another process opens no data set for them.

        Args:
          arch: an Architecture, one that a search found, a dictionary, JSON, the path of a JSON file, 'max' or 'min'.
          statistics: 'calibrated' on training images; 'stored', which an imported checkpoint keeps for 'max'; 'batch',
            those of the images of each call; or layer name to (mean, variance), as `Child.statistics` has them.
          macs: in place of `arch`: the most accurate that the last search scored, with no more multiply-adds.
          params: the same, with no more parameters.
          latency_ms: the same, with no more estimated milliseconds.
        Raises:
          ConfigError: the architecture is not in the space, nothing within the limits was found, or the statistics do
            not fit.
          DataError: statistics must be calibrated, and the training images cannot be used.
        """
        limits = {"macs": macs, "params": params, "latency_ms": latency_ms}
        limits = {kind: float(limit) for kind, limit in limits.items() if limit is not None}
        if (arch is None) != bool(limits):
            raise ConfigError(
                f"child: found {'both an architecture and a limit' if limits else 'nothing'}, expected an architecture,"
                " or limits such as macs=300e6"
            )
        arch = self._within(limits) if limits else self.architecture(arch)
        named = isinstance(statistics, str)
        if named and statistics not in STATISTICS:
            raise ConfigError(f"statistics: found {statistics!r}, expected {', '.join(STATISTICS)}, or a mapping")
        key = (arch, statistics) if named else None
        if key not in self._children:
            made = self._make(arch, statistics)
            if key is None:
                return made
            self._children[key] = made
            if len(self._children) > KEPT:
                self._children.popitem(last=False)
        self._children.move_to_end(key)
        return self._children[key]

    def architecture(self, arch: Given) -> Architecture:
        """The architecture that `child` takes for this argument.

        Raises:
          ConfigError: it cannot be read, or is not in the space.
        """
        if isinstance(arch, Found):
            arch = arch.arch
        if isinstance(arch, str | os.PathLike):
            (arch,) = read_architectures(self.space, [os.fspath(arch)], "arch").values()
        try:
            arch = arch if isinstance(arch, Architecture) else Architecture.from_dict(arch)
            self.space.check(arch)
        except ValueError as error:
            raise ConfigError(f"arch: {error}") from None
        return arch

    def search(self, **options: Any) -> list[Found]:
        """Searches for the best children under budgets, as `python -m bignas_jax search` does.

            run.search(max_macs=300e6)
            run.search(max_macs=(200e6, 400e6), max_params=6e6, num_evaluations=500)

        Evaluations are saved as they are made: a search that was interrupted goes on at the same call.

        Args:
          **options: fields of `config.search`. Those that are not given have the run's values.
        Returns:
          The winner of each budget, in order. `front` and `child(macs=...)` know all that was scored.
        Raises:
          ConfigError: a field is unknown or cannot work, or nothing fits a budget.
        """
        from bignas_jax.search import run as searching

        known = [field.name for field in dataclasses.fields(Search)]
        for name in options:
            if name not in known:
                raise ConfigError(f"search: found {name!r}" + fields.nearest(f"search.{name}", fields.FIELDS)
                                  + f", expected fields of config.search: {', '.join(known)}")  # fmt: skip
        config = load_run_config(self.workdir / "config.json")
        config.update(self._searched_as.to_dict())
        chosen = _with(config, {f"search.{name}": value for name, value in options.items()})
        return findings.winners(searching.search(chosen, self.workdir, self._which))

    def front(self, cost: str | None = None) -> list[Found]:
        """The front of accuracy on held-out images against a cost, from the cheapest, of all that the search scored.

        Args:
          cost: 'macs', 'params', 'latency_ms' or 'own', or several by commas; None takes that of the search.
        Raises:
          ConfigError: there is no search of this checkpoint, or it did not measure the cost.
        """
        result = findings.read(self.workdir, self.step, "run.search()")
        costs = cost.split(",") if cost else result["run"].get("costs", [result["run"]["cost"]])
        for one in costs:
            if one not in list(Costs):
                raise ConfigError(f"cost: found {one!r}, expected one of {', '.join(Costs)}")
        findings.check_measured(result, costs)
        return findings.front(findings.complete(result), *costs)

    @cached_property
    def session(self) -> Session:
        """The run's data and devices, opened when they are first used.

        Raises:
          DataError: the images cannot be used.
          ConfigError: they are not the run's, or do not fit the options.
        """
        use_compilation_cache()
        return Session.open(self.options, run=self.workdir, use=Use.EVALUATION)

    @cached_property
    def weights(self) -> Any:
        """The supernet's weights: nested NumPy float32 arrays (the moving average where the run has one)."""
        checkpoints = self._checkpoints()
        try:
            shapes = param_shapes(self.space, self.num_classes)
            found, _ = checkpoints.weights(shapes, make_mesh(1, {}), self._which)
        finally:
            checkpoints.close()
        return jax.tree.map(np.asarray, found)

    @cached_property
    def placed_weights(self) -> Any:
        """The supernet's weights on the devices of the session."""
        return replicate(self.session.mesh, self.weights)

    def _checkpoints(self) -> Checkpoints:
        return Checkpoints(self.workdir, read_only=True, on_damage=self.options.checkpoint.on_damage)

    def _within(self, limits: Mapping[str, float]) -> Architecture:
        least = dataclasses.asdict(count(self.space, self.space.smallest, self.num_classes))
        for kind, limit in limits.items():
            if limit < least.get(kind, 0):
                raise ConfigError(f"{kind}: found {limit:.10g}, expected at least {least[kind]}, what 'min' costs")
        hint = findings.hint(limits)
        return findings.best(findings.read(self.workdir, self.step, hint), limits, hint).arch

    def _make(self, arch: Architecture, given: Any) -> Child:
        use_compilation_cache()
        params = jax.tree.map(lambda a: np.array(a, np.float32), slice_params(self.space, self.weights, arch))
        if given == "calibrated":
            found = self._calibrated(arch, params)
        elif given == "stored":
            found = self._stored(arch)
        else:
            found = None if given == "batch" else kept.checked(single(self.space, arch), given)
        return Child(self, single(self.space, arch), params, found)

    def _calibrated(self, arch: Architecture, params: Any) -> kept.Statistics:
        path = self.workdir / "statistics" / f"{self._digest(arch, params)}.npz"
        found = kept.load(path, statistics(single(self.space, arch).layout(arch)))
        if found is None:
            found = self._calibrate(arch)
            kept.save(path, found)
        return found

    def _digest(self, arch: Architecture, params: Any) -> str:
        """The name of calibrated statistics: they depend on the network, its weights, and the images."""
        options = self.options
        identity = identity_of(
            network_identity(single(self.space, arch), options, make_mesh(1, {})),
            options.calibration.to_dict(),
            options.seed,
            {name: value for name, value in options.data.to_dict().items() if name != "num_workers"},
        )
        data = self.workdir / DATA
        return kept.digest(identity, params, data.read_bytes() if data.is_file() else b"")

    def _calibrate(self, arch: Architecture) -> kept.Statistics:
        session, bucket = self.session, Bucket(arch, masked=False)
        session.check_evaluation()
        size = self.options.calibration.batch_size
        session.evaluator.compile(session.shapes, [bucket], self.options.data.image_size, size, 0, progress=False)
        found = session.calibrate(self.placed_weights, {arch: bucket})[arch]
        session.evaluator.executables.pop(("calibrate", bucket, size))  # the statistics are kept: it is used once
        return self._own(arch, found)

    def _own(self, arch: Architecture, found: Mapping[str, Any]) -> kept.Statistics:
        return jax.tree.map(np.asarray, slice_statistics(self.space, found, arch))

    def _stored(self, arch: Architecture) -> kept.Statistics:
        if arch != self.space.biggest:
            raise ConfigError(
                "statistics: found 'stored' with another architecture, expected it with 'max': a checkpoint keeps "
                "statistics of the biggest architecture only"
            )
        checkpoints = self._checkpoints()
        try:
            widths = statistics(self.space.layout(arch))
            found = checkpoints.statistics(widths, make_mesh(1, {}), str(self.step))
        finally:
            checkpoints.close()
        return self._own(arch, found)
