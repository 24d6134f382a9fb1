"""A process among those of a run: how they agree on values, and end together when one of them ends.

Each process holds one connection to process 0, through which short lines of JSON go. When a process is killed, its
connection breaks at once; when its machine is gone, its heartbeats stay away. Process 0 tells the others. A thread then
ends the process with one line, since the main thread may wait in a collective operation that nobody will join.

The coordination service of JAX ends a process by itself, with a stack of C++ functions, as soon as it loses its
coordinator. Therefore its connections go through a relay in each process, which keeps them open and silent, and its
own heartbeats are as good as off. With the relay, the one port of `config.distributed.coordinator` is enough for all.
"""

import atexit
import contextlib
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import jax
from tqdm import tqdm

from bignas_jax.config.distributed import local_devices
from bignas_jax.config.options import Distributed
from bignas_jax.errors import ExportError, Interrupted, ProcessLost, Stopped, TrainingError, UserError
from bignas_jax.programs.joining import Reception, Seat, join
from bignas_jax.programs.line import Line, host_and_port
from bignas_jax.programs.relay import dial, forward, free_port, local_server, start

BEAT = 2.0  # seconds between two heartbeats
SILENCE = 24.0  # seconds without a heartbeat after which a process counts as lost
GRACE = 1.0  # seconds for the main thread to end by itself, before the watch ends the process
CLOSING = 10.0  # seconds for the main thread, once it ends by itself
OWN_ERRORS = (UserError, TrainingError, ExportError, Stopped, Interrupted, OSError, KeyboardInterrupt)


def line_of(error: BaseException) -> tuple[str, int]:
    """What the other processes are told of an error: one line, and the exit code that they end with."""
    text = " ".join(str(error).split())
    if isinstance(error, Stopped | Interrupted):
        return f"stopped by {text}", error.exit_code
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", 130
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename or 'a file'}: {error.strerror}", UserError.exit_code
    if isinstance(error, OWN_ERRORS):
        return text, getattr(error, "exit_code", UserError.exit_code)
    return f"{type(error).__name__}: {text[:300]}", 1


class Group:
    """This process among those of a run. Made once all of them have come.

    Args:
      options: where process 0 listens, how many processes there are, and which of them this is.
    Attributes:
      index, count: of this process, and how many there are.
      hosts: by process, the machine and the process's number on it.
    Raises:
      ConfigError: they did not come together.
    """

    def __init__(self, options: Distributed):
        self._seat = seat = Seat(options.process_id, options.num_processes, options.coordinator)
        self.index, self.count = seat.index, seat.count
        self._turn = threading.Condition()
        self._values: dict[int, dict[int, Any]] = {}  # number of a question to the answers by process
        self._answers: dict[int, list[Any]] = {}
        self._asked = 0
        self._service = 0  # process 0: the port of JAX's coordination service
        self._reason: tuple[str, int] | None = None  # why the run ends, and the exit code
        self._known, self._ending = threading.Event(), threading.Event()
        self._last_word = threading.Lock()  # whoever holds it prints the line that the process ends with
        self._over = False  # the others may go
        self._lines: dict[int, Line]  # of process 0: to the others; of any other: to process 0
        if self.index == 0:
            reception = Reception(seat, self._to_service)
            self.hosts, self._lines = reception.hosts, reception.lines
        else:
            self.hosts, line = join(seat)
            self._lines = {0: line}
        for index, line in self._lines.items():
            line.heard = time.monotonic()
            start(self._listen, index, line)
        start(self._watch)
        atexit.register(self._part)

    # How they start.

    def start_jax(self) -> None:
        """Lets JAX know of the processes. Its own watch is as good as off: this module's is quicker, and speaks."""
        jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM for itself
        if self.index == 0:
            self._service = free_port()
            address = f"127.0.0.1:{self._service}"
        else:
            relay = local_server()
            start(self._relay, relay)
            address = f"127.0.0.1:{relay.getsockname()[1]}"
        with self.ending_together():
            jax.distributed.initialize(
                address,
                self.count,
                self.index,
                local_device_ids=local_devices(os.environ),
                cluster_detection_method="deactivate",
                initialization_timeout=60,
                heartbeat_timeout_seconds=24 * 3600,
                shutdown_timeout_seconds=15,
                coordinator_bind_address=f"127.0.0.1:{self._service}",
            )

    def _relay(self, relay: socket.socket) -> None:
        """Takes JAX's connections to its coordination service, and carries them to process 0."""
        while True:
            connection, _ = relay.accept()
            with contextlib.suppress(OSError):
                far = dial(host_and_port(self._seat.address), 5)
                far.sendall(json.dumps({"bignas_jax": 1, "relay": True}).encode() + b"\n")
                far.recv(1)  # process 0 reads no further than that line until it has said so
                forward(connection, far, hide_the_end_of_other=True)

    def _to_service(self, connection: socket.socket) -> None:
        """Process 0: carries a connection to JAX's coordination service, which may be about to start."""
        end = time.monotonic() + 30
        while not self._service and time.monotonic() < end:
            time.sleep(0.02)
        try:
            service = dial(("127.0.0.1", self._service), end - time.monotonic())
            connection.sendall(b"\n")
            forward(connection, service)
        except OSError:
            connection.close()

    # How they agree.

    def gather(self, value: Any) -> list[Any]:
        """The values of all processes, by process."""
        with self._turn:
            number = self._asked
            self._asked += 1
        if self.index == 0:
            self._take(0, number, value)
        else:
            self._lines[0].send({"number": number, "value": value})
        with self._turn:
            self._turn.wait_for(lambda: number in self._answers or self._known.is_set())
            if number in self._answers:
                return self._answers.pop(number)
        raise ProcessLost(*self._reason)

    def _take(self, index: int, number: int, value: Any) -> None:
        """Process 0: notes a value, and sends all of them once they are there."""
        with self._turn:
            values = self._values.setdefault(number, {})
            values[index] = value
            if len(values) < self.count:
                return
            answer = [values[i] for i in range(self.count)]
            del self._values[number]
            self._answers[number] = answer
            self._turn.notify_all()
        self._tell_all({"number": number, "values": answer})

    def _tell_all(self, message: dict, but: int = -1) -> None:
        for index, line in self._lines.items():
            if index != but:
                line.send(message)

    # How they end.

    @contextlib.contextmanager
    def ending_together(self) -> Iterator[None]:
        """Within it, an error of this process ends the others, and the end of another process ends this one."""
        try:
            yield
        except BaseException as error:
            own = isinstance(error, OWN_ERRORS) and not isinstance(error, ProcessLost)
            if not own:  # it may follow from the end of another process, such as that of a connection to it
                self._known.wait(3)
            if not self._last_word.acquire(blocking=False):
                threading.Event().wait()  # the watch is ending the process
            self._ending.set()
            if not own and self._reason:
                raise ProcessLost(*self._reason) from None
            text, code = line_of(error)
            self._tell_all({"failed": f"{self.name(self.index)}: {text}", "code": code})
            raise

    def fail(self, error: BaseException) -> None:
        """Tells the others of an error that a thread met, and ends this process with it."""
        text, code = line_of(error)
        self._tell_all({"failed": f"{self.name(self.index)}: {text}", "code": code})
        self._end(text, code)

    def leave(self, code: int) -> None:
        """Ends the process, after the last message had time to reach the others."""
        _flush()
        time.sleep(0.3)
        os._exit(code)

    def _part(self) -> None:
        """At the end of the interpreter: waits for the others, so that none misses JAX's service while it closes."""
        if self._ending.is_set():
            self.leave(1)
        self._tell_all({"left": self.index})
        with self._turn:
            self._turn.wait_for(lambda: self._over or (self.index == 0 and all(i.left for i in self._lines.values())))
        if self.index == 0:
            self._tell_all({"over": True})
        self._over = True
        _give_up_after(CLOSING, 0)  # JAX, whose turn is next, waits for the others once more

    def name(self, index: int) -> str:
        return f"process {index} of {self.count} ({self.hosts[index]})"

    def _listen(self, index: int, line: Line) -> None:
        """Reads what a process sends, until it is gone."""
        while (message := line.read()) is not None:
            if "number" in message and self.index == 0:
                self._take(index, message["number"], message["value"])
            elif "number" in message:
                with self._turn:
                    self._answers[message["number"]] = message["values"]
                    self._turn.notify_all()
            elif "failed" in message:
                if self.index == 0:
                    self._tell_all(message, but=index)
                self._end(message["failed"], message["code"])
            elif "left" in message:
                with self._turn:
                    line.left = True
                    self._turn.notify_all()
            elif "over" in message:
                with self._turn:
                    self._over = True
                    self._turn.notify_all()
        self._lost(index, "its connection ended")

    def _watch(self) -> None:
        """Sends heartbeats, and looks for those of the others.

        A process that stood still itself, such as all of a job that is suspended, cannot say that others did.
        """
        looked = time.monotonic()
        while True:
            time.sleep(BEAT)
            self._tell_all({"beat": 1})
            late, looked = time.monotonic() - looked - BEAT, time.monotonic()
            for index, line in list(self._lines.items()):
                line.heard += late if late > BEAT else 0.0
                if time.monotonic() - line.heard > SILENCE:
                    self._lost(index, f"nothing was heard of it for {SILENCE:.0f} s")

    def _lost(self, index: int, why: str) -> None:
        if self._over or self._reason:
            return
        text = (
            f"{self.name(index)} was lost: {why}; this process ends, too: the same commands on all hosts go on "
            "from the last checkpoint"
        )
        if self.index == 0:
            self._tell_all({"failed": text, "code": ProcessLost.exit_code}, but=index)
        self._end(text, ProcessLost.exit_code)

    def _end(self, text: str, code: int) -> None:
        """Ends this process with a line, unless its main thread does so by itself."""
        with self._turn:
            if self._reason or self._over:
                return
            self._reason = text, code
            self._known.set()
            self._turn.notify_all()
        _give_up_after(GRACE + CLOSING, code)
        if self._ending.wait(GRACE) or not self._last_word.acquire(blocking=False):
            return
        _give_up_after(2.0, code)  # somebody may hold the lock of the progress bar, or not read the line
        tqdm.write(f"{os.path.basename(sys.argv[0])}: {text}", file=sys.stderr)
        self.leave(code)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()


def _give_up_after(seconds: float, code: int) -> None:
    """Ends the process if it still runs then."""
    timer = threading.Timer(seconds, os._exit, (code,))
    timer.daemon = True
    timer.start()
