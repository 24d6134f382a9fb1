"""SIGTERM and SIGINT, noted for a loop to stop at its next step, on all processes alike."""

import signal
import threading
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from bignas_jax.errors import Interrupted

AGREE_EVERY = 10  # steps between two questions of several processes whether one of them got a signal


class Signals:
    """Within it, SIGTERM and SIGINT are noted in `received`; a second SIGINT interrupts at once."""

    def __init__(self):
        self.received = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Signals":
        if threading.current_thread() is threading.main_thread():
            for signum in (signal.SIGTERM, signal.SIGINT):
                self._before[signum] = signal.signal(signum, self._note)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)
        if kind is None:
            self.tick()  # it came after the last look

    def tick(self) -> None:
        """Raises `Interrupted` where a signal came, for work that has no state to save.

        Several processes must end such work at the same batch. They end it whole, and stop behind it.
        """
        if self.received and jax.process_count() == 1:
            raise Interrupted(self.received)

    def _note(self, signum: int, _) -> None:
        if signum == signal.SIGINT and self.received == signal.SIGINT:
            raise Interrupted(signum)
        self.received = signum


def _same_everywhere(first: bool) -> bool:
    """What the first process found."""
    return first if jax.process_count() == 1 else bool(multihost_utils.broadcast_one_to_all(np.int32(first)))


def _agreed(received: int, step: int) -> int:
    """The signal that any process received: all must stop at the same step. Several processes ask now and then."""
    if jax.process_count() == 1:
        return received
    if step % AGREE_EVERY:
        return 0
    return int(np.max(multihost_utils.process_allgather(np.int32(received))))
