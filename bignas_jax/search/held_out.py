"""Calibration and held-out images, placed on the devices once, and the evaluation of candidates on them.

All candidates of a resolution are calibrated and scored in the same masked executable. Nothing is compiled or read for
a candidate.
"""

import dataclasses
import enum
import math
import zlib
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from bignas_jax.data import DataError
from bignas_jax.programs.buckets import shared
from bignas_jax.programs.devices import divide
from bignas_jax.runs.session import Session
from bignas_jax.spaces.architecture import Architecture

ORDER = 0x5EA2C4  # a stream of its own for the order of the held-out images
LEAST_BATCH = 48  # images, if there are so many: smaller batches leave the devices idle
FREE_SHARE = 0.5  # the share of a device's free memory that images may take


class Part(enum.StrEnum):
    """What a candidate is scored on, in turn, for as long as it can still win.

    The previews are together the first part's images, scored on statistics of a single calibration batch.
    """

    PREVIEW = "preview"
    PREVIEW_REST = "preview_rest"
    FIRST = "first"
    REST = "rest"

    @property
    def is_preview(self) -> bool:
        """Whether few calibration images do."""
        return self in (Part.PREVIEW, Part.PREVIEW_REST)


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Numbers of images, over all devices.

    Attributes:
      calibration: images that batch-norm statistics are computed from.
      calibration_batch: images of a calibration batch.
      held_out: all held-out images.
      first: held-out images in the first part, which every candidate is scored on, if there is no preview.
      batch: images of an evaluation batch. The last batch of each part is padded.
      preview: images of the first preview, which every candidate is scored on before; 0 without previews.
    """

    calibration: int
    calibration_batch: int
    held_out: int
    first: int
    batch: int
    preview: int = 0

    def of(self, part: Part) -> slice:
        """The images of a part, in the order of the held-out images."""
        return {
            Part.PREVIEW: slice(self.preview),
            Part.PREVIEW_REST: slice(self.preview, self.first if self.preview else 0),
            Part.FIRST: slice(self.first),
            Part.REST: slice(self.first, self.held_out),
        }[part]

    def parts(self) -> list[Part]:
        """The parts that have images, in their order."""
        return [part for part in Part if self.images(part)]

    def images(self, part: Part) -> int:
        """The number of images of a part."""
        return len(range(self.held_out)[self.of(part)])


def plan(session: Session) -> Sizes:
    """The numbers of images that a search uses, by the options.

    Raises:
      DataError: there are no held-out images, or too few images to calibrate with; one line.
    """
    options = session.options
    wanted, name = options.calibration.num_images, "config.calibration.num_images"
    if options.search.calibration_images:
        wanted, name = options.search.calibration_images, "config.search.calibration_images"
    try:
        calibration = session.loader("calibration", options.calibration.batch_size, limit=wanted).num_images
    except DataError as error:
        raise DataError(str(error).replace("config.calibration.num_images", name)) from error
    held_out = session.loader("holdout", options.evaluation.batch_size).num_images
    return _sizes(session, calibration, held_out)


def _sizes(session: Session, calibration: int, held_out: int) -> Sizes:
    options, devices = session.options, session.mesh.size
    first = max(1, round(options.search.first_part * held_out))
    # The batch size is chosen so that the first part nearly fills its batches and needs little padding.
    batches = math.ceil(first / options.evaluation.batch_size)
    share = math.ceil(first / batches)
    batch = max(share, min(LEAST_BATCH, options.evaluation.batch_size))
    batch = math.ceil(batch / devices) * devices
    # The number of devices changes the batch alone, and no figure: the preview is a share of the images.
    fewer = share < first or calibration > options.calibration.batch_size
    preview = share if options.search.preview and fewer else 0
    return Sizes(calibration, options.calibration.batch_size, held_out, first, batch, preview)


class HeldOut:
    """The images of a search, and candidates' outcomes on them.

    The order of the held-out images is drawn once, so that the first part is a fair sample of all.

    Args:
      session: the run's session, with its evaluator.
      weights: the supernet's weights, on the mesh.
      sizes: from `plan`. Corrupt images that the options allow to skip are subtracted (`self.sizes`, `self.skipped`).
      resident: True keeps the images on the devices. False keeps them in the host's memory and copies them to the
        devices for every candidate, with the same results.

    Raises:
      DataError: no held-out image could be read.
    """

    def __init__(self, session: Session, weights: Any, sizes: Sizes, resident: bool):
        self._session, self._weights, self._resident = session, weights, resident
        # Each process reads all of them: their order, and so the first part, is that of one process.
        read = list(session.loader("holdout", sizes.batch, whole=True).once())
        whole = {name: np.concatenate([batch[name] for batch in read]) for name in _arrays(read[0])}
        kept = {name: array[whole["weight"] > 0] for name, array in whole.items()}
        count = len(kept["label"])
        if not count:
            raise DataError("no held-out image could be read: mend the files, or hold out others")
        self.skipped = sizes.held_out - count
        self.sizes = sizes if not self.skipped else _sizes(session, sizes.calibration, count)
        order = np.random.default_rng(ORDER).permutation(count)
        self.checksum = 0
        # Each batch is placed as soon as it is made: the batches never all wait on the host.
        self._parts = {
            part: [
                self._keep(batch, counts=not part.is_preview)
                for batch in _batches(kept, order[self.sizes.of(part)], self.sizes.batch)
            ]
            for part in Part
        }
        calibration = session.loader("calibration", sizes.calibration_batch, limit=sizes.calibration, whole=True)
        self._calibration = [self._keep(batch) for batch in calibration.once()]

    def _keep(self, batch: dict, counts: bool = True) -> dict:
        for array in _arrays(batch).values() if counts else ():
            self.checksum = zlib.crc32(np.ascontiguousarray(array).view(np.uint8), self.checksum)
        return self._place(batch) if self._resident else _arrays(batch)

    def compile(self, resolutions: Iterable[int], progress: bool = True) -> None:
        """Compiles the executables of these resolutions: one for all candidates of a resolution."""
        session, sizes = self._session, self.sizes
        session.evaluator.compile(
            session.shapes,
            [shared(session.space, resolution) for resolution in resolutions],
            session.options.data.image_size,
            sizes.calibration_batch,
            sizes.batch,
            progress,
        )

    def calibrate(self, arch: Architecture, preview: bool = False) -> Any:
        """Batch-norm statistics of a candidate, of all calibration images, or of a preview's first batch of them."""
        batches = self._calibration[:1] if preview else self._calibration
        found = self._session.evaluator.calibrate(
            self._weights, self._placement(arch), self._on_devices(batches), len(batches)
        )
        return found[arch]

    def outcomes(self, arch: Architecture, statistics: Any, part: Part) -> np.ndarray:
        """A candidate's outcomes on a part of the held-out images: see `Evaluator.outcomes`.

        Args:
          arch: the candidate.
          statistics: its batch-norm statistics, from `calibrate`.
          part: which part.
        """
        found, _ = self._session.evaluator.outcomes(
            self._weights, self._placement(arch), {arch: statistics}, self._on_devices(self._parts[part])
        )
        return found[arch]

    def _placement(self, arch: Architecture) -> dict:
        return {arch: shared(self._session.space, arch.resolution)}

    def _on_devices(self, batches: Iterable[dict]) -> Iterable[dict]:
        return batches if self._resident else map(self._place, batches)

    def _place(self, batch: dict) -> dict:
        return divide(self._session.mesh, _arrays(batch))


def _arrays(batch: dict) -> dict[str, np.ndarray]:
    return {name: batch[name] for name in ("image", "label", "weight")}


def _batches(arrays: dict[str, np.ndarray], order: np.ndarray, size: int) -> Iterator[dict]:
    """Batches of the images in this order. The last batch is padded with images of weight 0."""
    for start in range(0, len(order), size):
        part = order[start : start + size]
        batch = {name: array[np.pad(part, (0, size - len(part)))] for name, array in arrays.items()}
        batch["weight"] = (np.arange(size) < len(part)).astype(np.float32)
        yield batch


def device_bytes(session: Session, sizes: Sizes) -> int:
    """The bytes that the images take on each device."""
    side = session.options.data.image_size
    images = sizes.calibration + sum(map(sizes.images, Part))  # those of previews are placed a second time
    return math.ceil(images * side * side * 3 / session.mesh.size)


def allowed_bytes(session: Session) -> int | None:
    """The bytes that images may take on each device: the options' limit, or half of the free memory.

    None if the free memory is unknown.
    """
    if session.options.search.resident_gb:
        return int(session.options.search.resident_gb * 1e9)
    device = session.mesh.devices.flat[0]
    stats = device.memory_stats() if device.platform != "cpu" else None
    if stats and "bytes_limit" in stats:
        return int(FREE_SHARE * (stats["bytes_limit"] - stats.get("bytes_in_use", 0)))
    free = _free_host_bytes()
    return None if free is None else int(FREE_SHARE * free / session.mesh.size)


def _free_host_bytes() -> int | None:
    try:
        with open("/proc/meminfo") as lines:
            found = dict(line.split(":", 1) for line in lines)
        return int(found["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None
