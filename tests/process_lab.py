"""Small programs of several processes, which join as those of a run do."""

import os
import socket
import subprocess
import sys
import time

import forks
from paths import ROOT

# The last argument is the body of `work`, in which `me` is the number of the process.
PROGRAM = """
import os, pathlib, signal, sys, time
from types import SimpleNamespace
from bignas_jax.cli import scripts, stopping
from bignas_jax.config.options import Distributed
from bignas_jax.errors import DataError, Stopped
from bignas_jax.programs import group, joining, processes

coordinator, count, me, fast, body = sys.argv[1], *map(int, sys.argv[2:5]), sys.argv[5]
sys.argv = ["train.py"]
if fast:
    joining.JOINING, joining.BUSY, joining.TAKEN = 10.0, 4.0, 1.0
    group.SILENCE, group.BEAT = 8.0, 0.5

def all_reduce():
    import jax.numpy as jnp
    from jax.experimental import multihost_utils
    return int(multihost_utils.process_allgather(jnp.ones(())).sum())

@processes.together
def work(options):
    exec(body, globals())

def main():
    distributed = Distributed(coordinator=coordinator, num_processes=count, process_id=me)
    return scripts.run("train.py", lambda: work(SimpleNamespace(distributed=distributed)))

stopping.script(main)
"""
READY = "all_reduce(); print('ready', flush=True)\n"


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


def start(body: str, index: int, count: int, coordinator: str | int, fast: bool = True) -> forks.Popen:
    """Starts one process; `coordinator` is an address, or a port of this machine."""
    address = coordinator if isinstance(coordinator, str) else f"localhost:{coordinator}"
    return forks.Popen(
        [sys.executable, "-c", PROGRAM, address, str(count), str(index), str(int(fast)), body],
        env=os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), "XLA_FLAGS": ""},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def start_all(body: str, count: int, port: int = 0, fast: bool = True) -> list[forks.Popen]:
    port = port or free_port()
    return [start(body, index, count, port, fast) for index in range(count)]


def until_ready(processes: list[forks.Popen]) -> None:
    """Until all have printed what READY prints."""
    for process in processes:
        while line := process.stdout.readline():
            if line == "ready\n":
                break
        else:
            raise AssertionError(process.communicate()[1][-3000:])


def ends(process: forks.Popen, within: float = 120) -> tuple[int, str, str, float]:
    """Its exit code, what it printed to stdout and stderr, and the seconds until it ended."""
    begin = time.monotonic()
    out, err = process.communicate(timeout=within)
    return process.returncode, out, err, time.monotonic() - begin
