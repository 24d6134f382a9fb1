"""The programs of the step, of evaluation and of search, traced for GPUs that need not be here.

Their names: `biggest`, `smallest`, `random-R` for each resolution R, and `update` make the step. `calibrate-A` and
`score-A` evaluate the architecture A, which is `biggest` or `smallest`, or all candidates of a resolution R of a
search; A is `slice-R` for one drawn architecture alone in its program, to compare candidates with. `kernels-P` has all
different kernels of our own that the program P calls, each once.
"""

import dataclasses
import fnmatch
import importlib
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.experimental import topologies
from jax.sharding import Mesh

from benchmarks.gpu.cards import Card
from benchmarks.gpu.kernels import calls, program
from bignas_jax.config.options import Options
from bignas_jax.evaluation import Evaluator
from bignas_jax.nets.supernet import Supernet
from bignas_jax.programs.buckets import Bucket, shared
from bignas_jax.programs.devices import AXIS
from bignas_jax.spaces.architecture import Architecture
from bignas_jax.spaces.mobilenet import SearchSpace
from bignas_jax.step.members.protocol import Part
from bignas_jax.step.optimizer import optimizer, schedule
from bignas_jax.step.recipe import Recipe
from bignas_jax.step.state import TrainState
from bignas_jax.step.train_step import TrainStep

SPACES = ("bignas", "attentive_nas", "cifar10", "digits")
GROUPS = ("step", "evaluation", "search", "slices")
KERNELS = "kernels"  # a group that is compiled only if it is asked for


@dataclasses.dataclass(frozen=True)
class Job:
    """One program.

    Attributes:
      group: one of GROUPS, or KERNELS.
      bucket: the bucket that it is compiled for; None for the update.
      trace: traces it.
    """

    group: str
    bucket: Bucket | None
    trace: Callable[[], Any]


class Setting:
    """What the programs are made for.

    Args:
      space: a name in SPACES: the recipe in configs/.
      batch: images a device.
      dtype: of activations and products.
      mesh: the devices.
      remat: whether blocks are recomputed in the backward pass.
    Attributes:
      config: the recipe. Random regularisation is off, as in benchmarks/step.py, so that the peer computes the same.
      space: its search space.
      step: the train step.
      params: the shapes of the supernet's weights.
    """

    def __init__(self, space: str, batch: int, dtype: str, mesh: Mesh, remat: bool = False):
        self.config = configuration(space)
        self.batch, self.mesh, self.space = batch * mesh.size, mesh, SearchSpace.from_config(self.config.space)
        options, classes = Options.of(self.config), self.config.model.num_classes
        net = nnx.eval_shape(lambda: Supernet(self.space, classes, dtype=dtype, rngs=nnx.Rngs(0)))
        self.graphdef, self.params = nnx.graphdef(net), nnx.to_pure_dict(nnx.state(net, nnx.Param))
        rate = schedule(options.optimizer, 1000, options.epochs)
        recipe = dataclasses.replace(Recipe.of(options), remat=remat)
        self.step = TrainStep(self.space, self.graphdef, recipe, optimizer(options.optimizer, rate), mesh, rate)
        self.evaluator = Evaluator(self.space, self.graphdef, mesh, options.data.mean, options.data.std)

    def jobs(self) -> dict[str, Job]:
        """All programs by name."""
        step = self.step_jobs()
        others = self.evaluation_jobs() | self.search_jobs() | self.slice_jobs()
        kernels = {f"kernels-{name}": kernels_of(job, self.mesh) for name, job in step.items() if job.bucket}
        return step | others | kernels

    def each_kernel(self, name: str) -> dict[str, Job]:
        """The kernels of the program `kernels-P`, each alone in its program, by its name and its arguments."""
        found = calls(self.step_jobs()[name.removeprefix(f"{KERNELS}-")].trace().jaxpr)
        return {
            f"{call.params['name']} of {', '.join(str(v.aval) for v in call.invars)} ({number})": Job(
                KERNELS, None, lambda call=call: program([call], self.mesh)
            )
            for number, call in enumerate(found)
        }

    def step_jobs(self) -> dict[str, Job]:
        """The programs of the step."""
        zero, side = jax.ShapeDtypeStruct((), np.int32), self.config.data.image_size
        opt_state = jax.eval_shape(self.step.optimizer.init, self.params)
        ema = self.params if self.step.recipe.ema_decay else None
        state = TrainState(self.params, opt_state, ema, zero, zero, zero)
        batch = {
            "image": jax.ShapeDtypeStruct((self.batch, side, side, 3), np.uint8),
            "label": jax.ShapeDtypeStruct((self.batch,), np.int32),
        }
        found = {}
        for key, trace in self.step.programs(state, batch).items():
            bucket = key.bucket if isinstance(key, Part) else None
            name = key if bucket is None else self._name(bucket, "random-")
            found[name] = Job("step", bucket, trace)
        return found

    def evaluation_jobs(self) -> dict[str, Job]:
        """The programs that calibrate and score the biggest and the smallest."""
        buckets = [Bucket(arch, masked=False) for arch in (self.space.biggest, self.space.smallest)]
        return self._evaluation("evaluation", buckets, self._name)

    def search_jobs(self) -> dict[str, Job]:
        """The programs that calibrate and score the candidates of a search."""
        return self._evaluation("search", [shared(self.space, side) for side in self.space.resolutions], self._name)

    def slice_jobs(self) -> dict[str, Job]:
        """The programs of one drawn architecture of each resolution, alone in its program."""
        buckets = [Bucket(arch, masked=False) for arch in self.sliced()]
        return self._evaluation("slices", buckets, lambda bucket: f"slice-{bucket.arch.resolution}")

    def sliced(self) -> list[Architecture]:
        """The architectures of `slice_jobs`: the first one of each resolution among the step's random members."""
        found = {}
        for arch in self.drawn(100):
            found.setdefault(arch.resolution, arch)
        return [found[side] for side in sorted(found)]

    def drawn(self, steps: int) -> list[Architecture]:
        """The random members of the first steps of a training."""
        members = self.step.members
        return [arch for number in range(steps) for arch in members.architectures(number)[1:-1]]

    def _evaluation(self, group: str, buckets: Iterable[Bucket], name: Callable[[Bucket], str]) -> dict[str, Job]:
        side = self.config.data.image_size
        jobs = self.evaluator.programs(self.params, buckets, side, self.batch, self.batch)
        return {f"{kind}-{name(bucket)}": Job(group, bucket, trace) for (kind, bucket, _), trace in jobs.items()}

    def _name(self, bucket: Bucket, prefix: str = "") -> str:
        if bucket.masked:
            return f"{prefix}{bucket.arch.resolution}"
        return "biggest" if bucket.arch == self.space.biggest else "smallest"


def kernels_of(job: Job, mesh: Mesh) -> Job:
    """A program of the different kernels of our own that another program calls."""
    return Job(KERNELS, None, lambda: program(calls(job.trace().jaxpr), mesh))


def configuration(space: str):
    """The recipe of this name in configs/, without random regularisation."""
    config = importlib.import_module(f"configs.{space}").get_config()
    config.model.dropout = config.model.drop_connect = 0.0
    return config


def described_mesh(card: Card, topology: str) -> Mesh:
    """A mesh of devices that are not here.

    Args:
      card: the kind of the devices.
      topology: slices x hosts x devices of a host, such as '1x2x8'.
    """
    found = topologies.get_topology_desc(platform="cuda", target_config=card.target_config, topology=topology)
    return topologies.make_mesh(found, (len(found.devices),), (AXIS,))


def chosen(jobs: dict[str, Job], patterns: Iterable[str]) -> dict[str, Job]:
    """The programs whose name or group fits one of the patterns, such as 'step', 'update' or 'score-*'.

    Raises:
      ValueError: a pattern fits none.
    """
    found = {}
    for pattern in patterns:
        fit = {name: job for name, job in jobs.items() if pattern == job.group or fnmatch.fnmatch(name, pattern)}
        if not fit:
            names = ", ".join((*GROUPS, KERNELS, *jobs))
            raise ValueError(f"--programs: found {pattern!r}, expected one of {names}, or a pattern")
        found |= fit
    return {name: job for name, job in jobs.items() if name in found}
