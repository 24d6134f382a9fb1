"""Losses of the sandwich: labels for the biggest architecture, its predictions for all others."""

import jax
import jax.numpy as jnp


def smooth_labels(labels: jax.Array, num_classes: int, smoothing: float) -> jax.Array:
    """[B] int -> [B, num_classes] with 1 - smoothing on the label and smoothing spread over all classes.

    (Szegedy et al., 2016, section 7.)
    """
    return jax.nn.one_hot(labels, num_classes) * (1 - smoothing) + smoothing / num_classes


def cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Mean over the batch of -sum_c targets log softmax(logits); both [B, num_classes].

    With the biggest architecture's softmax as targets this is in-place distillation at temperature 1 (Yu et al.,
    2020, section 3.1).
    """
    return -jnp.mean(jnp.sum(targets * jax.nn.log_softmax(logits), -1))
