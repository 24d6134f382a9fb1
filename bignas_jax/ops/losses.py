"""Losses of the sandwich: the biggest architecture learns from labels, all others learn from its predictions."""

import jax
import jax.numpy as jnp


def smooth_labels(labels: jax.Array, num_classes: int, smoothing: float) -> jax.Array:
    """[B] int -> [B, num_classes] with 1 - smoothing on the label and smoothing spread over all classes.

    (Szegedy et al., 2016, section 7.)
    """
    return jax.nn.one_hot(labels, num_classes) * (1 - smoothing) + smoothing / num_classes


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
