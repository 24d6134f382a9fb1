"""Learning-rate schedules and the chain of optax transformations of one update."""

from typing import Any

import jax
import jax.numpy as jnp
import optax


def schedule(config: Any, steps_per_epoch: int, epochs: int) -> optax.Schedule:
    """Learning rate by step: linear warm-up from 0, then decay.

    'exponential' multiplies by `decay_rate` every `decay_epochs` epochs and stays at `end_factor` of the start once
    it gets there (Yu et al., 2020, section 3.1); the decay counts from step 0, as if there were no warm-up.
    'cosine' falls from the start, after the warm-up, to `end_factor` of it at the last epoch (Loshchilov and
    Hutter, 2017).

    Args:
      config: the `optimizer` part of a config. steps_per_epoch, epochs: of the whole run.
    """
    warmup = round(config.warmup_epochs * steps_per_epoch)
    rate = config.learning_rate
    if config.schedule == "exponential":
        period = max(1, round(config.decay_epochs * steps_per_epoch))

        def decay(step):
            periods = step // period if config.staircase else step / period
            return rate * jnp.maximum(config.decay_rate**periods, config.end_factor)

    else:
        steps = max(1, steps_per_epoch * epochs - warmup)
        cosine = optax.cosine_decay_schedule(rate, steps, config.end_factor)

        def decay(step):
            return cosine(step - warmup)

    if not warmup:
        return decay
    # The first step already moves: it has rate / warmup, not 0.
    return lambda step: jnp.where(step < warmup, rate * (step + 1) / warmup, decay(step))


def decayed(params: dict) -> dict:
    """Which parameters weight decay acts on: kernels; not batch norm's scales and biases, nor other biases."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key.endswith("kernel"), params)


def clip(max_norm: float) -> optax.GradientTransformation:
    """optax.clip_by_global_norm by one factor: its division of every gradient costs XLA on CPUs a copy of them all."""

    def update(updates, state, params=None):
        norm = optax.tree.norm(updates)
        factor = jnp.where(norm < max_norm, 1.0, max_norm / norm)
        return jax.tree.map(lambda g: factor.astype(g.dtype) * g, updates), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


class KeptTrace(optax.TraceState):
    """The state of `momentum`: after an update that was not finite it is that from before."""


def momentum(decay: float, nesterov: bool) -> optax.GradientTransformationExtraArgs:
    """optax.trace whose trace stays as it is where the argument `finite` of `update` is false.

    The new trace is computed once, in the memory of the old one, and the update from it. Else XLA computes both from
    the old trace, side by side, and copies trace and weights for that: 2 of the 5 times that it moves all of them.
    """

    def update(updates, state, params=None, *, finite=True, **_):
        kept = jax.tree.map(lambda g, t: jnp.where(finite, g + decay * t, t), updates, state.trace)
        trace = jax.tree.map(jax.lax.optimization_barrier, kept)
        if nesterov:
            trace_and_gradient = jax.tree.map(lambda g, t: g + decay * t, updates, trace)
            return trace_and_gradient, KeptTrace(trace)
        return trace, KeptTrace(trace)

    def init(params):
        return KeptTrace(jax.tree.map(jnp.zeros_like, params))

    return optax.GradientTransformationExtraArgs(init, update)


def optimizer(config: Any, learning_rate: optax.Schedule) -> optax.GradientTransformation:
    """Clip, then L2 weight decay, then momentum, then the learning rate.

    The decay is added once to the summed gradients of the sandwich: as in the paper, where it regularises the
    biggest architecture's loss alone (Yu et al., 2020, section 3.1), it acts once a step, not once a member.

    Args:
      config: the `optimizer` part of a config.
    """
    parts = []
    if config.clip_norm:
        parts.append(clip(config.clip_norm))
    if config.weight_decay:
        parts.append(optax.add_decayed_weights(config.weight_decay, mask=decayed))
    if config.name == "sgd":
        step = optax.scale_by_learning_rate(learning_rate)
        # In a chain of their own, as in optax.sgd.
        parts.append(optax.chain(momentum(config.momentum, config.nesterov), step) if config.momentum else step)
    else:
        parts.append(
            optax.rmsprop(
                learning_rate, config.rmsprop_decay, config.rmsprop_eps, momentum=config.momentum or None,
                eps_in_sqrt=True, initial_scale=1.0,
            )
        )  # fmt: skip
    return optax.chain(*parts)
