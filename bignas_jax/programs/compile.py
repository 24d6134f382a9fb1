"""The executables of a run, compiled ahead of its first step."""

import concurrent.futures
import os
import sys
from collections.abc import Callable, Hashable, Mapping
from typing import Any

from tqdm import tqdm

from bignas_jax.programs.kept import Program, forget
from bignas_jax.programs.memory import give_back_freed_memory


def lowering(traces: Mapping[Hashable, Callable[[], Any]]) -> dict[Hashable, Callable[[], Any]]:
    """Functions that trace and lower programs, from functions that only trace them (`jax.jit(f).trace`), by key."""
    return {key: lambda trace=trace: trace().lower() for key, trace in traces.items()}


def compile_ahead(
    lower: Mapping[Hashable, Callable[[], Any]],
    title: str = "compile",
    progress: bool = True,
    identity: str | None = None,
) -> dict[Hashable, Any]:
    """Compiles several programs at the same time, or loads them if an earlier run kept them.

    Args:
      lower: functions that trace and lower a program (`jax.jit(f).lower(...)`), by key. They run one after the other,
        because tracing holds Python's lock. At the same time XLA compiles the lowered programs on all cores.
      title: the title of the progress bar.
      progress: whether the bar is shown. It is also shown outside of a terminal: one line a program is cheap.
      identity: a text that determines the programs, together with their keys, this package and this machine, such as
        the run's config. None means that programs are always traced; a kept one can still be found by its text.
    Returns:
      The compiled programs by key.
    """
    workers = max(1, os.cpu_count() or 1)
    pool = concurrent.futures.ThreadPoolExecutor(workers)
    with tqdm(total=len(lower), desc=title, unit="program", disable=not progress, file=sys.stderr) as bar:
        try:
            programs = {key: Program(identity, key) for key in lower}
            kept = {key: pool.submit(program.load) for key, program in programs.items()}
            futures = {}
            for key, make in lower.items():
                if kept[key].result() is None:
                    futures[key] = pool.submit(programs[key].compile, make())
                    futures[key].add_done_callback(lambda _: bar.update())
                else:
                    bar.update()
            compiled = {key: futures.get(key, kept[key]).result() for key in lower}
            if futures:
                forget()
            return compiled
        finally:
            # After an interrupt, programs that have not begun to compile are dropped.
            pool.shutdown(wait=False, cancel_futures=True)
            give_back_freed_memory()
