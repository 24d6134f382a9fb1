"""The curves of a step, one for each of its members."""

from collections.abc import Mapping
from typing import Any

from bignas_jax.spaces.cost import count
from bignas_jax.step.train_step import TrainStep


def curves(step: TrainStep, metrics: Mapping[str, Any], num_classes: int) -> dict[str, float]:
    """The loss, its further scalars and the accuracy of each member, and the multiply-adds of those that were drawn.

    Args:
      step: the train step, right after a step.
      metrics: of that step, on the host.
      num_classes: outputs of the classifier.
    """
    names = step.members.names[: len(step.chosen)]  # students may train later
    found = {
        f"{kind}/{name}": float(value)
        for kind in ("loss", *step.loss.metrics, "accuracy")
        for name, value in zip(names, metrics[kind], strict=True)
    }
    for name, member in zip(names, step.chosen, strict=True):
        if member.part.bucket.masked:  # those of others follow from their resolution alone
            found[f"macs/{name}"] = count(step.space, member.arch, num_classes).macs
    return found
