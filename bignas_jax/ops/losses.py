"""Losses of the sandwich: the biggest architecture learns from labels, all others learn from its predictions."""

import jax
import jax.numpy as jnp


def smooth(targets: jax.Array, smoothing: float) -> jax.Array:
    """Probabilities with a part of them spread over all classes (Szegedy et al., 2016, section 7).

    Args:
      targets: [B, num_classes], probabilities; 1 on the label where it is known.
      smoothing: the part that is spread.
    """
    return targets * (1 - smoothing) + smoothing / targets.shape[-1]


def cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """The mean over the batch of -sum_c targets log softmax(logits).

    If the targets are the softmax of the biggest architecture, this is in-place distillation at temperature 1 (Yu et
    al., 2020, section 3.1).

    Args:
      logits: [B, num_classes].
      targets: [B, num_classes], probabilities.
    Returns:
      A scalar.
    """
    return -jnp.mean(jnp.sum(targets * jax.nn.log_softmax(logits), -1))
