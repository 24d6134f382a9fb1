"""What a member minimises: its loss, weighed against the other members' and by a teacher from outside the run."""

import jax

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
