"""The losses of a member, computed from its logits, the labels as probabilities, and the teacher's logits."""

from typing import Protocol

import jax
import jax.numpy as jnp

from bignas_jax.config.choices import Losses
from bignas_jax.ops.alpha_divergence import alpha_divergence
from bignas_jax.ops.losses import cross_entropy, smooth
from bignas_jax.plugins import find
from bignas_jax.step.recipe import Recipe


class Loss(Protocol):
    """A loss. It is made as `Class(recipe)`, with the step's `Recipe`.

    Attributes:
      metrics: names of the other scalars that it returns, which are logged beside the loss.
    """

    metrics: tuple[str, ...]

    def __call__(
        self, logits: jax.Array, targets: jax.Array, teacher_logits: jax.Array | None
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The mean loss over a device's images. It is traced inside the member's program.

        Args:
          logits: [B, classes], of the member.
          targets: float32 [B, classes], probabilities: 1 on the label, or mixed labels where the images are mixed.
          teacher_logits: [B, classes], of the step's first member, without a gradient; None if the member learns from
            the labels.
        Returns:
          The loss, a float32 scalar, and the scalars that `metrics` names.
        """


class SoftCrossEntropy:
    """Cross-entropy with smoothed labels, or with the teacher's soft predictions.

    With the teacher it is in-place distillation at temperature 1 (Yu et al., 2020, section 3.1).
    """

    metrics = ()

    def __init__(self, recipe: Recipe):
        self._smoothing = recipe.label_smoothing

    def __call__(self, logits, targets, teacher_logits):
        if teacher_logits is None:
            targets = smooth(targets, self._smoothing)
        else:
            targets = jax.nn.softmax(teacher_logits)
        return cross_entropy(logits, targets), {}


class Labels:
    """All members learn from the smoothed labels, as without in-place distillation."""

    metrics = ()

    def __init__(self, recipe: Recipe):
        self._smoothing = recipe.label_smoothing

    def __call__(self, logits, targets, teacher_logits):
        return cross_entropy(logits, smooth(targets, self._smoothing)), {}


class TrustedTeacher:
    """Students learn from the teacher's soft predictions as far as it is right on the image, otherwise from the label.

    The target of an image is p t + (1 - p) y: t are the teacher's soft predictions, p is the probability that they
    give to the label (of mixed labels, how far both distributions overlap), and y is the smoothed label. At the start
    of a training p is near 1 / classes, so that students do not wait for a teacher that knows nothing. At its end p
    is near 1 and this is in-place distillation. Each image has its own p: nothing depends on the number of devices,
    nor on the step. Members without a teacher learn from the labels.
    """

    metrics = ()

    def __init__(self, recipe: Recipe):
        self._smoothing = recipe.label_smoothing

    def __call__(self, logits, targets, teacher_logits):
        smoothed = smooth(targets, self._smoothing)
        if teacher_logits is None:
            return cross_entropy(logits, smoothed), {}
        soft = jax.nn.softmax(teacher_logits)
        trust = jnp.sum(jnp.minimum(soft, targets), -1, keepdims=True)
        return cross_entropy(logits, trust * soft + (1 - trust) * smoothed), {}


class AlphaDivergence:
    """Students learn by the clipped adaptive alpha-divergence from the teacher (Wang et al., 2021, AlphaNet).

    The loss is the divergence itself, which is zero where both agree. AlphaNet clips gradients by value at 1
    (`config.optimizer.clip_value`). Members without a teacher learn from smoothed labels.
    """

    metrics = ()

    def __init__(self, recipe: Recipe):
        self._labels = SoftCrossEntropy(recipe)

    def __call__(self, logits, targets, teacher_logits):
        if teacher_logits is None:
            return self._labels(logits, targets, None)
        return alpha_divergence(logits, teacher_logits), {}


LOSSES: dict[str, type[Loss]] = {
    Losses.SOFT_CROSS_ENTROPY: SoftCrossEntropy,
    Losses.LABELS: Labels,
    Losses.TRUSTED_TEACHER: TrustedTeacher,
    Losses.ALPHA_DIVERGENCE: AlphaDivergence,
}


def loss_class(name: str) -> type[Loss]:
    """The loss class of this name.

    Args:
      name: a name in LOSSES, or `package.module:Class`.
    Raises:
      ConfigError: there is no such class.
    """
    return find(name, LOSSES, "config.sandwich.loss")
