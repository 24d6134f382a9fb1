"""Calibration and held-out images, placed on the devices once, and the evaluation of candidates on them.

A candidate is calibrated and scored in the masked executable that all architectures of its resolution share: nothing
is compiled or read for it.
"""

import dataclasses
import math
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import numpy as np

from bignas_jax.architecture import Architecture
from bignas_jax.buckets import shared
from bignas_jax.devices import batch_sharding
from bignas_jax.session import Session

ORDER = 0x5EA2C4  # a stream of its own for the order of the held-out images
FREE_SHARE = 0.5  # of a device's free memory that images may take


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Numbers of images, over all devices.

    Attributes:
      calibration: images that batch-norm statistics come from, in batches of `calibration_batch`.
      held_out: images in all, in batches of `batch`. first: those that every candidate is scored on, whole batches.
    """

    calibration: int
    calibration_batch: int
    held_out: int
    batch: int
    first: int


def plan(session: Session) -> Sizes:
    """How many images a search uses, from the config.

    Raises:
      DataError: there are no held-out images, or too few to calibrate with; one line.
    """
    config, devices = session.config, session.mesh.size
    wanted = config.search.calibration_images or config.calibration.num_images
    calibration_batch = config.calibration.batch_size
    calibration = session.loader("calibration", calibration_batch, limit=wanted).num_images
    held_out = session.loader("holdout", config.evaluation.batch_size).num_images
    first = max(1, round(config.search.first_part * held_out))
    # The first part fills its batches but for the last one, so that little is spent on padding.
    batches = math.ceil(first / config.evaluation.batch_size)
    batch = math.ceil(first / batches / devices) * devices
    return Sizes(calibration, calibration_batch, held_out, batch, min(batch * batches, held_out))


class HeldOut:
    """The images of a search, and candidates' outcomes on them.

    Held-out images stand in an order drawn once, so that the first part is a fair sample of all.

    Args:
      session: with its evaluator. weights: of the supernet, on the mesh. sizes: from `plan`.
      resident: keep the images on the devices; False keeps them in the host's memory and copies them to the devices
        for every candidate, with the same results.
    """

    def __init__(self, session: Session, weights: Any, sizes: Sizes, resident: bool):
        self._session, self._weights, self.sizes, self._resident = session, weights, sizes, resident
        calibration = session.loader("calibration", sizes.calibration_batch, limit=sizes.calibration)
        held_out = _shuffled(list(session.loader("holdout", sizes.batch).once()), sizes)
        # Placed one by one, so that the host holds one copy at most.
        keep = self._place if resident else _arrays
        self._calibration = [keep(batch) for batch in calibration.once()]
        self._held_out = [keep(batch) for batch in held_out]

    def compile(self, resolutions: Iterable[int], progress: bool = True) -> None:
        """Compiles the executables that candidates of these resolutions share."""
        session, sizes = self._session, self.sizes
        session.evaluator.compile(
            session.shapes,
            [shared(session.space, resolution) for resolution in resolutions],
            session.config.data.image_size,
            sizes.calibration_batch,
            sizes.batch,
            progress,
        )

    def calibrate(self, arch: Architecture) -> Any:
        """Batch-norm statistics of a candidate."""
        batches = self._on_devices(self._calibration)
        found = self._session.evaluator.calibrate(
            self._weights, self._placement(arch), batches, len(self._calibration)
        )
        return found[arch]

    def outcomes(self, arch: Architecture, statistics: Any, rest: bool) -> np.ndarray:
        """What became of the first part of the held-out images, or of the rest: as `Evaluator.outcomes`."""
        end = math.ceil(self.sizes.first / self.sizes.batch)
        part = self._held_out[end:] if rest else self._held_out[:end]
        found, _ = self._session.evaluator.outcomes(
            self._weights, self._placement(arch), {arch: statistics}, self._on_devices(part)
        )
        return found[arch]

    def _placement(self, arch: Architecture) -> dict:
        return {arch: shared(self._session.space, arch.resolution)}

    def _on_devices(self, batches: Iterable[dict]) -> Iterable[dict]:
        return batches if self._resident else map(self._place, batches)

    def _place(self, batch: dict) -> dict:
        sharding = batch_sharding(self._session.mesh)
        return {name: jax.device_put(array, sharding) for name, array in _arrays(batch).items()}


def _arrays(batch: dict) -> dict[str, np.ndarray]:
    return {name: batch[name] for name in ("image", "label", "weight")}


def _shuffled(batches: list[dict], sizes: Sizes) -> Iterator[dict]:
    """The held-out images in the drawn order, in batches of which the last is padded with images of no weight."""
    whole = {name: np.concatenate([batch[name] for batch in batches]) for name in _arrays(batches[0])}
    batches.clear()
    order = np.random.default_rng(ORDER).permutation(sizes.held_out)
    for start in range(0, sizes.held_out, sizes.batch):
        part = order[start : start + sizes.batch]
        missing = sizes.batch - len(part)
        batch = {name: array[np.pad(part, (0, missing))] for name, array in whole.items()}
        batch["weight"] = np.where(np.arange(sizes.batch) < len(part), batch["weight"], np.float32(0))
        yield batch


def device_bytes(session: Session, sizes: Sizes) -> int:
    """What the images take on each device."""
    side = session.config.data.image_size
    return math.ceil((sizes.calibration + sizes.held_out) * side * side * 3 / session.mesh.size)


def allowed_bytes(session: Session) -> int | None:
    """What images may take on each device: the config's limit, else half of what is free; None where unknown."""
    if session.config.search.resident_gb:
        return int(session.config.search.resident_gb * 1e9)
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
