"""The processes of a run: how they find each other, agree on values, and end together when one of them ends.

Each process holds one connection to process 0, through which short lines of JSON go. When a process is killed, its
connection breaks at once; when its machine is gone, its heartbeats stay away. Process 0 tells the others. A thread then
ends the process with one line, since the main thread may wait in a collective operation that nobody will join.

The coordination service of JAX ends a process by itself, with a stack of C++ functions, as soon as it loses its
coordinator. Therefore its connections go through a relay in each process, which keeps them open and silent, and its
own heartbeats are as good as off. With the relay, the one port of `config.distributed.coordinator` is enough for all.
"""

import atexit
import contextlib
import errno
import functools
import json
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import jax
from tqdm import tqdm

from bignas_jax.config.distributed import local_devices
from bignas_jax.config.options import Distributed
from bignas_jax.errors import ConfigError, ExportError, Interrupted, ProcessLost, Stopped, TrainingError, UserError
from bignas_jax.programs.relay import at_once, dial, forward, free_port, local_server, start

JOINING = 40.0  # seconds for all processes to come
BUSY = 15.0  # seconds for the run before this one to leave the port
TAKEN = 3.0  # seconds for anything else to leave it
BEAT = 2.0  # seconds between two heartbeats
SILENCE = 24.0  # seconds without a heartbeat after which a process counts as lost
GRACE = 1.0  # seconds for the main thread to end by itself, before the watch ends the process
CLOSING = 10.0  # seconds for the main thread, once it ends by itself
_LONGEST = 1 << 16  # bytes of the first line of a connection
_OWN_ERRORS = (UserError, TrainingError, ExportError, Stopped, Interrupted, OSError, KeyboardInterrupt)

_joined: "Processes | None" = None


def connect(options: Distributed) -> None:
    """Joins the processes of a run, before anything else touches JAX. Does nothing for one process, or if joined.

    Raises:
      ConfigError: they did not come together within a minute; the message names the field.
    """
    global _joined
    if options.num_processes == 1 or _joined is not None:
        return
    _joined = Processes(options)
    _joined.start_jax()


def together(work: Callable) -> Callable:
    """For a function whose first argument is a run's options: it runs on all processes of the run, or on none.

    The processes join before it. When it raises on one of them, the others end with the line of that one.
    """

    @functools.wraps(work)
    def joined(options: Any, *arguments: Any, **named: Any) -> Any:
        connect(options.distributed)
        with contextlib.nullcontext() if _joined is None else _joined.ending_together():
            return work(options, *arguments, **named)

    return joined


def alone(options: Distributed, work: str) -> None:
    """Refuses several processes for work that one does.

    Args:
      work: in words, such as 'an export', for the message.
    Raises:
      ConfigError: there are several; the message names the field.
    """
    if options.num_processes > 1:
        raise ConfigError(
            f"config.distributed.num_processes: found {options.num_processes}, expected 1: {work} is made by one "
            "process, on all of its devices; start it without srun and BIGNAS_NUM_PROCESSES"
        )


def gather(value: Any) -> list[Any]:
    """The values of all processes, by process. All must ask, in the same order; what JSON can hold.

    It costs one message to process 0 and one back.
    """
    return [value] if _joined is None else _joined.gather(value)


def several() -> bool:
    """Whether the run has several processes."""
    return _joined is not None


def own_index() -> int:
    """Which process this is; 0 where it is the only one."""
    return 0 if _joined is None else _joined.index


def name_of(index: int) -> str:
    """A process for messages, with its machine."""
    return _joined.name(index)


def fail(error: BaseException) -> None:
    """Ends all processes with the line of this one's error. For threads, whose errors nobody else would learn of.

    Does nothing where this process is the only one.
    """
    if _joined is not None:
        _joined.fail(error)


def ends_its_process(work: Callable[..., int]) -> Callable[..., int]:
    """For the main function of a script, which returns an exit code, or raises.

    Where several processes joined and the work failed, the process ends here: JAX would wait for the others otherwise.
    """

    @functools.wraps(work)
    def ended(*arguments: Any) -> int:
        try:
            code = work(*arguments)
        except BaseException as error:
            if isinstance(error, Interrupted | KeyboardInterrupt) and _joined is not None:
                time.sleep(0.3)  # until the others have been told; the script ends the process with its line
            if _joined is None or isinstance(error, Interrupted | KeyboardInterrupt):
                raise
            if not isinstance(error, SystemExit):
                traceback.print_exc()
            code = error.code if isinstance(error, SystemExit) and isinstance(error.code, int) else 1
        if _joined is not None and code:
            _joined.leave(code)
        return code

    return ended


def line_of(error: BaseException) -> tuple[str, int]:
    """What the other processes are told of an error: one line, and the exit code that they end with."""
    text = " ".join(str(error).split())
    if isinstance(error, Stopped | Interrupted):
        return f"stopped by {text}", error.exit_code
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", 130
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename or 'a file'}: {error.strerror}", UserError.exit_code
    if isinstance(error, _OWN_ERRORS):
        return text, getattr(error, "exit_code", UserError.exit_code)
    return f"{type(error).__name__}: {text[:300]}", 1


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


class Processes:
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
        self.index, self.count, self.address = options.process_id, options.num_processes, options.coordinator
        self.hosts: list[str] = []
        self._lines: dict[int, Line] = {}  # of process 0: to the others; of any other: to process 0
        self._turn = threading.Condition()
        self._values: dict[int, dict[int, Any]] = {}  # number of a question to the answers by process
        self._answers: dict[int, list[Any]] = {}
        self._asked = 0
        self._service = 0  # process 0: the port of JAX's coordination service
        self._reason: tuple[str, int] | None = None  # why the run ends, and the exit code
        self._known, self._ending = threading.Event(), threading.Event()
        self._last_word = threading.Lock()  # whoever holds it prints the line that the process ends with
        self._over = False  # the others may go
        if self.index == 0:
            _Reception(self)
        else:
            self._join()
        for index, line in self._lines.items():
            line.heard = time.monotonic()
            start(self._listen, index, line)
        start(self._watch)
        atexit.register(self._part)

    # How they come together.

    def hello(self) -> dict:
        return {
            "bignas_jax": 1,
            "process_id": self.index,
            "num_processes": self.count,
            "host": f"{socket.gethostname()}, pid {os.getpid()}",
        }

    def _join(self) -> None:
        """Comes to process 0, and waits there until all have come."""
        end, why = time.monotonic() + JOINING, "nobody answered"
        while (left := end - time.monotonic()) > 0:
            try:
                line = Line(dial(_host_and_port(self.address), 0))
            except OSError as error:
                why = error.strerror or str(error)
                time.sleep(0.2)
                continue
            line.send(self.hello())
            answer = line.read(min(left, 5.0))
            if answer is not None and "wait" in answer:
                # Process 0 says why it gives up; a little later than that there is nobody to say so.
                answer = line.read(JOINING + 5)
                why = "process 0 is gone again"
            elif answer is None:
                why = "what listens there is no process of this run"
            if answer is not None and "refused" in answer:
                raise ConfigError(answer["refused"])
            if answer is not None and "busy" in answer:
                why = answer["busy"]
            if answer is not None and "hosts" in answer:
                self.hosts, self._lines = answer["hosts"], {0: line}
                return
            line.close()
            time.sleep(0.2)
        raise ConfigError(
            f"config.distributed.coordinator: process {self.index} found no process 0 at {self.address} within "
            f"{JOINING:.0f} s ({why}); expected the host of the process with config.distributed.process_id=0, which "
            "is to be started at about the same time"
        )

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
                far = dial(_host_and_port(self.address), 5)
                far.sendall(json.dumps({"bignas_jax": 1, "relay": True}).encode() + b"\n")
                far.recv(1)  # process 0 reads no further than that line until it has said so
                forward(connection, far, hide_the_end_of_other=True)

    def relay_to_service(self, connection: socket.socket) -> None:
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
            own = isinstance(error, _OWN_ERRORS) and not isinstance(error, ProcessLost)
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
        """Sends heartbeats, and looks for those of the others."""
        while True:
            time.sleep(BEAT)
            self._tell_all({"beat": 1})
            for index, line in list(self._lines.items()):
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


class _Reception:
    """Where process 0 receives the others, on the port of the coordinator, and later JAX's connections."""

    def __init__(self, processes: Processes):
        self.processes, self.came, self.turn = processes, {}, threading.Condition()
        self.refusal, self.complete = "", False
        self.server = self._open()
        start(self._accept)
        self._check_address()
        with self.turn:
            self.turn.wait_for(lambda: self.refusal or len(self.came) == processes.count - 1, JOINING)
            missing = [i for i in range(1, processes.count) if i not in self.came]
            if missing and not self.refusal:
                names = ", ".join(map(str, missing[:5])) + (", ..." if len(missing) > 5 else "")
                self.refusal = (
                    f"config.distributed.num_processes: {len(missing)} of {processes.count} processes did not come to "
                    f"{processes.address} within {JOINING:.0f} s, expected one more for each of "
                    f"config.distributed.process_id={names}"
                )
            self.complete = not self.refusal
        if self.refusal:
            for line, _ in self.came.values():
                line.send({"refused": self.refusal})
            self.server.close()
            raise ConfigError(self.refusal)
        processes.hosts = [processes.hello()["host"], *(self.came[i][1] for i in range(1, processes.count))]
        processes._lines = {i: self.came[i][0] for i in sorted(self.came)}
        processes._tell_all({"hosts": processes.hosts})

    def _open(self) -> socket.socket:
        host, port = _host_and_port(self.processes.address)
        begin = time.monotonic()
        while True:
            try:
                if socket.has_dualstack_ipv6():
                    return socket.create_server(("", port), family=socket.AF_INET6, backlog=512, dualstack_ipv6=True)
                return socket.create_server(("", port), backlog=512)
            except OSError as error:
                taken, why = error.errno == errno.EADDRINUSE, os.strerror(error.errno)
            answer = self._ask(("127.0.0.1", port), self.processes.hello()) if taken else None
            if answer is not None and "refused" in answer:
                raise ConfigError(answer["refused"])
            by = answer.get("busy", "") if answer else ""
            if not taken or time.monotonic() - begin > (BUSY if by else TAKEN):
                raise ConfigError(
                    f"config.distributed.coordinator: process 0 cannot listen on port {port} of this host "
                    f"({by or why}), expected a port that is free"
                )
            time.sleep(0.5)

    @staticmethod
    def _ask(address: tuple[str, int], message: dict) -> dict | None:
        try:
            line = Line(socket.create_connection(address, timeout=2))
        except OSError:
            return None
        line.send(message)
        answer = line.read(2.0)
        line.close()
        return answer

    def _check_address(self) -> None:
        """Refuses a coordinator whose address leads to another process 0, such as one on another host."""
        found = self._ask(_host_and_port(self.processes.address), {"bignas_jax": 1, "who": True})
        if found is not None and found.get("host", self.processes.hello()["host"]) != self.processes.hello()["host"]:
            raise ConfigError(
                f"config.distributed.process_id: found 0 here ({self.processes.hello()['host']}), but "
                f"{self.processes.address} leads to another process 0 ({found['host']}), expected another number"
            )

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self.server.accept()
            except OSError:
                return
            start(self._receive, connection)

    def _receive(self, connection: socket.socket) -> None:
        line = Line(connection)
        hello = line.read(10.0, _LONGEST)
        if hello is None or "bignas_jax" not in hello:
            line.close()
        elif "relay" in hello:
            self.processes.relay_to_service(connection)
        elif "who" in hello:
            line.send(self.processes.hello())
        elif _is_hello(hello):
            self._welcome(line, hello)
        else:
            line.close()

    def _welcome(self, line: Line, hello: dict) -> None:
        """Keeps the process that came, or tells it why not. A second one of a number ends all: it cannot go well."""
        index, own = hello.get("process_id"), self.processes
        with self.turn:
            if self.complete:
                line.send({"busy": f"a run of {own.count} processes is at work there ({own.hello()['host']})"})
                return
            if hello.get("num_processes") != own.count:
                self.refusal = (
                    f"config.distributed.num_processes: found {hello.get('num_processes')} in process {index} "
                    f"({hello.get('host')}) and {own.count} in process 0 ({own.hello()['host']}), expected the same"
                )
            elif index == 0 or (index in self.came and not self.came[index][0].ended()):
                here = own.hello()["host"] if index == 0 else self.came[index][1]
                self.refusal = (
                    f"config.distributed.process_id: found {index} twice ({here} and {hello.get('host')}), expected "
                    f"each of 0 to {own.count - 1} once"
                )
            else:
                self.came[index] = line, hello.get("host")
                line.send({"wait": True})
            self.turn.notify_all()
            if self.refusal:
                line.send({"refused": self.refusal})


def _is_hello(message: dict) -> bool:
    """Whether it is what `Processes.hello` gives: anybody can reach a port."""
    index, count, host = (message.get(name) for name in ("process_id", "num_processes", "host"))
    return type(index) is int and type(count) is int and isinstance(host, str) and 0 <= index < count


def _host_and_port(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()


def _give_up_after(seconds: float, code: int) -> None:
    """Ends the process if it still runs then."""
    timer = threading.Timer(seconds, os._exit, (code,))
    timer.daemon = True
    timer.start()
