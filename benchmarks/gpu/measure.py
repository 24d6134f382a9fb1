"""One program, compiled and counted."""

import dataclasses
import pathlib

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


def measure(name: str, job: Job, setting: Setting, steps: int, dump: pathlib.Path | None = None) -> Measured:
    """Compiles a program and counts it.

    Args:
      name: the program's name, also that of its file.
      job: the program.
      setting: what it was made for.
      steps: a shared program is counted for the architectures that these first steps draw.
      dump: folder for its text, or None.
    """
    compiled = job.trace().lower().compile()
    text, plan = compiled.as_text(), compiled.memory_analysis()
    if dump is not None:
        dump.mkdir(parents=True, exist_ok=True)
        (dump / f"{name}.hlo").write_text(text)
    peak = plan.argument_size_in_bytes + plan.output_size_in_bytes - plan.alias_size_in_bytes + plan.temp_size_in_bytes
    program, space = Program(text, moved()), setting.space
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
        peak=peak,
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
