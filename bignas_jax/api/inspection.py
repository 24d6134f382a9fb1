"""What a child takes the classes for, image by image: its confusion, and where it is surest and wrong."""

import dataclasses
import heapq
import os
import pathlib
import sys
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from tqdm import tqdm

from bignas_jax.config.choices import OnCorrupt
from bignas_jax.data import DataError
from bignas_jax.data.dataset import Dataset
from bignas_jax.errors import ConfigError, CorruptImage, EvaluationError
from bignas_jax.files import write_text
from bignas_jax.search.report import evaluation

BATCH = 64  # images that are decoded and computed together


@dataclasses.dataclass(frozen=True)
class Inspection:
    """A child's answers to labelled images.

    Attributes:
      about: the child, in words.
      images: the split or the folder of the images.
      class_names: of the run's classes.
      confusion: int [classes, classes]: how many images of a class (row) got each class (column) as their first answer.
      wrong: the images of the surest wrong answers, the surest first.
      left_out: how many corrupt images were left out.
    """

    about: str
    images: str
    class_names: Sequence[str]
    confusion: np.ndarray
    wrong: Sequence[evaluation.Wrong]
    left_out: int = 0

    @property
    def top1(self) -> float:
        """The fraction of images whose first answer is right."""
        return float(np.trace(self.confusion) / self.confusion.sum())

    def write(self, path: str | os.PathLike) -> pathlib.Path:
        """Writes one page, which needs nothing else, to this path."""
        path = pathlib.Path(path)
        title = f"{self.about}, on {self.images}"
        content = evaluation.page(title, self.class_names, self.confusion, self.wrong, self.left_out)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, content)
        return path


def inspect(
    logits: Callable[[np.ndarray], np.ndarray], dataset: Dataset, split: str, wrong: int, about: str, images: str
) -> Inspection:
    """Looks at each image of a split once.

    Args:
      logits: from uint8 [N, S, S, 3] to float32 [N, classes].
      dataset: with the images and their preparation.
      split: 'val', 'holdout' or 'train'.
      wrong: how many wrong answers are kept with their images.
      about: the child, in words.
      images: where they come from, in words.
    Raises:
      ConfigError: `wrong` is below 0.
      EvaluationError: a logit is not finite.
      DataError: an image is corrupt and the options do not allow to leave it out, or none is left.
    """
    if wrong < 0:
        raise ConfigError(f"wrong: found {wrong}, expected a number of images >= 0")
    confusion = np.zeros((dataset.num_classes, dataset.num_classes), np.int64)
    # The least sure of those that are kept stands first. Of equal ones, the later image leaves.
    kept: list[tuple[float, int, evaluation.Wrong]] = []
    read = 0
    for names, crops, labels in _batches(dataset, split):
        rows = logits(crops).astype(np.float64)
        if not np.isfinite(rows).all():
            raise EvaluationError(f"{images}: found logits that are not finite, expected numbers: look at its training")
        shifted = np.exp(rows - rows.max(1, keepdims=True))
        shares = shifted / shifted.sum(1, keepdims=True)
        found = shares.argmax(1)
        np.add.at(confusion, (labels, found), 1)
        for n in np.flatnonzero(found != labels) if wrong else ():
            sure, own = float(shares[n, found[n]]), float(shares[n, labels[n]])
            entry = evaluation.Wrong(names[n], int(labels[n]), int(found[n]), sure, own, crops[n].copy())
            heapq.heappush(kept, (sure, -(read + n), entry))
            if len(kept) > wrong:
                heapq.heappop(kept)
        read += len(labels)
    if not read:
        raise DataError(f"{images}: found no image that can be read, expected at least one")
    surest = [entry for *_, entry in sorted(kept, key=lambda item: item[:2], reverse=True)]
    return Inspection(about, images, dataset.class_names, confusion, surest, dataset.splits[split] - read)


def _batches(dataset: Dataset, split: str) -> Iterator[tuple[list[str], np.ndarray, np.ndarray]]:
    """Names, images as the run prepares them, uint8 [N, S, S, 3], and labels."""
    source, indices = dataset.select(split)
    part: list[tuple[str, np.ndarray, int]] = []
    for place, index in enumerate(tqdm(indices, desc="inspect", unit="img", file=sys.stderr)):
        index = int(index)
        try:
            part.append((source.name(index), dataset.evaluation(source.load(index)), int(source.labels[index])))
        except CorruptImage as error:
            if dataset.on_corrupt != OnCorrupt.SKIP:
                raise DataError(f"corrupt image {error}; mend it, or set config.data.on_corrupt=skip") from error
        if part and (len(part) == BATCH or place == len(indices) - 1):
            names, crops, labels = zip(*part, strict=True)
            yield list(names), np.stack(crops), np.array(labels)
            part = []
