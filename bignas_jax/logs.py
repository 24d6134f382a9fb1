"""What a run tells: a progress bar, metrics.jsonl, TensorBoard, and the table of an evaluation."""

import json
import pathlib
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from tensorboardX import SummaryWriter
from tqdm import tqdm

from bignas_jax.cost import Cost
from bignas_jax.evaluation import Score


class Logs:
    """Writes the records of a run; only on the first of several processes.

    A record is one line of `metrics.jsonl` (`step`, then numbers) and a point of each of its curves in TensorBoard.

    Args:
      workdir: the run's folder. start, stop: steps; records of later steps than `start`, left by a run that was
        killed after its last checkpoint, are dropped.
      active: False writes and shows nothing.
    """

    def __init__(self, workdir: pathlib.Path, start: int, stop: int, active: bool = True):
        self.active = active
        if not active:
            return
        path = workdir / "metrics.jsonl"
        kept = [line for line in _complete_lines(path) if json.loads(line)["step"] <= start]
        temporary = path.with_suffix(".tmp")
        temporary.write_text("".join(f"{line}\n" for line in kept))
        temporary.replace(path)
        self._file = path.open("a")
        # The rate of a curve belongs to this process alone: what was logged before a stop stands.
        self._board = SummaryWriter(str(workdir), purge_step=start + 1 if start else None, flush_secs=20)
        self._bar = tqdm(total=stop, initial=start, desc="train", unit="step", file=sys.stderr, mininterval=0.5)
        self._clock = time.perf_counter(), start

    def advance(self) -> None:
        if self.active:
            self._bar.update()

    def images_per_second(self, step: int, batch_size: int) -> float:
        """Since the last call."""
        if not self.active:
            return 0.0
        then, before = self._clock
        self._clock = time.perf_counter(), step
        return (step - before) * batch_size / (self._clock[0] - then)

    def pause(self) -> None:
        """Leaves the time since the last `images_per_second` out of account."""
        if self.active:
            self._clock = time.perf_counter(), self._clock[1]

    def record(self, step: int, values: Mapping[str, float], show: Mapping[str, str] | None = None) -> None:
        """Writes numbers by curve name; `show` replaces what stands behind the progress bar."""
        if not self.active:
            return
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._board.add_scalar(name, value, step)
        if show:
            self._bar.set_postfix(show, refresh=False)

    def images(self, name: str, images: np.ndarray, step: int) -> None:
        """A grid of uint8 images [N, H, W, 3]."""
        if self.active and len(images):
            self._board.add_images(name, images, step, dataformats="NHWC")

    def say(self, text: str) -> None:
        """A line for the user, which the progress bar makes way for."""
        if self.active:
            self._bar.write(text, file=sys.stderr)

    def close(self) -> None:
        if self.active:
            self._bar.close()
            self._board.close()
            self._file.close()


def _complete_lines(path: pathlib.Path) -> list[str]:
    """The lines of a file of JSON records, without one that a kill cut short."""
    if not path.exists():
        return []
    lines = []
    for line in path.read_text().splitlines():
        try:
            json.loads(line)
        except ValueError:
            continue
        lines.append(line)
    return lines


def table(rows: Sequence[tuple[str, int, Cost, Score]]) -> str:
    """The table of an evaluation: (name, resolution, cost, score) by row."""
    head = ("architecture", "resolution", "MACs (M)", "params (M)", "top-1 %", "top-5 %", "images/s")
    body = [
        (
            name,
            str(resolution),
            f"{cost.macs / 1e6:,.2f}",
            f"{cost.params / 1e6:,.3f}",
            f"{100 * score.top1:.2f}",
            f"{100 * score.top5:.2f}",
            f"{score.images_per_second:,.0f}" if score.images_per_second else "-",
        )
        for name, resolution, cost, score in rows
    ]
    widths = [max(len(row[column]) for row in (head, *body)) for column in range(len(head))]
    lines = [
        "  ".join(cell.ljust(w) if column == 0 else cell.rjust(w) for column, (cell, w) in enumerate(zip(row, widths)))
        for row in (head, *body)
    ]
    return "\n".join([lines[0], "  ".join("-" * w for w in widths), *lines[1:]])


def report(name: str, arch: Any, cost: Cost, score: Score) -> dict[str, Any]:
    """The JSON form of a row."""
    return {
        "name": name,
        "architecture": arch.to_dict(),
        "macs": cost.macs,
        "params": cost.params,
        "top1": score.top1,
        "top5": score.top5,
        "loss": score.loss,
        "images": score.images,
        "images_per_second": round(score.images_per_second, 1),
    }
