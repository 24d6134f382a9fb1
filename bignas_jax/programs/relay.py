"""Bytes handed on between two connections, so that one end can vanish without the other noticing."""

import contextlib
import socket
import threading
import time
from collections.abc import Callable


def forward(one: socket.socket, other: socket.socket, hide_the_end_of_other: bool = False) -> None:
    """Hands on what comes from either connection to the other one, in two threads, until both have ended.

    Args:
      hide_the_end_of_other: leave `one` open, and silent, when `other` ends or breaks.
    """
    start(_pump, one, other, False)
    start(_pump, other, one, hide_the_end_of_other)


def start(work: Callable, *arguments: object) -> None:
    """Runs `work` in a thread that does not keep the process from ending."""
    threading.Thread(target=work, args=arguments, daemon=True, name=f"processes {work.__name__}").start()


def local_server() -> socket.socket:
    """Listens on a free port that this machine alone can reach."""
    return socket.create_server(("127.0.0.1", 0))


def free_port() -> int:
    """A port that nobody on this machine uses now."""
    with local_server() as found:
        return found.getsockname()[1]


def dial(address: tuple[str, int], seconds: float) -> socket.socket:
    """Connects; tries again while nobody listens there yet.

    Raises:
      OSError: nobody did within `seconds`.
    """
    end = time.monotonic() + seconds
    while True:
        try:
            connection = socket.create_connection(address, timeout=5)
            connection.settimeout(None)
            at_once(connection)
            return connection
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.05)


def at_once(connection: socket.socket) -> None:
    """Small messages leave at once, in place of waiting for more."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _pump(source: socket.socket, sink: socket.socket, hide_the_end: bool) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            sink.sendall(data)
    if not hide_the_end:
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)
