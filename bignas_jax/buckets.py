"""Which bucket an architecture runs in, and the executables of a run, compiled ahead of its first step.

A space has billions of architectures, too many to compile each: the biggest and the smallest have executables of
their own ("sliced"), all others share one a resolution, as wide and deep as the biggest ("masked").
"""

import concurrent.futures
import dataclasses
import os
import sys
from collections.abc import Callable, Hashable, Mapping
from typing import Any

from tqdm import tqdm

from bignas_jax.architecture import Architecture
from bignas_jax.cost import count, executed
from bignas_jax.memory import give_back_freed_memory
from bignas_jax.programs import Program, forget
from bignas_jax.space import SearchSpace
from bignas_jax.supernet import sizes


@dataclasses.dataclass(frozen=True)
class Bucket:
    """What an executable is compiled for: `arch` itself, or, if `masked`, every architecture inside it."""

    arch: Architecture
    masked: bool

    def sampled(self, space: SearchSpace, arch: Architecture) -> dict | None:
        """What the executable must be told of `arch`: None if it is `self.arch`, sliced.

        Raises:
          ValueError: `arch` does not run in this bucket.
        """
        if self.masked:
            return sizes(space, self.arch, arch)
        if arch != self.arch:
            raise ValueError(f"architecture {arch.to_json()} has no place in the sliced bucket {self.arch.to_json()}")
        return None


    def executed(self, space: SearchSpace, arch: Architecture, num_classes: int) -> int:
        """Multiply-adds of one image's forward pass of `arch` in this bucket's executable."""
        if self.masked:
            return executed(space, self.arch, arch, num_classes)
        return count(space, self.arch, num_classes).macs


def shared(space: SearchSpace, resolution: int) -> Bucket:
    """The masked bucket of all architectures of a resolution."""
    return Bucket(dataclasses.replace(space.biggest, resolution=resolution), masked=True)


def bucket_for(space: SearchSpace, arch: Architecture) -> Bucket:
    """Where `arch` runs without a compile: its own bucket for the biggest and the smallest, else the shared one.

    Raises:
      ValueError: `arch` is not in the space.
    """
    space.check(arch)
    if arch in (space.biggest, space.smallest):
        return Bucket(arch, masked=False)
    return shared(space, arch.resolution)


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
