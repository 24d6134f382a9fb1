"""Milliseconds of children on another device, from a table that was measured there (`bignas_jax latency export`).

The estimate is that of `latency.LatencyTable`: a sum over the parts, corrected by a line that is fitted to networks
which were measured whole. A call of a runtime takes some time by itself, which each part's time holds. A whole network
pays it once, so the time of a model that does nothing is subtracted from each part's.

The error is that of a line which has not seen the networks it is held against. The line that a search uses is then
fitted to these networks, too: seven alone can leave all others a percent or two too low.
"""

import csv
import dataclasses
import io
import math
import os
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from bignas_jax.errors import ConfigError, FileError
from bignas_jax.files import read_text
from bignas_jax.search.latency import fit_line
from bignas_jax.spaces.architecture import Architecture
from bignas_jax.spaces.cost import count
from bignas_jax.spaces.parts import FITTED, HELD_BACK, distinct_parts, draw_networks, network_of, parts_of
from bignas_jax.spaces.space import Space

FIELD = "config.search.latency_table"
CALL = "call"


@dataclasses.dataclass(frozen=True)
class Rows:
    """The content of a table.

    Attributes:
      ms: milliseconds by name.
      about: what the columns device, runtime and threads say, in words.
    """

    ms: Mapping[str, float]
    about: str


def read_rows(path: str | os.PathLike, batch_size: int) -> Rows:
    """Reads a table of the columns name and ms, and whatever else.

    Raises:
      ConfigError: it cannot be read, a row has no name or no time, a name comes twice, or the rows were measured at
        another batch size; one line.
    """
    try:
        reader = csv.DictReader(io.StringIO(read_text(path)), strict=True)
        rows = list(reader)
    except OSError as error:
        raise ConfigError(f"{FIELD}: {path}: {error.strerror}, expected the table that a measurement wrote") from error
    except (FileError, csv.Error) as error:
        raise ConfigError(f"{FIELD}: {path}: {error}, expected a CSV file") from error
    for column in ("name", "ms"):
        if column not in (reader.fieldnames or ()):
            raise ConfigError(f"{FIELD}: {path}: found no column {column!r} in its first line, expected name and ms")
    ms: dict[str, float] = {}
    for number, row in enumerate(rows, 2):
        where, name = f"{FIELD}: {path} line {number}", (row["name"] or "").strip()
        if not name or name in ms:
            raise ConfigError(f"{where}: found the name {name!r}, expected one that is new")
        ms[name] = _time(row["ms"], f"{where}, {name}")
        batch = (row.get("batch") or "").strip()
        if batch and batch != str(batch_size):
            raise ConfigError(
                f"{where}: found a time of {batch} images a call, expected {batch_size}: set "
                f"config.search.latency_batch_size={batch}, or export and measure again"
            )
    columns = ("device", "runtime", "threads")
    about = {name: sorted({(row.get(name) or "").strip() for row in rows} - {""}) for name in columns}
    words = [*about["device"], *about["runtime"], *(f"threads {number}" for number in about["threads"])]
    return Rows(ms, ", ".join(words) or os.path.basename(path))


def _time(text: str | None, where: str) -> float:
    try:
        value = float(text or "")
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise ConfigError(f"{where}: found {text!r} as its milliseconds, expected a number > 0")
    return value


class DeviceTable:
    """Latencies of a space's children, estimated from a table that was measured elsewhere.

    Args:
      space: the search space.
      num_classes: classes of the classifier.
      batch_size: images of one call.
      path: the table.

    Raises:
      ConfigError: the table cannot be read, or lacks a part of the space; one line.
    """

    def __init__(self, space: Space, num_classes: int, batch_size: int, path: str | os.PathLike):
        self.space, self.num_classes, self.batch_size = space, num_classes, batch_size
        self._rows = read_rows(path, batch_size)
        self._call = self._rows.ms.get(CALL, 0.0)
        self._blocks = [part.name for part in distinct_parts(space, num_classes)]
        missing = [name for name in self._blocks if name not in self._rows.ms]
        if missing:
            raise ConfigError(
                f"{FIELD}: {path}: found no row for {len(missing)} of the {len(self._blocks)} parts of this space, "
                f"such as {missing[0]}, expected all that `bignas_jax latency export` writes: measure them, too"
            )
        fitted, held_back = draw_networks(space, FITTED, HELD_BACK)
        self._held_back = [arch for arch in held_back if self.measure(arch) is not None]
        self._line, self._checked_line = self._fit([*fitted, *held_back]), self._fit(fitted)

    def estimate(self, arch: Architecture) -> float:
        """Milliseconds of a call of the whole child, estimated from its parts'.

        Raises:
          ValueError: `arch` is not in the space.
        """
        self.space.check(arch)
        return self._on(self._line, arch)

    def measure(self, arch: Architecture) -> float | None:
        """Milliseconds of the whole child, if it is in the table."""
        return self._rows.ms.get(network_of(self.space, arch, self.num_classes).name)

    def check(self) -> dict[str, Any]:
        """How far estimates are off on networks that their line was not fitted to: as `LatencyTable.check`."""
        networks = [
            {
                "macs": count(self.space, arch, self.num_classes).macs,
                "estimated_ms": self._on(self._checked_line, arch),
                "measured_ms": self.measure(arch),
            }
            for arch in self._held_back
        ]
        errors = [abs(n["estimated_ms"] - n["measured_ms"]) / n["measured_ms"] for n in networks]
        return {
            "batch_size": self.batch_size,
            "device": self._rows.about,
            "blocks": len(self._blocks),
            "error": float(np.median(errors)) if errors else None,
            "networks": networks,
        }

    def _fit(self, archs: Iterable[Architecture]) -> tuple[float, float]:
        """The line of those of these networks that were measured whole; the sum itself where fewer than two were."""
        pairs = [(self._sum(arch), ms) for arch in archs if (ms := self.measure(arch)) is not None]
        return fit_line(*zip(*pairs, strict=True)) if len(pairs) > 1 else (0.0, 1.0)

    def _on(self, line: tuple[float, float], arch: Architecture) -> float:
        return line[0] + line[1] * self._sum(arch)

    def _sum(self, arch: Architecture) -> float:
        parts = parts_of(self.space, arch, self.num_classes)
        return self._call + sum(max(self._rows.ms[part.name] - self._call, 0.0) for part in parts)
