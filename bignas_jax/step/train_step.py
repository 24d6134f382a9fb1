"""The sandwich step (Yu et al., 2020, section 3.1): biggest, n random and smallest architecture, one update.

Where a space leaves no choice, the step has one member: a child is trained as an ordinary network.

Each member's gradient is an executable of its own, compiled for its bucket; every device adds its members'
gradients up for itself. One last executable reduces the sum over the devices, once, and updates.
"""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh, NamedSharding

from bignas_jax.nets.mode import Mode
from bignas_jax.nets.sizes import sizes
from bignas_jax.nets.slicing import num_classes_of
from bignas_jax.nets.supernet import Supernet
from bignas_jax.ops import prepare
from bignas_jax.ops.losses import cross_entropy, smooth_labels
from bignas_jax.programs.buckets import Bucket, shared
from bignas_jax.programs.compile import compile_ahead
from bignas_jax.programs.devices import AXIS, REPLICATED, SPLIT, batch_sharding, over_devices, replicate, shapes
from bignas_jax.spaces.architecture import Architecture
from bignas_jax.spaces.space import Space
from bignas_jax.step.members.sandwich import member_names, members
from bignas_jax.step.optimizer import KeptTrace
from bignas_jax.step.recipe import Recipe
from bignas_jax.step.state import TrainState


class Sandwich:
    """The executables of a sandwich step, and the step itself.

    Args:
      space: the search space. graphdef: of its supernet. recipe: losses and regularisation.
      optimizer: optax transformation of the summed gradient. schedule: its learning rate by update, to report.
      mesh: devices, as `devices.make_mesh` gives them.
      identity: all that determines these arguments, and the shapes to compile for; see `buckets.compile_ahead`.
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
    ):
        self.space, self.graphdef, self.recipe, self.optimizer, self.mesh = space, graphdef, recipe, optimizer, mesh
        self.schedule, self.identity = schedule, identity
        self.executables: dict[Any, Any] = {}

    def init(self, params: Any) -> TrainState:
        """A train state at step 0 on the mesh."""
        zero = np.int32(0)
        ema = jax.tree.map(np.array, params) if self.recipe.ema_decay else None
        opt_state = jax.jit(self.optimizer.init)(params)
        return replicate(self.mesh, TrainState(params, opt_state, ema, zero, zero, zero))

    def compile(self, state: TrainState, batch: dict[str, Any], progress: bool = True) -> None:
        """Compiles every executable that a step can need.

        Args:
          state: the state, or its shapes. batch: `image` uint8 [B, S, S, 3] and `label` int32 [B], B being the
            global batch; shapes suffice.
        """
        split, whole = batch_sharding(self.mesh), NamedSharding(self.mesh, REPLICATED)
        params = shapes(state.params, whole)
        image, label = shapes(batch["image"], split), shapes(batch["label"], split)
        step = shapes(np.int32(0), whole)
        classes = num_classes_of(params)
        targets = jax.ShapeDtypeStruct((image.shape[0], classes), np.float32, sharding=split)
        totals = self._shape_of_totals(params)

        def lower_student(bucket: Bucket):
            sampled = None
            if bucket.masked:
                sampled = shapes(sizes(self.space, bucket.arch, bucket.arch), whole)
            return self._student(bucket).lower(params, image, label, targets, sampled, totals[0])

        students = len(member_names(self.space, self.recipe)) - 1
        buckets = [Bucket(self.space.smallest, masked=False)] if students else []
        if students > 1:
            buckets += [shared(self.space, resolution) for resolution in self.space.resolutions]
        jobs = {"teacher": lambda: self._teacher().lower(params, image, label, step)}
        jobs |= {bucket: partial(lower_student, bucket) for bucket in buckets}
        metrics = [totals[1]] * (students + 1)
        jobs["update"] = lambda: self._update().lower(shapes(state, whole), totals[0], metrics)
        self.executables = compile_ahead(jobs, "compile sandwich", progress, self.identity)

    def __call__(self, state: TrainState, batch: dict[str, jax.Array], step: int) -> tuple[TrainState, Any]:
        """One sandwich step. `state` is donated.

        Args:
          step: `state.step` as the host knows it.
        Returns:
          The new state, and metrics on the device: `loss` and `accuracy` [members] (agreement with the labels),
          `gradient_norm` before clipping, `learning_rate`, `finite` (whether the update was made), and the counters
          `skipped` and `skipped_in_row`.
        """
        _, *others = members(self.space, self.recipe, step)
        grads, metrics, targets = self.teach(state.params, batch, step)
        all_metrics = [metrics]
        for arch in others:
            grads, metrics = self.study(state.params, batch, arch, targets, grads, sliced=arch is others[-1])
            all_metrics.append(metrics)
        return self.executables["update"](state, grads, all_metrics)

    def teach(self, params: Any, batch: dict[str, jax.Array], step: int) -> tuple[Any, jax.Array, jax.Array]:
        """The biggest architecture's gradient (a leading axis of devices), metrics, and soft predictions."""
        return self.executables["teacher"](params, batch["image"], batch["label"], np.int32(step))

    def study(self, params, batch, arch: Architecture, targets, total, sliced: bool | None = None):
        """Adds the gradient of `arch` on the biggest's `targets` to `total`, which is donated; and its metrics.

        Args:
          sliced: whether `arch` runs in the executable of the smallest; None: if it is the smallest.
        """
        sliced = arch == self.space.smallest if sliced is None else sliced
        bucket = Bucket(arch, masked=False) if sliced else shared(self.space, arch.resolution)
        sampled = bucket.sampled(self.space, arch)
        return self.executables[bucket](params, batch["image"], batch["label"], targets, sampled, total)

    def _shape_of_totals(self, params: Any) -> tuple[Any, Any]:
        """Shapes of the gradient, one a device, and of a member's metrics."""
        devices, split = self.mesh.size, batch_sharding(self.mesh)

        def one_a_device(a):
            return jax.ShapeDtypeStruct((devices, *a.shape), a.dtype, sharding=split)

        return jax.tree.map(one_a_device, params), jax.ShapeDtypeStruct((devices, 2), np.float32, sharding=split)

    def _logits(self, params, image, bucket: Architecture, sampled, rng=None):
        recipe = self.recipe
        x = prepare(image, bucket.resolution, recipe.mean, recipe.std)
        mode = Mode(axis_name=AXIS if recipe.sync_batch_norm else None, remat=recipe.remat)
        if rng is not None:
            mode = dataclasses.replace(mode, rng=rng, dropout=recipe.dropout, drop_connect=recipe.drop_connect)
        net: Supernet = nnx.merge(self.graphdef, params)
        return net(x, bucket, sampled, mode)[0]

    def _teacher(self):
        """Gradient of the biggest architecture on the labels: (gradient, metrics, soft targets)."""
        space, recipe = self.space, self.recipe

        def teach(params, image, label, step):
            rng = jax.random.fold_in(jax.random.fold_in(jax.random.key(recipe.seed), step), jax.lax.axis_index(AXIS))

            def loss(params):
                logits = self._logits(params, image, space.biggest, None, rng)
                targets = smooth_labels(label, logits.shape[-1], recipe.label_smoothing)
                return cross_entropy(logits, targets), logits

            (value, logits), grads = jax.value_and_grad(loss, has_aux=True)(params)
            return _stack(grads), _metrics(value, logits, label), jax.nn.softmax(logits)

        return over_devices(self.mesh, teach, (REPLICATED, SPLIT, SPLIT, REPLICATED), (SPLIT, SPLIT, SPLIT))

    def _student(self, bucket: Bucket):
        """Gradient of a member on the biggest's soft predictions, added to that of the members before it.

        The gradient has a leading axis of the devices, each of which holds its own.
        """

        def study(params, image, label, targets, sampled, total):
            def loss(params):
                logits = self._logits(params, image, bucket.arch, sampled)
                return cross_entropy(logits, targets), logits

            (value, logits), grads = jax.value_and_grad(loss, has_aux=True)(params)
            total = jax.tree.map(jnp.add, total, _stack(grads))
            return total, _metrics(value, logits, label)

        specs = (REPLICATED, SPLIT, SPLIT, SPLIT, REPLICATED, SPLIT)
        return over_devices(self.mesh, study, specs, (SPLIT, SPLIT), donate_argnums=(5,))

    def _update(self):
        """The one reduction over the devices, the clip and the update."""
        recipe = self.recipe

        def update(state, grads, metrics):
            grads, metrics = _mean_over_devices((grads, jnp.stack(metrics)), self.mesh.size)
            grads = jax.tree.map(lambda g: g[0], grads)
            norm, loss = optax.tree.norm(grads), metrics[:, 0, 0]
            finite = jnp.isfinite(norm) & jnp.all(jnp.isfinite(loss))

            optimizer = optax.with_extra_args_support(self.optimizer)
            updates, opt_state = optimizer.update(grads, state.opt_state, state.params, finite=finite)
            params = optax.apply_updates(state.params, updates)
            ema = state.ema
            if ema is not None:
                # Early on the average follows the weights faster, so as not to keep their start.
                decay = jnp.minimum(recipe.ema_decay, (1 + state.step) / (10 + state.step))
                ema = optax.incremental_update(params, ema, 1 - decay)
            keep = partial(_keep, finite)
            missed = 1 - finite.astype(jnp.int32)
            new = TrainState(
                params=keep(params, state.params),
                opt_state=keep(opt_state, state.opt_state),
                ema=keep(ema, state.ema),
                step=state.step + 1,
                skipped=state.skipped + missed,
                skipped_in_row=(state.skipped_in_row + missed) * missed,
            )
            return new, {
                "loss": loss,
                "accuracy": metrics[:, 0, 1],
                "gradient_norm": norm,
                "learning_rate": jnp.float32(self.schedule(state.step - state.skipped)),
                "finite": finite,
                "skipped": new.skipped,
                "skipped_in_row": new.skipped_in_row,
            }

        specs = (REPLICATED, SPLIT, SPLIT)
        return over_devices(self.mesh, update, specs, (REPLICATED, REPLICATED), donate_argnums=(0,))


def _mean_over_devices(tree: Any, devices: int) -> Any:
    """The mean over AXIS, as one vector, so that one all-reduce carries all of it."""
    if devices == 1:
        return tree  # spares a copy of all gradients there and back: 40 of 95 ms on CPUs
    vector, unravel = ravel_pytree(tree)
    return unravel(jax.lax.pmean(vector, AXIS))


def _keep(finite: jax.Array, new: Any, old: Any) -> Any:
    """`new` if finite, else `old`. The momentum of `optimizer.momentum` has been kept by itself."""

    def is_trace(node):
        return isinstance(node, KeptTrace)

    def chosen(new, old):
        return new if is_trace(new) else jnp.where(finite, new, old)

    return jax.tree.map(chosen, new, old, is_leaf=is_trace)


def _stack(grads: Any) -> Any:
    """A leading axis, which the devices share."""
    return jax.tree.map(lambda g: g[None], grads)


def _metrics(loss: jax.Array, logits: jax.Array, label: jax.Array) -> jax.Array:
    """[1, 2]: loss and accuracy of this device's images."""
    return jnp.stack([loss, jnp.mean(jnp.argmax(logits, -1) == label)])[None]
