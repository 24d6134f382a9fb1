"""From image numbers to a batch of pixels: what runs in a loader's workers."""

import multiprocessing
import os
import signal
import sys
import time
import warnings
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import get_worker_info

from bignas_jax.data import draws
from bignas_jax.data.decode import Reduction
from bignas_jax.data.sources import Source
from bignas_jax.data.transforms import NUM_DRAWS, Augmentation, CenterCrop
from bignas_jax.errors import CorruptImage, DataError, UnreadableImage
from bignas_jax.text import shown

_PAUSES = (0.2, 0.8, 2.0, 4.0, 8.0)  # seconds before a file is tried again that could not be read: 15 in all
_GLANCE = 0.1  # seconds between looks at `cancelled` in a pause
_MAX_REPLACEMENTS = 100  # in a row; a data set in which so many are corrupt is not worth training on


@dataclass(frozen=True)
class Slice:
    """One process's part of a batch: image numbers int64 [n], padded up to `size` images when read."""

    epoch: int
    indices: np.ndarray
    size: int


@dataclass(frozen=True)
class Reader:
    """Reads slices of a source, each a function of the slice and the seed alone.

    Attributes:
        augmentation: for training; None for the evaluation transform.
        replacements: int64 tensor of the images that stand in for corrupt ones; None gives a corrupt image
            weight 0.
        skip_corrupt: replace or weight 0 (and count); otherwise a corrupt image is an error. A file that cannot be
            read is an error in any case, after it was tried again: it may be as good as any other.
        cancelled: uint8 tensor [1] in memory shared with the workers; once it is 1, what is being read is
            given up.
    """

    source: Source
    evaluation: CenterCrop
    augmentation: Augmentation | None
    seed: int
    replacements: torch.Tensor | None
    skip_corrupt: bool
    cancelled: torch.Tensor

    def __getitem__(self, part: Slice) -> dict | DataError | None:
        """The batch (image as a torch tensor), an error for the process that asked, or None once cancelled.

        An error is returned, not raised: torch would wrap it into the worker's traceback.
        """
        try:
            return self.read(part)
        except DataError as error:
            return error

    def read(self, part: Slice) -> dict | None:
        side = self.evaluation.image_size
        image = torch.empty((part.size, side, side, 3), dtype=torch.uint8)
        pixels = image.numpy()
        pixels[len(part.indices) :] = 0
        label = np.zeros(part.size, np.int32)
        weight = np.zeros(part.size, np.float32)
        skipped = 0
        indices = part.indices.tolist()
        numbers, seeds = self._draw(part)
        for row, index in enumerate(indices):
            if self.cancelled.item():
                return None
            reduction = self.augmentation.reduction(numbers[row]) if self.augmentation else None
            index, decoded, failures = self._load(part.epoch, index, reduction)
            skipped += failures
            if decoded is None:
                pixels[row] = 0
                continue
            picture, full_size = decoded
            if self.augmentation is None:
                pixels[row] = self.evaluation(picture)
            else:
                pixels[row] = self.augmentation(picture, numbers[row], seeds[row], full_size)
            label[row], weight[row] = self.source.labels[index], 1
        return {"image": image, "label": label, "weight": weight, "skipped": skipped}

    def _draw(self, part: Slice) -> tuple[list, list]:
        """The random numbers of a slice's images: for each NUM_DRAWS in [0, 1) and a seed for torch."""
        if self.augmentation is None:
            return [], []
        key = draws.key(self.seed, part.epoch, draws.AUGMENT)
        numbers = draws.uniforms(key, part.indices, NUM_DRAWS)
        return numbers.tolist(), draws.bits(key ^ np.uint64(1), part.indices).tolist()

    def _load(self, epoch: int, index: int, reduction: Reduction | None) -> tuple[int, tuple | None, int]:
        """Image `index`, or what stands in for it: (its number, pixels and full size or None, 1 if it was corrupt)."""
        try:
            return index, self._decoded(index, reduction), 0
        except CorruptImage as error:
            if not self.skip_corrupt:
                raise DataError(
                    f"corrupt image {error}; replace it, or set config.data.on_corrupt='skip'"
                ) from None
        if self.replacements is None:
            return index, None, 1
        key = draws.key(self.seed, epoch, draws.REPLACE)
        candidates = draws.uniforms(key, [index], _MAX_REPLACEMENTS)[0] * len(self.replacements)
        for candidate in self.replacements[torch.from_numpy(candidates.astype(np.int64))].tolist():
            try:
                return candidate, self._decoded(candidate, reduction), 1
            except CorruptImage:
                continue
        raise DataError(
            f"{_MAX_REPLACEMENTS} images in a row are corrupt, among them {shown(self.source.name(index))}: "
            "check the data set"
        )

    def _decoded(self, index: int, reduction: Reduction | None) -> tuple[np.ndarray, tuple[int, int]]:
        """Pixels and full size of an image. A file that cannot be read is tried again a few times: a file system may be
        away for a moment.
        """
        for pause in _PAUSES:
            try:
                return self.source.load_reduced(index, reduction)
            except UnreadableImage:
                self._wait(pause)
        try:
            return self.source.load_reduced(index, reduction)
        except UnreadableImage as error:
            raise DataError(
                f"{error} in {len(_PAUSES) + 1} attempts over {sum(_PAUSES):.0f} s: mend the file, its rights or the "
                "file system, and repeat the command"
            ) from None

    def _wait(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while not self.cancelled.item() and (left := end - time.monotonic()) > 0:
            time.sleep(min(left, _GLANCE))


def as_it_is(batch):
    """In place of torch's collation: a reader's batches are whole already."""
    return batch


def start_worker(_worker: int) -> None:
    """Leaves signals to the process that trains: it saves first, and its workers read on meanwhile.

    Ctrl-C, and the SIGTERM of a scheduler that means every process of a job, reach workers too. SIGTERM
    ends a worker only after its loader was closed. A worker whose parent is gone ends by itself: torch
    looks every few seconds whether it is another process than at the start.
    """
    if os.getppid() != multiprocessing.parent_process().pid:
        os._exit(0)  # it ended while this worker was starting, which torch would not see
    cancelled = get_worker_info().dataset.cancelled

    def end_if_closed(_signal, _frame):
        if cancelled.item():
            os._exit(0)  # an exception could surface anywhere, in torch's or the interpreter's own closing

    def forgive_hanging_up(kind, error, trace):
        if not issubclass(kind, ConnectionError):  # Ctrl-C came while the parent was taking a batch over
            sys.__excepthook__(kind, error, trace)

    sys.excepthook = forgive_hanging_up
    warnings.filterwarnings("ignore", module="PIL")  # oddities in metadata, of no weight for pixels
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, end_if_closed)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
