"""What a member minimises and logs: its loss, weighed against other members' and by a teacher from outside the run."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from bignas_jax.step.losses import Loss
from bignas_jax.step.recipe import Recipe


def objective_of(
    recipe: Recipe, loss: Loss, logits: jax.Array, targets: jax.Array, teacher: jax.Array | None,
    outside: jax.Array | None, weight: jax.Array | None,
) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:  # fmt: skip
    """The scalar whose gradient a member adds to the step's sum.

    Args:
      recipe: the weights of the losses, and the micro-batches of a step, over which the sum is a mean.
      loss: the step's loss.
      logits: [B, classes], of the member.
      targets: float32 [B, classes], the labels as probabilities.
      teacher: [B, classes], logits of the step's first member; None if the member does not learn from it.
      outside: [B, classes], logits of the teacher from outside the run; None if the member does not learn from it.
      weight: a float32 scalar, how much the member counts in the step; None means 1.
    Returns:
      The scalar; the loss that is logged, without the member's weight, so that members can be compared; and the other
      scalars of the loss.
    """
    value, extra = loss(logits, targets, teacher)
    objective = value
    if outside is not None:
        taught, extra = loss(logits, targets, outside)
        objective = recipe.label_weight * value + recipe.teacher_weight * taught
        # What is logged is a mean, so that guessing has the same loss as without a teacher.
        value = objective / (recipe.label_weight + recipe.teacher_weight)
    if weight is not None:
        objective = weight * objective
    return objective / recipe.micro_batches, value, extra


def probabilities(label: jax.Array, num_classes: int) -> jax.Array:
    """[B, classes] of labels, int32 [B]; mixed labels are probabilities already."""
    return label if label.ndim == 2 else jax.nn.one_hot(label, num_classes)


def metrics_of(loss: jax.Array, logits: jax.Array, label: jax.Array, further: Sequence[jax.Array]) -> jax.Array:
    """[1, 2 + further]: loss and accuracy of this device's images, and the other scalars that the loss gives.

    A mixed image counts as of the class that has the greater part in it.
    """
    label = jnp.argmax(label, -1) if label.ndim == 2 else label
    return jnp.stack([loss, jnp.mean(jnp.argmax(logits, -1) == label), *further])[None]
