"""Batches of a data set in an order that depends on (seed, epoch) alone."""

import atexit
import contextlib
import math
import os
import signal
import sys
import types
import weakref
from collections.abc import Iterable, Iterator
from multiprocessing import resource_tracker

import numpy as np
import torch

from bignas_jax.config.choices import OnCorrupt
from bignas_jax.data import draws
from bignas_jax.data.dataset import Dataset
from bignas_jax.data.reader import Reader, Slice, as_it_is, start_worker
from bignas_jax.errors import DataError

_SPLITS = {
    "train": "config.batch_size",
    "calibration": "config.calibration.batch_size",
    "holdout": "config.evaluation.batch_size",
    "val": "config.evaluation.batch_size",
}


class Loader:
    """Reads this process's part of each batch of a split.

    Global batch b of an epoch is order[b * batch_size : (b + 1) * batch_size]. Process p reads the p-th of
    `process_count` contiguous parts of it. With `train`, the order is shuffled anew each epoch, images are augmented,
    and the images left over at the end of an epoch are dropped if they do not fill a batch. Without `train`, each image
    is read once, in a fixed order, with the evaluation transform.

    Args:
        dataset: from `open_dataset`.
        split: 'train' (without the held-out images), 'holdout', 'val' or 'calibration'. 'calibration' is training
            images with the evaluation transform, in an order drawn from the seed, in full batches only.
        batch_size: images of a step, over all processes.
        train: whether to shuffle, to augment, and to drop the images left over at the end of an epoch.
        limit: number of images to read, drawn from all with the seed; 0 reads all.
        seed: replaces the data set's seed; None keeps it.
        num_workers: replaces the data set's number of workers; None keeps it. With 0, the calling thread reads.
        process_index: the number of this process.
        process_count: the number of processes.

    A batch is a dict of NumPy arrays, with B = batch_size / process_count:
        image: uint8 [B, S, S, 3].
        label: int32 [B].
        weight: float32 [B]; 0 for padding and for images that evaluation skips.
        skipped: int, corrupt images in this part of the batch. Training and calibration replace them; evaluation leaves
            them out.

    Raises:
        DataError: there are too few images for a batch, or a batch does not divide among the processes.
    """

    def __init__(
        self,
        dataset: Dataset,
        split: str,
        *,
        batch_size: int,
        train: bool = False,
        limit: int = 0,
        seed: int | None = None,
        num_workers: int | None = None,
        process_index: int = 0,
        process_count: int = 1,
    ):
        if split not in _SPLITS:
            raise DataError(f"split is {split!r}: expected one of {', '.join(_SPLITS)}")
        if not 0 <= process_index < process_count:
            raise DataError(f"process {process_index} of {process_count}: expected 0 to {process_count - 1}")
        if batch_size < 1 or batch_size % process_count:
            raise DataError(
                f"{_SPLITS[split]} is {batch_size}: expected a multiple of the {process_count} processes"
            )
        self._source, self._indices = dataset.select("train" if split == "calibration" else split)
        self._train, self._full = train, train or split == "calibration"
        self._seed = dataset.seed if seed is None else seed
        self._num_workers = dataset.num_workers if num_workers is None else num_workers
        self._dataset = dataset
        self._batch_size, self._process = batch_size, (process_index, process_count)

        available = len(self._indices)
        if limit > available:
            raise DataError(
                f"{limit} images of the {split} split are asked for, but it has {available}: "
                f"lower {'config.calibration.num_images' if split == 'calibration' else 'the limit'}"
            )
        wanted = limit or available
        if available == 0:
            raise DataError(
                f"the {split} split has no images" + (": set config.data.holdout" * (split == "holdout"))
            )
        if self._full and wanted < batch_size:
            raise DataError(
                f"{wanted} images of the {split} split do not fill one batch of {batch_size}: "
                f"lower {_SPLITS[split]}"
            )
        self.steps_per_epoch = wanted // batch_size if self._full else math.ceil(wanted / batch_size)
        self.num_images = self.steps_per_epoch * batch_size if self._full else wanted

    def order(self, epoch: int) -> np.ndarray:
        """The images of an epoch in reading order, as numbers in their source: int64 [num_images]."""
        if not self._full and self.num_images == len(self._indices):
            return self._indices
        shuffled = draws.permutation(draws.key(self._seed, epoch, draws.ORDER), len(self._indices))
        chosen = self._indices[shuffled[: self.num_images]]
        return chosen if self._full else np.sort(chosen)

    def epochs(self, start_step: int = 0, stop_step: int | None = None) -> "Batches":
        """Training batches of steps [start_step, stop_step), epoch after epoch. None as `stop_step` means no end.

        Nothing before `start_step` is read. Workers start at once and live until the iterator ends or is closed.
        """
        if not self._train:
            raise ValueError("epochs() needs Loader(..., train=True); once() reads a split for evaluation")
        return Batches(self._reader(), _Steps(self, start_step, stop_step), self._num_workers)

    def once(self) -> "Batches":
        """Every image once. The last batch is padded to full size; 'calibration' has full batches only.

        Workers live until the iterator ends or is closed.
        """
        if self._train:
            raise ValueError("once() needs Loader(..., train=False); epochs() reads a split for training")
        return Batches(self._reader(), _Steps(self, 0, self.steps_per_epoch), self._num_workers)

    def _reader(self) -> Reader:
        replaces = self._full and self._dataset.on_corrupt == OnCorrupt.SKIP
        return Reader(
            source=self._source,
            evaluation=self._dataset.evaluation,
            augmentation=self._dataset.augmentation if self._train else None,
            seed=self._seed,
            replacements=torch.from_numpy(self._indices) if replaces else None,
            skip_corrupt=self._dataset.on_corrupt == OnCorrupt.SKIP,
            cancelled=torch.zeros(1, dtype=torch.uint8),
        )


class _Steps(Iterable):
    """This process's slices of a loader's steps [start, stop)."""

    def __init__(self, loader: Loader, start: int, stop: int | None):
        self._loader, self._start, self._stop = loader, start, stop

    def __iter__(self) -> Iterator[Slice]:
        loader = self._loader
        batch_size, (process, count) = loader._batch_size, loader._process
        local, step, order_epoch, order = batch_size // count, self._start, None, None
        while self._stop is None or step < self._stop:
            epoch, batch = divmod(step, loader.steps_per_epoch)
            if epoch != order_epoch:
                order_epoch, order = epoch, loader.order(epoch)
            first = batch * batch_size + process * local
            end = min(first + local, (batch + 1) * batch_size)
            yield Slice(epoch, order[first:end], local)
            step += 1


class Batches:
    """An iterator of batches that owns its workers. `cancel` may be called from any thread."""

    def __init__(self, reader: Reader, steps: Iterable[Slice], num_workers: int):
        self._reader = reader
        self._loader = _start_workers(reader, steps, num_workers) if num_workers else None
        self._steps = steps
        self._source = self._begin()
        _open.add(self)

    def _begin(self) -> Iterator:
        if self._loader is None:
            return map(self._read_here, self._steps)
        with _starting_workers():
            return iter(self._loader)

    def _read_here(self, part: Slice):
        augmentation = self._reader.augmentation
        if augmentation is None or not augmentation.uses_torch_generator:
            return self._reader[part]
        state = torch.default_generator.get_state()
        try:
            return self._reader[part]
        finally:
            torch.default_generator.set_state(state)

    def __iter__(self) -> "Batches":
        return self

    def __next__(self) -> dict:
        if self._source is None:
            raise StopIteration
        try:
            batch = next(self._source)
        except StopIteration:
            self.close()
            raise
        except RuntimeError as error:
            self.close()
            if "DataLoader worker" not in str(error):
                raise
            raise DataError(
                f"a data worker ended: {str(error).splitlines()[0]}; often memory or shared memory "
                "(/dev/shm) ran out: lower config.data.num_workers or the batch size"
            ) from None
        if isinstance(batch, DataError):
            self.close()
            raise batch
        if batch is None:
            self.close()
            raise StopIteration
        batch["image"] = batch["image"].numpy()
        return batch

    def cancel(self) -> None:
        """Makes a `next` that waits in another thread end soon, as if there were no more batches."""
        self._reader.cancelled.fill_(1)

    def close(self) -> None:
        """Ends the workers now."""
        self.cancel()
        source, self._source = self._source, None
        loader, self._loader = self._loader, None
        workers = source if loader is not None and source is not None else getattr(loader, "_iterator", None)
        # Dropping torch's iterator would also end its workers, but only when no traceback holds it any more.
        if workers is not None:
            workers._shutdown_workers()
        _open.discard(self)

    def __del__(self):
        if getattr(self, "_loader", None) is not None:
            self.close()


_open: "weakref.WeakSet[Batches]" = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    for batches in list(_open):
        batches.close()


def _start_workers(reader: Reader, steps: Iterable[Slice], num_workers: int):
    """torch's loader over whole batches, in fresh processes. A fork may hang, because JAX runs threads."""
    return torch.utils.data.DataLoader(
        reader,
        batch_size=None,
        sampler=steps,
        num_workers=num_workers,
        collate_fn=as_it_is,
        worker_init_fn=start_worker,
        multiprocessing_context="spawn",
        generator=torch.Generator(),  # workers get their seed from it, not from the caller's generator
    )


@contextlib.contextmanager
def _quiet_tracker():
    """Keeps a helper process that starts within it from warning of what it cleans up behind others."""
    before = os.environ.get("PYTHONWARNINGS")
    os.environ["PYTHONWARNINGS"] = "ignore"
    try:
        yield
    finally:
        os.environ.pop("PYTHONWARNINGS")
        if before is not None:
            os.environ["PYTHONWARNINGS"] = before


@contextlib.contextmanager
def _starting_workers():
    """Keeps new workers from importing the caller's script, and with it JAX, which they do not need.

    It also keeps signals away until they can handle them. A process starts with the signals blocked that its parent
    blocks; `start_worker` unblocks SIGTERM.
    """
    main, sys.modules["__main__"] = sys.modules["__main__"], types.ModuleType("__main__")
    with _quiet_tracker():
        resource_tracker.ensure_running()  # a helper process that unblocks signals when it is first started
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        sys.modules["__main__"] = main
