"""A train step: the gradients of its members on one batch are summed, and one update follows.

The gradient of each member is computed by an executable of its own, which is compiled for the member's bucket. Every
device adds up the gradients of all members on its own images. One last executable takes the mean over the devices and
makes the update.
"""

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding

from bignas_jax.kernels.reduce import mean_over
from bignas_jax.nets.mode import Mode
from bignas_jax.nets.sizes import sizes
from bignas_jax.nets.slicing import num_classes_of
from bignas_jax.nets.supernet import Supernet
from bignas_jax.ops import prepare
from bignas_jax.ops.losses import cross_entropy, smooth
from bignas_jax.programs.buckets import Bucket, shared
from bignas_jax.programs.compile import compile_ahead, lowering
from bignas_jax.programs.devices import AXIS, REPLICATED, SPLIT, batch_sharding, over_devices, replicate, shapes
from bignas_jax.spaces.architecture import Architecture
from bignas_jax.spaces.space import Space
from bignas_jax.step import mixing
from bignas_jax.step.losses import loss_class
from bignas_jax.step.members.protocol import Member, Part, Target
from bignas_jax.step.members.registry import make_members
from bignas_jax.step.objective import metrics_of, objective_of, probabilities
from bignas_jax.step.recipe import Recipe
from bignas_jax.step.state import TrainState
from bignas_jax.step.teacher import Teacher
from bignas_jax.step.update import make_update


class TrainStep:
    """The executables of a step, and the step itself.

    Args:
      space: the search space.
      graphdef: the graphdef of its supernet, as `weights.build` gives it.
      recipe: members, loss and regularisation.
      optimizer: optax transformation of the summed gradient.
      mesh: the devices, as `devices.make_mesh` gives them.
      schedule: the optimizer's learning rate by update; it is only reported.
      identity: a text that determines these arguments and the shapes to compile for; see `compile.compile_ahead`.
      prepared: what the sampler of members made at the start of the run; see `Members`.
      teacher: a frozen network from outside the run. Members that learn from the labels learn from it, too.
    Attributes:
      members: the sampler of members.
      chosen: the members of the last step.
      waits: whether there are students, and steps before they train.
      loss: the loss of a member.
      executables: the compiled programs by key.
    Raises:
      ConfigError: the recipe names members or a loss that do not exist.
    """

    def __init__(
        self,
        space: Space,
        graphdef: nnx.GraphDef,
        recipe: Recipe,
        optimizer: optax.GradientTransformation,
        mesh: Mesh,
        schedule: optax.Schedule = lambda step: 0.0,
        identity: str | None = None,
        prepared: Any = None,
        teacher: Teacher | None = None,
    ):
        self.space, self.graphdef, self.recipe, self.optimizer, self.mesh = space, graphdef, recipe, optimizer, mesh
        self.schedule, self.teacher = schedule, teacher
        self.identity = identity if identity is None or teacher is None else f"{identity} {teacher.identity}"
        self.members, self.loss = make_members(space, recipe, prepared), loss_class(recipe.loss)(recipe)
        self.chosen: tuple[Member, ...] = ()
        students = any(part.target == Target.TEACHER for part in self.members.programs(space))
        self.waits = students and recipe.student_start > 0
        self.executables: dict[Any, Any] = {}

    def init(self, params: Any) -> TrainState:
        """The train state at step 0 with these weights, on all devices of the mesh."""
        zero = np.int32(0)
        ema = jax.tree.map(np.array, params) if self.recipe.ema_decay else None
        opt_state = jax.jit(self.optimizer.init)(params)
        return replicate(self.mesh, TrainState(params, opt_state, ema, zero, zero, zero))

    def compile(self, state: TrainState, batch: dict[str, Any], progress: bool = True) -> None:
        """Compiles every executable that a step can need.

        Args:
          state: the train state, or its shapes.
          batch: `image` uint8 [B, S, S, 3] and `label` int32 [B], or their shapes; B is the global batch size.
          progress: whether a progress bar is shown.
        """
        jobs = lowering(self.programs(state, batch))
        self.executables = compile_ahead(jobs, "compile sandwich", progress, self.identity)

    def programs(self, state: TrainState, batch: dict[str, Any]) -> dict[Any, Callable[[], Any]]:
        """Functions that trace the programs of a step, by key.

        Args:
          state: as for `compile`.
          batch: as for `compile`.
        """
        split, whole = batch_sharding(self.mesh), NamedSharding(self.mesh, REPLICATED)
        params = shapes(state.params, whole)
        image, label = shapes(batch["image"], split), shapes(batch["label"], split)
        classes = num_classes_of(params)
        jobs = {}
        if self._mixes:
            drawn, integers = shapes(np.zeros(6, np.float32), whole), label
            jobs["mix"] = lambda: mixing.program(self.mesh, classes).trace(image, integers, drawn)
            label = jax.ShapeDtypeStruct((image.shape[0], classes), np.float32, sharding=split)
        if self.teacher is not None:
            jobs |= self.teacher.programs(image)
        outside = jax.ShapeDtypeStruct((image.shape[0], classes), np.float32, sharding=split)
        step = shapes(np.zeros(2, np.int32), whole)
        total, metrics = self._shape_of_totals(params)

        micro = shapes(np.int32(0), whole) if self._parts > 1 else None
        weight = shapes(np.float32(1), whole)
        teacher = jax.ShapeDtypeStruct((image.shape[0] // self._parts, classes), np.float32, sharding=split)

        def told(bucket: Bucket):
            return shapes(sizes(self.space, bucket.arch, bucket.arch), whole) if bucket.masked else None

        def member(part: Part):
            arguments = step if part.regularised else None, teacher if part.target == Target.TEACHER else None
            begins = part.first and micro is None
            return self._gradient(part).trace(
                params, image, label, *arguments, told(part.bucket), None if begins else total, micro,
                outside if self._is_taught(part) else None, weight if self._is_weighed(part) else None,
            )  # fmt: skip

        def score(bucket: Bucket):
            return self._loss_of(bucket).trace(params, image, label, told(bucket), micro)

        jobs |= {part: partial(member, part) for part in self.members.programs(self.space)}
        if self.members.scores:
            buckets = [shared(self.space, resolution) for resolution in self.space.resolutions]
            jobs |= {("score", bucket): partial(score, bucket) for bucket in buckets}
        grads = (total, total) if self._resolves else (total,)

        def update(members: int):
            return self._update(members).trace(shapes(state, whole), grads, [metrics] * members * self._parts)

        jobs["update"] = lambda: update(len(self.members.names))
        if self.waits:
            jobs["update alone"] = lambda: update(1)
        if self._resolves or micro is not None:
            jobs["zeros"] = lambda: self._zeros(total).trace()
        return jobs

    def __call__(self, state: TrainState, batch: dict[str, jax.Array], step: int) -> tuple[TrainState, Any]:
        """One step.

        Args:
          state: the train state, which is donated.
          batch: `image` uint8 [B, S, S, 3] and `label` int32 [B] on the devices.
          step: `state.step`, as a number that the host knows.
        Returns:
          The new state, and a dictionary of metrics on the device. `loss`, `accuracy` (agreement with the labels) and
          the scalars in `Loss.metrics` are [members] each, of `chosen`. `gradient_norm` (before clipping),
          `learning_rate`, `finite` (whether the update was made), and the counters `skipped` and `skipped_in_row` are
          scalars.
        """
        batch = self.seen(batch, step)
        alone = self.waits and step < self.recipe.student_start
        score = _no_scores if alone else partial(self.score, state.params, batch)
        self.chosen = self.members.choose(step, score)[: 1 if alone else None]
        # The first member's gradient is the start of the sum, unless there are several micro-batches to add up.
        zeros = self.executables.get("zeros")
        grads = zeros() if self._parts > 1 else None
        biggest = zeros() if self._parts > 1 and self._resolves else None
        teacher, all_metrics = None, []
        for micro, (number, member) in itertools.product(range(self._parts), enumerate(self.chosen)):
            first = member.part.first
            apart = first and self._resolves  # this member's gradient is kept apart from the others'
            total = biggest if apart else grads
            total, metrics, predicted = self.learn(
                state.params, batch, member, step, None if first else teacher, total, number, micro
            )
            teacher = predicted if first else teacher
            biggest, grads = (total, zeros() if grads is None else grads) if apart else (biggest, total)
            all_metrics.append(metrics)
        update = self.executables["update alone" if alone else "update"]
        return update(state, (biggest, grads) if self._resolves else (grads,), all_metrics)

    def seen(self, batch: dict[str, jax.Array], step: int) -> dict[str, jax.Array]:
        """The batch of a step as its members see it.

        If the recipe mixes images, the labels are probabilities, [B, classes]. If there is a teacher from outside the
        run, `teacher` is its logits of the same images, [B, classes].

        Args:
          batch: `image` uint8 [B, S, S, 3] and `label` int32 [B] on the devices.
          step: the number of the step.
        """
        if self._mixes:
            recipe = self.recipe
            drawn = mixing.draw(recipe.mixup, recipe.cutmix, recipe.seed, step, batch["image"].shape[1])
            image, label = self.executables["mix"](batch["image"], batch["label"], drawn)
            batch = batch | {"image": image, "label": label}
        if self.teacher is not None:
            batch = batch | {"teacher": self.teacher.logits(self.executables, batch["image"])}
        return batch

    def _is_taught(self, part: Part) -> bool:
        """Whether a member learns from the teacher from outside the run."""
        return self.teacher is not None and part.target == Target.LABELS

    def _is_weighed(self, part: Part) -> bool:
        """Whether a member is a student, and students do not always count as much as the first member."""
        return part.target == Target.TEACHER and self.recipe.weighs_students

    @property
    def _mixes(self) -> bool:
        return bool(self.recipe.mixup or self.recipe.cutmix)

    @property
    def _resolves(self) -> bool:
        """Whether the first member's gradient can conflict with those of others, and gives way to them if it does."""
        return self.recipe.resolve_conflicts_from is not None and len(self.members.names) > 1

    def _zeros(self, total: Any):
        """The program of the sum of no gradients."""
        shardings = jax.tree.map(lambda a: a.sharding, total)
        return jax.jit(lambda: jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), total), out_shardings=shardings)

    def learn(
        self,
        params: Any,
        batch: dict[str, jax.Array],
        member: Member,
        step: int,
        teacher: jax.Array | None = None,
        total: Any = None,
        number: int = 0,
        micro: int = 0,
    ) -> tuple[Any, jax.Array, jax.Array | None]:
        """Adds the gradient of a member to the gradients of the members before it.

        Args:
          params: the weights.
          batch: `image` uint8 [B, S, S, 3] and `label` on the devices, as `seen` returns them.
          member: the member.
          step: the number of the step.
          teacher: [B / micro-batches, classes] logits of the first member; None for the first member itself.
          total: the sum of the gradients so far, which is donated; None for the first member of an undivided batch.
          number: the member's position in the step. Members at different positions draw different regularisation.
          micro: which micro-batch of `Recipe.micro_batches` is learnt from. Each draws different regularisation.
        Returns:
          The sum, with a leading axis of devices; the member's metrics; and the member's logits if it is the first,
          otherwise None.
        """
        part = member.part
        return self.executables[part](
            params,
            batch["image"],
            batch["label"],
            np.array([step, number], np.int32) if part.regularised else None,
            teacher if part.target == Target.TEACHER else None,
            part.bucket.sampled(self.space, member.arch),
            total,
            np.int32(micro) if self._parts > 1 else None,
            batch["teacher"] if self._is_taught(part) else None,
            np.float32(self.recipe.student_weight_at(step)) if self._is_weighed(part) else None,
        )

    def score(self, params: Any, batch: dict[str, jax.Array], archs: Sequence[Architecture]) -> list[float]:
        """The cross-entropy of architectures with the smoothed labels on this batch. It is equal on all hosts.

        Args:
          params: the weights.
          batch: `image` uint8 [B, S, S, 3] and `label` on the devices, as `seen` returns them.
          archs: the architectures.
        Raises:
          RuntimeError: `Members.scores` of the sampler is False, so that no programs were compiled for scores.
        """
        if not self.members.scores:
            raise RuntimeError("step: found a score asked for, expected a sampler of members whose `scores` is True")
        found = []
        for arch in archs:
            bucket = shared(self.space, arch.resolution)
            run, sampled = self.executables["score", bucket], bucket.sampled(self.space, arch)
            micros = [None] if self._parts == 1 else map(np.int32, range(self._parts))
            found.append([run(params, batch["image"], batch["label"], sampled, micro) for micro in micros])
        return [float(np.mean(losses)) for losses in jax.device_get(found)]

    def _shape_of_totals(self, params: Any) -> tuple[Any, Any]:
        """Shapes of the gradients, one for each device, and of a member's metrics."""
        devices, split = self.mesh.size, batch_sharding(self.mesh)

        def one_a_device(a):
            return jax.ShapeDtypeStruct((devices, *a.shape), a.dtype, sharding=split)

        width = 2 + len(self.loss.metrics)
        metrics = jax.ShapeDtypeStruct((devices, width), np.float32, sharding=split)
        return jax.tree.map(one_a_device, params), metrics

    @property
    def _parts(self) -> int:
        """The micro-batches of a step."""
        return self.recipe.micro_batches

    def _part_of(self, rows: Any, micro: jax.Array | None) -> Any:
        """A micro-batch: every n-th row, so that it holds the same images on any number of devices."""
        if micro is None:
            return rows

        def every(a):
            return jax.lax.dynamic_index_in_dim(a.reshape(-1, self._parts, *a.shape[1:]), micro, 1, keepdims=False)

        return jax.tree.map(every, rows)

    def _logits(self, params, image, outer: Architecture, sampled, rng=None):
        recipe = self.recipe
        x = prepare(image, outer.resolution, recipe.mean, recipe.std)
        mode = Mode(axis_name=AXIS if recipe.sync_batch_norm else None, remat=recipe.remat)
        if rng is not None:
            mode = dataclasses.replace(mode, rng=rng, dropout=recipe.dropout, drop_connect=recipe.drop_connect)
        net: Supernet = nnx.merge(self.graphdef, params)
        return net(x, outer, sampled, mode)[0]

    def _gradient(self, part: Part):
        """The program of `learn`. The gradient has a leading axis of devices; each device holds its own gradient."""
        recipe, bucket = self.recipe, part.bucket

        def learn(params, image, label, step, teacher, sampled, total, micro, outside, weight):
            image, label, outside = self._part_of((image, label, outside), micro)
            rng = None
            if part.regularised:
                key = jax.random.fold_in(jax.random.key(recipe.seed), step[0])
                if micro is not None:
                    key = jax.random.fold_in(jax.random.fold_in(key, step[1]), micro)
                elif not part.first:
                    key = jax.random.fold_in(key, step[1])
                rng = jax.random.fold_in(key, jax.lax.axis_index(AXIS))

            def loss(params):
                logits = self._logits(params, image, bucket.arch, sampled, rng)
                targets = probabilities(label, logits.shape[-1])
                objective, value, extra = objective_of(recipe, self.loss, logits, targets, teacher, outside, weight)
                return objective, (value, logits, extra)

            (_, (value, logits, extra)), grads = jax.value_and_grad(loss, has_aux=True)(params)
            grads = _stack(grads)
            if total is not None:
                grads = jax.tree.map(jnp.add, total, grads)
            further = [extra[name] for name in self.loss.metrics]
            return grads, metrics_of(value, logits, label, further), logits if part.first else None

        specs = (REPLICATED, SPLIT, SPLIT, REPLICATED, SPLIT, REPLICATED, SPLIT, REPLICATED, SPLIT, REPLICATED)
        donated = {} if part.first and self._parts == 1 else {"donate_argnums": (6,)}
        return over_devices(self.mesh, learn, specs, (SPLIT, SPLIT, SPLIT), **donated)

    def _loss_of(self, bucket: Bucket):
        """The program of `score`."""

        def loss(params, image, label, sampled, micro):
            image, label = self._part_of((image, label), micro)
            logits = self._logits(params, image, bucket.arch, sampled)
            targets = smooth(probabilities(label, logits.shape[-1]), self.recipe.label_smoothing)
            return mean_over(cross_entropy(logits, targets), AXIS)

        return over_devices(self.mesh, loss, (REPLICATED, SPLIT, SPLIT, REPLICATED, REPLICATED), REPLICATED)

    def _update(self, members: int):
        """The last program of a step of so many members: the mean over the devices, the clip and the update."""
        recipe = self.recipe
        update = partial(
            make_update, self.optimizer, self.schedule, recipe.ema_decay, recipe.resolve_conflicts_from,
            self.loss.metrics, members, self.mesh.size,
        )  # fmt: skip
        specs = (REPLICATED, SPLIT, SPLIT)
        return over_devices(self.mesh, update, specs, (REPLICATED, REPLICATED), donate_argnums=(0,))


def _no_scores(archs: Sequence[Architecture]) -> list[float]:
    """In place of `TrainStep.score`, where those that it would choose do not train."""
    return [0.0] * len(archs)


def _stack(grads: Any) -> Any:
    """Adds a leading axis to every gradient, which is divided among the devices."""
    return jax.tree.map(lambda g: g[None], grads)
