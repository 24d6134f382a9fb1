"""Times of programs on a device that other work disturbs."""

import os
import pathlib
import platform
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

LEAST_ROUNDS, MOST_ROUNDS = 8, 40
AGREEMENT = 0.03  # rounds of a program end when its three lowest medians differ by at most this fraction,
PATIENCE = 3.0  # or when it has taken this many seconds: a large network needs only a few rounds
LEAST_CALLS, MOST_CALLS, ROUND_SECONDS = 3, 500, 0.01  # of one program in one round


def time_together(calls: Sequence[Callable[[], Any]]) -> list[float]:
    """Milliseconds of each call: the lowest of its round medians. In a round, all calls are timed one after the other.

    Args:
      calls: each starts its work on the device and returns the arrays to wait for.
    """
    for call in calls:  # the first calls place buffers and wake idle devices
        for _ in range(2):
            jax.block_until_ready(call())
    medians: list[list[float]] = [[] for _ in calls]
    spent = [0.0] * len(calls)
    for _ in range(MOST_ROUNDS):
        for n, call in enumerate(calls):
            if not _enough(medians[n], spent[n]):
                start = time.perf_counter()
                medians[n].append(_median_ms(call))
                spent[n] += time.perf_counter() - start
    return [min(seen) for seen in medians]


def _enough(medians: list[float], seconds: float) -> bool:
    if len(medians) < 3:
        return False
    lowest = sorted(medians)[:3]
    confirmed = len(medians) >= LEAST_ROUNDS and lowest[2] <= lowest[0] * (1 + AGREEMENT)
    return confirmed or seconds > PATIENCE


def _median_ms(call: Callable[[], Any]) -> float:
    times: list[float] = []
    end = time.perf_counter() + ROUND_SECONDS
    while len(times) < LEAST_CALLS or (len(times) < MOST_CALLS and time.perf_counter() < end):
        start = time.perf_counter()
        jax.block_until_ready(call())
        times.append(time.perf_counter() - start)
    return 1e3 * float(np.median(times))


def device_name(device: jax.Device) -> str:
    """The kind of a device. A CPU gets its model and its number of cores, because JAX calls every processor 'cpu'."""
    if device.platform != "cpu":
        return device.device_kind
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"cpu {_processor()} x {cores}"


def _processor() -> str:
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
