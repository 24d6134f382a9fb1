"""Real images of a run's data, for the checks of exported files."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from bignas_jax.config.choices import OnCorrupt
from bignas_jax.data import DataError
from bignas_jax.errors import CorruptImage
from bignas_jax.runs.session import Session


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Real images in every form that the checks need.

    Attributes:
      decoded: the decoded images, uint8 [H, W, 3] each.
      cropped: uint8 [N, S, S, 3], as training's evaluation prepares them.
      labels: int [N].
      split: the split that they come from.
    """

    decoded: Sequence[np.ndarray]
    cropped: np.ndarray
    labels: np.ndarray
    split: str


def real_images(session: Session, number: int) -> Comparison:
    """Up to `number` images, spread over the held-out images, or over the validation split if none are held out.

    Raises:
      DataError: there are no images, one cannot be read, or one is corrupt and the options do not allow to skip it.
    """
    dataset = session.dataset
    split = "holdout" if dataset.splits["holdout"] else "val"
    source, indices = dataset.select(split)
    spread = np.unique(np.linspace(0, len(indices) - 1, min(number, len(indices))).round().astype(int))
    decoded, labels = [], []
    for index in indices[spread]:
        try:
            decoded.append(source.load(int(index)))
        except CorruptImage as error:
            if dataset.on_corrupt == OnCorrupt.SKIP:
                continue
            raise DataError(f"corrupt image {error}; mend it, or set config.data.on_corrupt=skip") from error
        labels.append(int(source.labels[index]))
    if not decoded:
        raise DataError(f"found no image in the {split} split to compare on, expected at least one")
    cropped = np.stack([dataset.evaluation(image) for image in decoded])
    return Comparison(decoded, cropped, np.array(labels), split)
