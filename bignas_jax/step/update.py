"""The end of a step: the mean of the gradients over the devices, the clip, the optimizer's update and the average."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

from bignas_jax.kernels.reduce import mean_over
from bignas_jax.kernels.target import current
from bignas_jax.programs.devices import AXIS
from bignas_jax.step.conflicts import combined
from bignas_jax.step.flat import Flat
from bignas_jax.step.optimizer import KeptTrace
from bignas_jax.step.state import TrainState


def make_update(
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    ema_decay: float,
    resolve_from: int,
    names: Sequence[str],
    members: int,
    devices: int,
    state: TrainState,
    grads: tuple[Any, ...],
    metrics: Sequence[jax.Array],
) -> tuple[TrainState, dict[str, jax.Array]]:
    """The new state, and the metrics of the step.

    On GPUs it works on vectors of all weights, and not on each array.

    Args:
      optimizer: optax transformation of the summed gradient.
      schedule: the learning rate by update; it is only reported.
      ema_decay: decay of the average of the weights; 0 if there is none.
      resolve_from: the step from which conflicts between gradients are resolved, where `grads` holds two trees.
      names: names of the further scalars that the loss gives.
      members: members of the step.
      devices: devices of the mesh.
      state: the train state.
      grads: this device's sum of gradients, in the form of the weights with a leading axis of 1; or the biggest's
        gradient and the sum of the others', if conflicts between them are resolved.
      metrics: [1, 2 + names] of each member: loss, accuracy, and the further scalars; after those of the first
        micro-batch those of the next. They are averaged over the micro-batches.
    """
    flat = Flat.of(state.params) if current().platform == "gpu" else None
    mean = _mean if flat is None else partial(_mean_of_vectors, flat)
    metrics = jnp.stack(metrics)
    if len(metrics) > members:
        metrics = jnp.mean(metrics.reshape(-1, members, *metrics.shape[1:]), 0)
    *biggest, grads, metrics = mean((*grads, metrics), devices)
    if biggest:
        trees = (*biggest, grads) if flat is None else [flat.split(vectors) for vectors in (*biggest, grads)]
        grads = combined(*trees, state.step >= resolve_from)
        grads = grads if flat is None else flat.join(grads)
    norm, loss = optax.tree.norm(grads), metrics[:, 0, 0]
    finite = jnp.isfinite(norm) & jnp.all(jnp.isfinite(loss))

    old = state.params, state.opt_state, state.ema
    old = old if flat is None else flat.join_within(old)
    params, opt_state, ema = old
    update = optax.with_extra_args_support(optimizer).update
    updates, opt_state = update(grads, opt_state, params, finite=finite)
    params = optax.apply_updates(params, updates)
    if ema is not None:
        # At the start the average follows the weights faster, so that it forgets the initial weights.
        decay = jnp.minimum(ema_decay, (1 + state.step) / (10 + state.step))
        ema = optax.incremental_update(params, ema, 1 - decay)
    new = _keep(finite, (params, opt_state, ema), old)
    params, opt_state, ema = new if flat is None else flat.split_within(new)

    missed = 1 - finite.astype(jnp.int32)
    skipped, skipped_in_row = state.skipped + missed, (state.skipped_in_row + missed) * missed
    named = {name: metrics[:, 0, 2 + n] for n, name in enumerate(names)}
    return TrainState(params, opt_state, ema, state.step + 1, skipped, skipped_in_row), named | {
        "loss": loss,
        "accuracy": metrics[:, 0, 1],
        "gradient_norm": norm,
        "learning_rate": jnp.float32(schedule(state.step - state.skipped)),
        "finite": finite,
        "skipped": skipped,
        "skipped_in_row": skipped_in_row,
    }


def _mean(trees: tuple[Any, ...], devices: int) -> tuple[Any, ...]:
    """The means over AXIS of gradients, without their leading axis, and of the metrics. They need one all-reduce."""
    *grads, metrics = trees
    trees = *jax.tree.map(lambda g: g[0], grads), metrics
    if devices == 1:
        return trees  # saves two copies of all gradients, to the vector and back: 40 of 95 ms on CPUs
    vector, unravel = ravel_pytree(trees)
    return unravel(mean_over(vector, AXIS))


def _mean_of_vectors(flat: Flat, trees: tuple[Any, ...], devices: int) -> tuple[Any, ...]:
    """The same, of gradients as the vectors of `flat`."""
    *grads, metrics = trees
    joined = [flat.join(tree) for tree in grads]
    if devices == 1:
        return *joined, metrics
    parts = [vector for vectors in joined for vector in (vectors["kernel"], vectors["rest"])]
    rest, means = mean_over(jnp.concatenate([*parts, metrics.reshape(-1)]), AXIS), []
    for _ in grads:
        mean, rest = flat.divide(rest)
        means.append(mean)
    return *means, rest.reshape(metrics.shape)


def _keep(finite: jax.Array, new: Any, old: Any) -> Any:
    """`new` if finite, otherwise `old`. The state of `optimizer.momentum` is always `new`: it has done this itself."""

    def is_trace(node):
        return isinstance(node, KeptTrace)

    def chosen(new, old):
        return new if is_trace(new) else jnp.where(finite, new, old)

    return jax.tree.map(chosen, new, old, is_leaf=is_trace)
