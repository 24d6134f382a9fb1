"""SIGTERM and SIGINT, noted for a loop to stop at its next step, on all processes alike."""

import signal
import threading
from typing import Any

from bignas_jax.programs.processes import gather


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

    def __exit__(self, *_) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    def _note(self, signum: int, _) -> None:
        if signum == signal.SIGINT and self.received == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = signum


def _same_everywhere(first: bool) -> bool:
    """What the first process found."""
    return gather(first)[0]


def _agreed(received: int) -> int:
    """The signal that any process received: all must stop at the same step."""
    return max(gather(received))
