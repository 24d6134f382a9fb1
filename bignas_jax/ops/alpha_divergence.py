"""The adaptive alpha-divergence of a student from its teacher (Wang et al., 2021, AlphaNet, section 3).

A divergence at alpha = 1, which is Kullback and Leibler's, punishes a student that is too sure of too little. One at
alpha = -1 punishes a student that is sure where its teacher is not. Each image learns by the larger of the two.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

CLIP = 5.0  # limit of student / teacher at alpha = -1
LEAST = -1e30  # of a log-probability, so that differences stay finite


class _Sides(NamedTuple):
    """What both divergences are computed from.

    Attributes:
      student: [B, classes] probabilities.
      teacher: [B, classes] probabilities.
      ratio: [B, classes] student / teacher, at most CLIP.
      left: [B], the divergence at alpha = -1.
      right: [B], the divergence at alpha = 1.
    """

    student: jax.Array
    teacher: jax.Array
    ratio: jax.Array
    left: jax.Array
    right: jax.Array


def _sides(logits: jax.Array, teacher_logits: jax.Array) -> _Sides:
    # Ratios are taken between logarithms: a probability that is zero in float32 has one, and no division by it occurs.
    log_q, log_p = (jnp.maximum(_log_softmax(x), LEAST) for x in (logits, teacher_logits))
    q, p = jnp.exp(log_q), jnp.exp(log_p)
    ratio = jnp.exp(jnp.minimum(log_q - log_p, jnp.log(CLIP)))
    left = (jnp.sum(q * ratio, -1) - 1) / 2
    right = jnp.sum(jnp.where(p > 0, p * (log_p - log_q), 0), -1)
    return _Sides(q, p, ratio, left, right)


def _log_softmax(logits: jax.Array) -> jax.Array:
    """jax.nn.log_softmax, also for finite logits whose difference is not: it becomes the lowest finite number."""
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    below = jnp.maximum(logits - jnp.max(logits, -1, keepdims=True), jnp.finfo(logits.dtype).min)
    return below - jnp.log(jnp.sum(jnp.exp(below), -1, keepdims=True))


@jax.custom_vjp
def alpha_divergence(logits: jax.Array, teacher_logits: jax.Array) -> jax.Array:
    """The mean over the batch of the larger divergence, at alpha = -1 (clipped) or at alpha = 1.

    Both p = softmax(teacher) and q = softmax(student) are constants in the weights of the gradient, and the clip has no
    gradient. So the gradient is not the derivative of the clipped value: it is that of -sum_k q_k rho_k log q_k, with
    rho = 1/2 - min(q/p, 5) at alpha = -1 and rho = p/q at alpha = 1. Both are finite for finite logits.

    Args:
      logits: [B, classes] of the student.
      teacher_logits: [B, classes]; they get no gradient.
    Returns:
      A scalar, at least as large as the mean Kullback-Leibler divergence.
    """
    return _forward(logits, teacher_logits)[0]


def _forward(logits, teacher_logits):
    sides = _sides(logits, teacher_logits)
    return jnp.mean(jnp.maximum(sides.left, sides.right)), (sides, logits[:0], teacher_logits)


def _backward(residuals, g):
    sides, like, teacher_logits = residuals
    q, p, ratio, left, right = sides
    weighted = q * (0.5 - ratio)
    from_left = q * jnp.sum(weighted, -1, keepdims=True) - weighted
    gradient = jnp.where((left > right)[:, None], from_left, q - p) * (g / len(q))
    return gradient.astype(like.dtype), jnp.zeros_like(teacher_logits)


alpha_divergence.defvjp(_forward, _backward)
