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


def optimizer(config: Any, learning_rate: optax.Schedule) -> optax.GradientTransformation:
    """Clip, then L2 weight decay, then momentum, then the learning rate.

    The decay is added once to the summed gradients of the sandwich: as in the paper, where it regularises the
    biggest architecture's loss alone (Yu et al., 2020, section 3.1), it acts once a step, not once a member.

    Args:
      config: the `optimizer` part of a config.
    """
    parts = []
    if config.clip_norm:
        parts.append(optax.clip_by_global_norm(config.clip_norm))
    if config.weight_decay:
        parts.append(optax.add_decayed_weights(config.weight_decay, mask=decayed))
    if config.name == "sgd":
        parts.append(optax.sgd(learning_rate, config.momentum or None, config.nesterov))
    else:
        parts.append(
            optax.rmsprop(
                learning_rate, config.rmsprop_decay, config.rmsprop_eps, momentum=config.momentum or None,
                eps_in_sqrt=True, initial_scale=1.0,
            )
        )  # fmt: skip
    return optax.chain(*parts)
