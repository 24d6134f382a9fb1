"""What a run tells while it trains: a progress bar, metrics.jsonl, TensorBoard and trackers."""

import contextlib
import json
import math
import pathlib
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from tensorboardX import SummaryWriter
from tqdm import tqdm

from bignas_jax.errors import ConfigError, FileError
from bignas_jax.files import add_line, open_lines, whole_lines, write_text
from bignas_jax.runs.trackers import Tracker


class Logs:
    """Writes the records of a run; only on the first of several processes.

    A record is one line of `metrics.jsonl` (`step`, then numbers) and a point of each of its curves in TensorBoard.

    Args:
      workdir: the run's folder. start, stop: steps; records of later steps than `start`, left by a run that was
        killed after its last checkpoint, are dropped.
      active: False writes and shows nothing. bar: whether to show the progress bar.
      track: starts the trackers, given a function that shows a line. They get the records from before, too.
    """

    def __init__(
        self,
        workdir: pathlib.Path,
        start: int,
        stop: int,
        active: bool = True,
        bar: bool = True,
        track: Callable[[Callable[[str], None]], Sequence[Tracker]] | None = None,
    ):
        self.active, self.evaluated = active, True
        self._before: list[dict[str, Any]] = []
        if not active:
            return
        path = workdir / "metrics.jsonl"
        kept = [(line, record) for line, record in _records(path) if record["step"] <= start]
        self._before = [record for _, record in kept]
        self.evaluated = any(_is_evaluation(record, start) for _, record in kept)
        write_text(path, "".join(f"{line}\n" for line, _ in kept))
        self._file = open_lines(path)
        self._board = _Board(workdir, start)
        self._bar = tqdm(
            total=stop, initial=start, desc="train", unit="step", file=sys.stderr, mininterval=0.5, disable=not bar
        )
        self._clock = time.perf_counter(), start
        self._step, self._stop = start, stop
        self._trackers = track(self.say) if track else []
        for record in self._before:
            self._track(record["step"], {name: value for name, value in record.items() if name != "step"})

    def losses(self, members: Sequence[str]) -> list[tuple[int, list[float]]]:
        """The losses of a step's members by step, as far as they were logged before this start.

        Steps with a loss that is NaN are left out. Members that did not train in a step have none.
        They are given once, and not kept: those of a long run take room.
        """
        before, self._before = self._before, []
        names = [f"loss/{name}" for name in members]
        found = [(record["step"], [record[name] for name in names if name in record]) for record in before]
        return [(step, losses) for step, losses in found if losses and None not in losses]

    def advance(self) -> None:
        if self.active:
            self._step += 1
            self._bar.update()

    def images_per_second(self, step: int, batch_size: int) -> float:
        """Since the last call."""
        if not self.active:
            return 0.0
        then, before = self._clock
        self._clock = time.perf_counter(), step
        return (step - before) * batch_size / (self._clock[0] - then) if step > before else 0.0

    def pause(self, step: int) -> None:
        """Measures `images_per_second` from now and from this step on: what came before held other work."""
        if self.active:
            self._clock = time.perf_counter(), step

    def record(self, step: int, values: Mapping[str, float], show: Mapping[str, str] | None = None) -> None:
        """Writes numbers by curve name; `show` replaces what stands behind the progress bar."""
        if not self.active:
            return
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        add_line(self._file, {"step": step, **finite}, sync=False)
        for name, value in values.items():
            self._board.add("scalar", name, value, step)
        self._track(step, values)
        if show:
            self._bar.set_postfix(show, refresh=False)

    def images(self, name: str, images: np.ndarray, step: int) -> None:
        """A grid of uint8 images [N, H, W, 3]."""
        if self.active and len(images):
            self._board.add("images", name, images, step, dataformats="NHWC")

    def say(self, text: str) -> None:
        """A line for the user, which the progress bar makes way for."""
        if self.active:
            self._bar.write(text, file=sys.stderr)

    def _track(self, step: int, values: Mapping[str, Any]) -> None:
        numbers = {name: float(value) for name, value in values.items() if isinstance(value, int | float)}
        for tracker in self._trackers:
            tracker.add(step, numbers)

    def close(self) -> None:
        if self.active:
            for tracker in self._trackers:
                tracker.close(finished=self._step >= self._stop)
            self._bar.close()
            self._board.close()
            self._file.close()


class _Board:
    """TensorBoard's events. A disk that takes no more ends them with one line, and nothing besides.

    The numbers are in metrics.jsonl, too, where a line that cannot be written ends the run.
    """

    def __init__(self, workdir: pathlib.Path, start: int):
        self._writer, self._workdir, self._told = None, workdir, False
        with self._failing():
            self._writer = SummaryWriter(str(workdir), purge_step=start + 1 if start else 0, flush_secs=20)
        self._hook, threading.excepthook = threading.excepthook, self._in_thread

    def add(self, kind: str, *arguments: Any, **named: Any) -> None:
        """Adds a value of a kind that SummaryWriter knows, such as 'scalar'."""
        if self._writer is not None:
            with self._failing():
                getattr(self._writer, f"add_{kind}")(*arguments, **named)

    def close(self) -> None:
        if self._writer is not None:
            with self._failing():
                self._writer.close()
        if not self._told:
            threading.excepthook = self._hook  # otherwise the writer's thread has still to fail

    @contextlib.contextmanager
    def _failing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._give_up(error)

    def _in_thread(self, args: Any) -> None:
        """Of threads that end with an error: the writer's own is this one's to tell."""
        if type(args.thread).__module__.startswith("tensorboardX") and isinstance(args.exc_value, OSError):
            self._give_up(args.exc_value)
        else:
            self._hook(args)

    def _give_up(self, error: OSError) -> None:
        if self._writer is not None and self._writer.file_writer is not None:
            self._writer.file_writer.event_writer = contextlib.nullcontext()
            self._writer.file_writer.event_writer.close = lambda: None  # it is closed once more at the exit
        if not self._told:
            reason = error.strerror or error
            print(f"\n{self._workdir}: TensorBoard's events are not written any more ({reason})", file=sys.stderr)
        self._writer, self._told = None, True


def _is_evaluation(record: Mapping[str, float], step: int) -> bool:
    return record["step"] == step and any("_top1/" in name for name in record)


def _records(path: pathlib.Path) -> Iterator[tuple[str, dict]]:
    """The lines of a file of records, and what they hold; lines that a kill or a crash spoiled are left out."""
    try:
        lines = whole_lines(path)
    except FileError as error:
        raise ConfigError(f"{path}: {error}") from error
    for line in lines:
        with contextlib.suppress(ValueError, RecursionError):
            record = json.loads(line)
            if isinstance(record, dict) and type(record.get("step")) is int:
                yield line.decode(), record
