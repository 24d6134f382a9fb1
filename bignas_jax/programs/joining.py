"""How the processes of a run find each other: all of them come to process 0, which refuses what cannot go well."""

import dataclasses
import errno
import os
import socket
import threading
import time
from collections.abc import Callable

from bignas_jax.errors import ConfigError
from bignas_jax.programs.line import Line, host_and_port
from bignas_jax.programs.relay import dial, start

JOINING = 40.0  # seconds for all processes to come
BUSY = 15.0  # seconds for the run before this one to leave the port
TAKEN = 3.0  # seconds for anything else to leave it
_LONGEST = 1 << 16  # bytes of the first line of a connection


@dataclasses.dataclass(frozen=True)
class Seat:
    """Which process this is, of how many, and where process 0 listens (host:port)."""

    index: int
    count: int
    address: str

    def hello(self) -> dict:
        """What this process says of itself."""
        return {
            "bignas_jax": 1,
            "process_id": self.index,
            "num_processes": self.count,
            "host": f"{socket.gethostname()}, pid {os.getpid()}",
        }


def join(seat: Seat) -> tuple[list[str], Line]:
    """Comes to process 0, and waits there until all have come.

    Returns:
      The machines of all processes, by process, and the connection to process 0.
    Raises:
      ConfigError: there is no process 0, or it says why not.
    """
    end, why = time.monotonic() + JOINING, "nobody answered"
    while (left := end - time.monotonic()) > 0:
        try:
            line = Line(dial(host_and_port(seat.address), 0))
        except OSError as error:
            why = error.strerror or str(error)
            time.sleep(0.2)
            continue
        line.send(seat.hello())
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
            return answer["hosts"], line
        line.close()
        time.sleep(0.2)
    raise ConfigError(
        f"config.distributed.coordinator: process {seat.index} found no process 0 at {seat.address} within "
        f"{JOINING:.0f} s ({why}); expected the host of the process with config.distributed.process_id=0, which "
        "is to be started at about the same time"
    )


class Reception:
    """Where process 0 receives the others, on the port of the coordinator, and later JAX's connections.

    Args:
      seat: of process 0.
      to_service: takes a connection to JAX's coordination service.
    Attributes:
      hosts: the machines of all processes, by process.
      lines: the connections to the others, by process.
    Raises:
      ConfigError: the others did not come, or do not fit.
    """

    def __init__(self, seat: Seat, to_service: Callable[[socket.socket], None]):
        self.seat, self.to_service, self.came, self.turn = seat, to_service, {}, threading.Condition()
        self.refusal, self.complete = "", False
        self.server = self._open()
        start(self._accept)
        self._check_address()
        with self.turn:
            self.turn.wait_for(lambda: self.refusal or len(self.came) == seat.count - 1, JOINING)
            missing = [i for i in range(1, seat.count) if i not in self.came]
            if missing and not self.refusal:
                names = ", ".join(map(str, missing[:5])) + (", ..." if len(missing) > 5 else "")
                self.refusal = (
                    f"config.distributed.num_processes: {len(missing)} of {seat.count} processes did not come to "
                    f"{seat.address} within {JOINING:.0f} s, expected one more for each of "
                    f"config.distributed.process_id={names}"
                )
            self.complete = not self.refusal
        if self.refusal:
            for line, _ in self.came.values():
                line.send({"refused": self.refusal})
            self.server.close()
            raise ConfigError(self.refusal)
        self.hosts = [seat.hello()["host"], *(self.came[i][1] for i in range(1, seat.count))]
        self.lines = {i: self.came[i][0] for i in sorted(self.came)}
        for line in self.lines.values():
            line.send({"hosts": self.hosts})

    def _open(self) -> socket.socket:
        host, port = host_and_port(self.seat.address)
        begin = time.monotonic()
        while True:
            try:
                if socket.has_dualstack_ipv6():
                    return socket.create_server(("", port), family=socket.AF_INET6, backlog=512, dualstack_ipv6=True)
                return socket.create_server(("", port), backlog=512)
            except OSError as error:
                taken, why = error.errno == errno.EADDRINUSE, os.strerror(error.errno)
            answer = self._ask(("127.0.0.1", port), self.seat.hello()) if taken else None
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
        found = self._ask(host_and_port(self.seat.address), {"bignas_jax": 1, "who": True})
        if found is not None and found.get("host", self.seat.hello()["host"]) != self.seat.hello()["host"]:
            raise ConfigError(
                f"config.distributed.process_id: found 0 here ({self.seat.hello()['host']}), but "
                f"{self.seat.address} leads to another process 0 ({found['host']}), expected another number"
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
            self.to_service(connection)
        elif "who" in hello:
            line.send(self.seat.hello())
        elif _is_hello(hello):
            self._welcome(line, hello)
        else:
            line.close()

    def _welcome(self, line: Line, hello: dict) -> None:
        """Keeps the process that came, or tells it why not. A second one of a number ends all: it cannot go well."""
        index, own = hello.get("process_id"), self.seat
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
    """Whether it is what `Seat.hello` gives: anybody can reach a port."""
    index, count, host = (message.get(name) for name in ("process_id", "num_processes", "host"))
    return type(index) is int and type(count) is int and isinstance(host, str) and 0 <= index < count
