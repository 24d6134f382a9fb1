"""SIGTERM and SIGINT, noted for a loop to stop at its next step, on all processes alike."""

import signal
import threading
from typing import Any

from bignas_jax.errors import Interrupted
from bignas_jax.programs.processes import gather, several


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
        if self.received and not several():
            raise Interrupted(self.received)

    def _note(self, signum: int, _) -> None:
        if signum == signal.SIGINT and self.received == signal.SIGINT:
            raise Interrupted(signum)
        self.received = signum


def _same_everywhere(first: bool) -> bool:
    """What the first process found."""
    return gather(first)[0]


def _agreed(received: int) -> int:
    """The signal that any process received: all must stop at the same step."""
    return max(gather(received))
