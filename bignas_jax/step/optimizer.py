"""Learning-rate schedules and the chain of optax transformations of one update."""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import optax

from bignas_jax.config.choices import Optimizers, Schedules
from bignas_jax.config.options import Optimizer
from bignas_jax.errors import ConfigError


def schedule(options: Optimizer, steps_per_epoch: int, epochs: int) -> optax.Schedule:
    """The learning rate by step: linear warm-up from 0, then decay.

    'exponential' multiplies the rate by `decay_rate` every `decay_epochs` epochs. It stops at `end_factor` of the start
    rate (Yu et al., 2020, section 3.1). The decay counts from step 0, as if there were no warm-up. 'cosine' starts
    after the warm-up. It falls from the start rate to `end_factor` of it at the last epoch (Loshchilov and Hutter,
    2017).

    Args:
      options: the schedule's name, its start rate and its decay.
      steps_per_epoch: steps of one epoch.
      epochs: epochs of the whole run.
    Raises:
      ConfigError: there is no schedule of that name.
    """
    decay = _named(_SCHEDULES, options.schedule, "schedule")(options, steps_per_epoch, epochs)
    warmup = _warmup(options, steps_per_epoch)
    if not warmup:
        return decay
    rate = options.learning_rate
    # The first step already moves: it has rate / warmup, not 0.
    return lambda step: jnp.where(step < warmup, rate * (step + 1) / warmup, decay(step))


def _warmup(options: Optimizer, steps_per_epoch: int) -> int:
    return round(options.warmup_epochs * steps_per_epoch)


def _exponential(options: Optimizer, steps_per_epoch: int, epochs: int) -> optax.Schedule:
    period = max(1, round(options.decay_epochs * steps_per_epoch))

    def decay(step):
        periods = step // period if options.staircase else step / period
        return options.learning_rate * jnp.maximum(options.decay_rate**periods, options.end_factor)

    return decay


def _cosine(options: Optimizer, steps_per_epoch: int, epochs: int) -> optax.Schedule:
    warmup = _warmup(options, steps_per_epoch)
    steps = max(1, steps_per_epoch * epochs - warmup)
    cosine = optax.cosine_decay_schedule(options.learning_rate, steps, options.end_factor)
    return lambda step: cosine(step - warmup)


_SCHEDULES = {Schedules.EXPONENTIAL: _exponential, Schedules.COSINE: _cosine}


def _named(makers: Mapping[str, Callable], name: str, field: str) -> Callable:
    if name not in makers:
        raise ConfigError(f"config.optimizer.{field}: found {name!r}, expected one of {', '.join(makers)}")
    return makers[name]


def decayed(params: dict) -> dict:
    """A mask of the parameters that weight decay acts on: kernels and the matrices that transform them.

    Neither batch norm's scales nor any biases are among them.
    """
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key.endswith(("kernel", "matrix")), params)


def clip(max_norm: float) -> optax.GradientTransformation:
    """The same as optax.clip_by_global_norm, with one factor for all gradients.

    optax divides every gradient. On CPUs, XLA then copies all of them.

    Args:
      max_norm: the largest norm of all gradients together.
    """

    def update(updates, state, params=None):
        norm = optax.tree.norm(updates)
        factor = jnp.where(norm < max_norm, 1.0, max_norm / norm)
        return jax.tree.map(lambda g: factor.astype(g.dtype) * g, updates), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


class KeptTrace(optax.TraceState):
    """The state of `momentum`. An update that is not finite leaves it as it is."""


def momentum(decay: float, nesterov: bool) -> optax.GradientTransformationExtraArgs:
    """The same as optax.trace, but the trace stays as it is if the argument `finite` of `update` is false.

    The new trace is computed once, in the memory of the old one. The update is computed from the new trace. Otherwise
    XLA computes both from the old trace, side by side. For that it copies the trace and the weights: 2 of the 5 times
    that it moves all of them.

    Args:
      decay: the factor of the old trace.
      nesterov: whether the momentum is Nesterov's.
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


def optimizer(options: Optimizer, learning_rate: optax.Schedule) -> optax.GradientTransformation:
    """The update of a step: clipping, then L2 weight decay, then momentum, then the learning rate.

    Gradients are clipped to the norm first and then by value, if both are asked for. 'adamw' decays the weights
    themselves, beside the moments (Loshchilov and Hutter, 2019); its first moment decays by `momentum`, its second by
    `adam_decay`.

    Weight decay is added to the summed gradients of the sandwich, so that it acts once a step and not once a member. In
    the paper it also acts once: it regularises the loss of the biggest architecture alone (Yu et al., 2020, section
    3.1).

    Args:
      options: the optimizer's name and its constants.
      learning_rate: the result of `schedule`.
    Raises:
      ConfigError: there is no optimizer of that name.
    """
    parts = []
    if options.clip_norm:
        parts.append(clip(options.clip_norm))
    if options.clip_value:
        parts.append(optax.clip(options.clip_value))
    if options.weight_decay and options.name != Optimizers.ADAMW:
        parts.append(optax.add_decayed_weights(options.weight_decay, mask=decayed))
    parts.append(_named(_OPTIMIZERS, options.name, "name")(options, learning_rate))
    return optax.chain(*parts)


def _sgd(options: Optimizer, learning_rate: optax.Schedule) -> optax.GradientTransformation:
    step = optax.scale_by_learning_rate(learning_rate)
    # A chain of their own, as in optax.sgd.
    return optax.chain(momentum(options.momentum, options.nesterov), step) if options.momentum else step


def _rmsprop(options: Optimizer, learning_rate: optax.Schedule) -> optax.GradientTransformation:
    return optax.rmsprop(
        learning_rate, options.rmsprop_decay, options.rmsprop_eps, momentum=options.momentum or None,
        eps_in_sqrt=True, initial_scale=1.0,
    )  # fmt: skip


def _adamw(options: Optimizer, learning_rate: optax.Schedule) -> optax.GradientTransformation:
    return optax.adamw(
        learning_rate, options.momentum, options.adam_decay, options.adam_eps, weight_decay=options.weight_decay,
        mask=decayed,
    )  # fmt: skip


_OPTIMIZERS = {Optimizers.SGD: _sgd, Optimizers.RMSPROP: _rmsprop, Optimizers.ADAMW: _adamw}
