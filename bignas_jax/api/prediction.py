"""What a child says about an image."""

import dataclasses
from collections.abc import Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class Prediction:
    """The likeliest classes of an image, the likeliest first.

    Attributes:
      names: names of classes.
      probabilities: of these classes, by softmax; all classes of the run together have 1.
    """

    names: tuple[str, ...]
    probabilities: tuple[float, ...]

    @property
    def name(self) -> str:
        """The likeliest class."""
        return self.names[0]

    @property
    def probability(self) -> float:
        """The probability of the likeliest class."""
        return self.probabilities[0]


def predictions(logits: np.ndarray, names: Sequence[str], top: int) -> list[Prediction]:
    """The `top` likeliest classes of each image. Equal classes stand in the order of the run.

    Args:
      logits: float32 [N, classes].
      names: of the classes, in the order of the logits.
      top: how many classes are kept of each image.
    """
    shifted = np.exp(logits.astype(np.float64) - logits.max(1, keepdims=True))
    probabilities = shifted / shifted.sum(1, keepdims=True)
    order = np.argsort(-probabilities, axis=1, kind="stable")[:, :top]
    return [
        Prediction(tuple(names[label] for label in best), tuple(float(row[label]) for label in best))
        for row, best in zip(probabilities, order, strict=True)
    ]
