"""A connection between two processes of a run, through which JSON values go."""

import contextlib
import json
import socket
import threading
import time

from bignas_jax.programs.relay import at_once


class Line:
    """A connection through which JSON values go, one a line."""

    def __init__(self, connection: socket.socket):
        at_once(connection)
        self._connection, self._file, self._turn = connection, connection.makefile("rb"), threading.Lock()
        self.heard = time.monotonic()
        self.left = False  # whether the other end said that it has finished

    def send(self, message: dict) -> None:
        """Sends, or does nothing where the connection is broken: whoever reads from it finds that out."""
        with contextlib.suppress(OSError), self._turn:
            self._connection.sendall(json.dumps(message).encode() + b"\n")

    def read(self, seconds: float | None = None, longest: int = -1) -> dict | None:
        """The next message; None where the connection ended, or what came is no message.

        Args:
          seconds: to wait for it; None: for ever.
          longest: bytes of it at most.
        """
        try:
            self._connection.settimeout(seconds)
            data = self._file.readline(longest)
            message = json.loads(data) if data.endswith(b"\n") else None
        except (OSError, ValueError):
            return None
        finally:
            with contextlib.suppress(OSError):
                self._connection.settimeout(None)
        self.heard = time.monotonic()
        return message if isinstance(message, dict) else None

    def ended(self) -> bool:
        """Whether the other end is gone, before anything is read."""
        try:
            return not self._connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            return True

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
        self._file.close()
        self._connection.close()


def host_and_port(address: str) -> tuple[str, int]:
    """The two parts of an address such as first:29400 or [::1]:29400."""
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)
