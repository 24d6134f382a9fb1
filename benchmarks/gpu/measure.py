"""Programs, compiled and counted."""

import concurrent.futures
import dataclasses
from collections.abc import Iterator, Mapping

import jax

from benchmarks.gpu.moved import moved
from benchmarks.gpu.programs import Job, Setting
from benchmarks.gpu.traffic import Program
from bignas_jax.nets.sizes import sizes
from bignas_jax.spaces.architecture import Architecture


@dataclasses.dataclass(frozen=True)
class Measured:
    """What the compiled text of a program says.

    Attributes:
      group: see `programs.Job`.
      bytes: what it moves; of a shared program, the mean over the drawn architectures that run in it (sampled).
      full_width: the same with kernels of our own counted on their whole arrays.
      as_written: the text's own count, in which a block that may be skipped counts half.
      kernels: how many kernels run, the mean over the same architectures.
      peak: bytes of memory: arguments, results and temporaries, donated buffers once.
      collectives: (operation, bytes of its result) of each.
      norms: batch norms of the network.
      own: calls of kernels of our own, by name.
      unknown: conditions that could not be evaluated.
      of: the bytes of each drawn architecture that runs in it.
    """

    group: str
    bytes: float
    full_width: float
    as_written: float
    kernels: float
    peak: int
    collectives: list[tuple[str, int]]
    norms: int
    own: dict[str, int]
    unknown: set[str]
    of: dict[Architecture, float]

    def as_json(self) -> dict:
        """The figures as plain values."""
        names = ("group", "bytes", "full_width", "as_written", "kernels")
        found = {name: getattr(self, name) for name in names}
        return found | {"peak_bytes": self.peak, "collectives": len(self.collectives), "own_kernels": self.own}


def compile_all(jobs: Mapping[str, Job], workers: int) -> Iterator[tuple[str, jax.stages.Compiled | Exception]]:
    """Compiles programs, several at a time, and gives each one, or its error, in the order of their names.

    They are traced one after the other, because tracing holds Python's lock.

    Args:
      jobs: the programs by name.
      workers: how many are compiled at a time.
    """
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        waiting = {}
        for name, job in jobs.items():
            try:
                waiting[name] = pool.submit(job.trace().lower().compile)
            except Exception as error:  # noqa: BLE001 - whatever a kernel's lowering raises
                waiting[name] = error
        for name, found in waiting.items():
            if isinstance(found, Exception):
                yield name, found
            else:
                yield name, found.exception() or found.result()


def peak_bytes(compiled: jax.stages.Compiled) -> int:
    """The memory that a program needs: arguments, results and temporaries, donated buffers once."""
    plan = compiled.memory_analysis()
    parts = plan.argument_size_in_bytes + plan.output_size_in_bytes - plan.alias_size_in_bytes
    return parts + plan.temp_size_in_bytes


def measure(job: Job, compiled: jax.stages.Compiled, setting: Setting, steps: int) -> Measured:
    """Counts a compiled program.

    Args:
      job: the program.
      compiled: its executable.
      setting: what it was made for.
      steps: a shared program is counted for the architectures that these first steps draw.
    """
    program, space = Program(compiled.as_text(), moved()), setting.space
    of, full, kernels = {}, [], []
    for arch in runs_in(job, setting, steps):
        sampled = sizes(space, job.bucket.arch, arch) if job.bucket is not None and job.bucket.masked else None
        count, whole = program.of(sampled), program.of(sampled, at_run_time=False)
        of[arch] = count.bytes
        full.append(whole.bytes)
        kernels.append(count.kernels)
    layout = () if job.bucket is None else space.layout(job.bucket.arch, setting.config.model.num_classes)
    return Measured(
        group=job.group,
        bytes=_mean(of.values()),
        full_width=_mean(full),
        as_written=program.as_written().bytes,
        kernels=_mean(kernels),
        peak=peak_bytes(compiled),
        collectives=program.collectives(),
        norms=sum(len(layer.statistics()) for layer in layout),
        own=program.own_kernels(),
        unknown=program.unknown,
        of=of,
    )


def runs_in(job: Job, setting: Setting, steps: int) -> list[Architecture | None]:
    """The architectures that a program is counted for: its own, or those drawn that run in it."""
    if job.bucket is None or not job.bucket.masked:
        return [None if job.bucket is None else job.bucket.arch]
    side = job.bucket.arch.resolution
    drawn = [arch for arch in setting.drawn(steps) if arch.resolution == side]
    return list(dict.fromkeys([*drawn, *(arch for arch in setting.sliced() if arch.resolution == side)]))


def _mean(values) -> float:
    values = list(values)
    return sum(values) / len(values)
