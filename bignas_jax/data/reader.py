"""From image numbers to a batch of pixels. This code runs in a loader's workers."""

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
    """Reads slices of a source. A batch depends on the slice and the seed alone.

    Attributes:
        source: the images and labels.
        evaluation: the evaluation transform.
        augmentation: the transform of training; None takes the evaluation transform.
        seed: the seed of all random numbers.
        replacements: int64 tensor, the numbers of images that may replace corrupt ones. None gives these weight 0.
        skip_corrupt: True replaces a corrupt image or gives it weight 0, and counts it. False makes it an error. A file
            that cannot be read is tried again, and then is an error in any case: its image may be a good one.
        cancelled: uint8 tensor [1] in memory shared with the workers. When it becomes 1, reading is given up.
    """

    source: Source
    evaluation: CenterCrop
    augmentation: Augmentation | None
    seed: int
    replacements: torch.Tensor | None
    skip_corrupt: bool
    cancelled: torch.Tensor

    def __getitem__(self, part: Slice) -> dict | DataError | None:
        """The batch (image as a torch tensor), an error, or None once cancelled.

        An error is returned, and the process that asked raises it. torch would wrap it into the worker's traceback.
        """
        try:
            return self.read(part)
        except DataError as error:
            return error

    def read(self, part: Slice) -> dict | None:
        """The batch of a slice (image as a torch tensor), or None once cancelled."""
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
        """The random numbers of a slice's images: each gets NUM_DRAWS numbers in [0, 1) and a seed for torch."""
        if self.augmentation is None:
            return [], []
        key = draws.key(self.seed, part.epoch, draws.AUGMENT)
        numbers = draws.uniforms(key, part.indices, NUM_DRAWS)
        return numbers.tolist(), draws.bits(key ^ np.uint64(1), part.indices).tolist()

    def _load(self, epoch: int, index: int, reduction: Reduction | None) -> tuple[int, tuple | None, int]:
        """Image `index`, or its replacement: (its number, pixels and full size or None, 1 if `index` was corrupt)."""
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
    """Replaces torch's collation: a reader's batches are already complete."""
    return batch


def start_worker(_worker: int) -> None:
    """Makes a worker leave signals to the process that trains. That process saves first, and its workers still read.

    Ctrl-C reaches the workers too, and so does the SIGTERM that a scheduler sends to every process of a job. SIGTERM
    ends a worker only after its loader was closed. A worker whose parent is gone ends by itself: torch checks every few
    seconds whether the parent is still the same process.
    """
    if os.getppid() != multiprocessing.parent_process().pid:
        os._exit(0)  # the parent ended while this worker was starting, which torch would not notice
    cancelled = get_worker_info().dataset.cancelled

    def end_if_closed(_signal, _frame):
        if cancelled.item():
            os._exit(0)  # an exception could come out anywhere, also while torch or the interpreter shuts down

    def forgive_hanging_up(kind, error, trace):
        if not issubclass(kind, ConnectionError):  # that is Ctrl-C while the parent was receiving a batch
            sys.__excepthook__(kind, error, trace)

    sys.excepthook = forgive_hanging_up
    warnings.filterwarnings("ignore", module="PIL")  # odd metadata, which does not change the pixels
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, end_if_closed)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
