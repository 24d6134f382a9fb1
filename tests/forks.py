"""Starts commands of Python from a process that has loaded their imports: three of the seconds of each are those.

    forks.Popen([sys.executable, script, ...], env=..., cwd=...)      as subprocess.Popen
    forks.run([sys.executable, "-m", "bignas_jax", ...], ...)         as subprocess.run

What they print, their signals and their exit codes are those of the command. Two things are not, so that a test which
looks at either of them starts Python itself: nothing can reach it during its imports, and all of them share one seed of
Python's hashes.
"""

import ctypes
import functools
import json
import os
import pathlib
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence

from fork_server import CACHE

_TAKE_ORPHANS = 36  # PR_SET_CHILD_SUBREAPER, of <sys/prctl.h>
_libc = ctypes.CDLL(None, use_errno=True)
_asking = threading.Lock()


class Popen(subprocess.Popen):
    """As subprocess.Popen; a command that is no script, `-c` or `-m` of this Python, or no Linux, starts as there."""

    def _execute_child(self, args, executable, preexec_fn, close_fds, pass_fds, cwd, env, *rest):
        env = os.environ if env is None else env
        command = [os.fspath(part) for part in args]
        plain = executable is None and preexec_fn is None and not pass_fds and sys.platform == "linux"
        if not plain or command[0] != sys.executable or (command[1][:1] == "-" and command[1] not in ("-c", "-m")):
            super()._execute_child(args, executable, preexec_fn, close_fds, pass_fds, cwd, env, *rest)
            return
        stdin_read, _, _, stdout_write, _, stderr_write = rest[3:9]
        files = [own if own != -1 else number for number, own in enumerate((stdin_read, stdout_write, stderr_write))]
        self.pid = _server(_at_import(env)).fork(command[1:], os.fspath(cwd or os.getcwd()), env, files)
        self._child_created = True
        for file in {stdin_read, stdout_write, stderr_write} - {-1}:
            os.close(file)


def run(command: Sequence, timeout: float | None = None, check: bool = False, **options) -> subprocess.CompletedProcess:
    """As subprocess.run."""
    if options.pop("capture_output", False):
        options |= {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with Popen(command, **options) as process:
        try:
            out, err = process.communicate(timeout=timeout)
        except BaseException:
            process.kill()
            raise
    ended = subprocess.CompletedProcess(command, process.returncode, out, err)
    if check:
        ended.check_returncode()
    return ended


class _Server:
    """One process that has loaded everything, and forks."""

    def __init__(self, at_import: Mapping[str, str]):
        self._requests, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        program = pathlib.Path(__file__).with_name("fork_server.py")
        others = {name: value for name, value in os.environ.items() if not _is_read_at_import(name)}
        subprocess.Popen(
            [sys.executable, str(program), str(theirs.fileno())],
            env=others | dict(at_import),
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
        )
        theirs.close()

    def fork(self, command: list[str], folder: str, environment: Mapping[str, str], files: list[int]) -> int:
        """The process of a command, a child of this one."""
        message = json.dumps({"command": command, "folder": folder, "environment": dict(environment)}).encode()
        with _asking:
            _libc.prctl(_TAKE_ORPHANS, 1, 0, 0, 0)
            try:
                socket.send_fds(self._requests, [message], files)
                return int(self._requests.recv(100))
            finally:
                _libc.prctl(_TAKE_ORPHANS, 0, 0, 0, 0)


@functools.lru_cache(maxsize=3)  # a server ends when nobody holds it
def _server(at_import: frozenset) -> _Server:
    return _Server(dict(at_import))


def _at_import(environment: Mapping[str, str]) -> frozenset:
    """The variables that the imports read: each set of them has a server of its own."""
    return frozenset((name, value) for name, value in environment.items() if _is_read_at_import(name))


def _is_read_at_import(name: str) -> bool:
    return name != CACHE and name.startswith(("JAX_", "PYTHON", "OMP_", "OPENBLAS_", "MKL_", "LD_"))
