"""The executables of a run, compiled ahead of its first step."""

import concurrent.futures
import os
import sys
from collections.abc import Callable, Hashable, Mapping
from typing import Any

from tqdm import tqdm

from bignas_jax.programs.kept import Program, forget
from bignas_jax.programs.memory import give_back_freed_memory


def compile_ahead(
    lower: Mapping[Hashable, Callable[[], Any]],
    title: str = "compile",
    progress: bool = True,
    identity: str | None = None,
) -> dict[Hashable, Any]:
    """Compiles several programs side by side, or loads those that an earlier run left.

    Args:
      lower: functions that trace and lower a program (`jax.jit(f).lower(...)`), by key. They run one after the
        other, for tracing holds Python's lock; XLA compiles what is lowered meanwhile, on all cores.
      title: of the progress bar. progress: whether to show it (on a terminal or not: one line a program is cheap).
      identity: all that determines the programs beside their keys, this package and this machine, such as the run's
        config; None: they are always traced, and found by their text at best.
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
            # After an interrupt nobody waits for programs that have not begun to compile.
            pool.shutdown(wait=False, cancel_futures=True)
            give_back_freed_memory()
