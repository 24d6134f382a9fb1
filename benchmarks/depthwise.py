"""Depthwise convolutions of both spaces' biggest networks: ours, XLA's grouped convolution, and PyTorch's.

    python benchmarks/depthwise.py [--batch 8] [--resolution 128] [--all] [--dtype float32] [--rounds 9]
        [--write-table [FILE]] [--quick] [--json FILE]

Ours is what `bignas_jax.ops.depthwise` chooses where this runs; PyTorch's is conv2d with groups=C on channels_last
tensors, and its autograd. The forward pass, and both gradients together without it, are held against PyTorch's values
and then timed in turns; figures are ratios of medians. Without --all there is one shape for each kernel size, stride
and space. On a GPU every implementation is timed for each direction by itself, and --write-table keeps the times in
bignas_jax/ops/depthwise_table.json (or in FILE), by which the next program chooses.
"""

import argparse
import dataclasses
import math
import pathlib
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from bignas_jax import memory  # noqa: E402

memory.keep_freed_memory()

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from report import Result, write  # noqa: E402

from bignas_jax.ops import depthwise, depthwise_pallas, depthwise_table  # noqa: E402
from bignas_jax.programs import use_compilation_cache  # noqa: E402
from bignas_jax.space import SearchSpace, blocks  # noqa: E402
from configs import attentive_nas, bignas  # noqa: E402

SPACES = {"bignas": bignas, "attentive_nas": attentive_nas}
PARTS = ("forward", "gradient")
DIRECTIONS = ("forward", "input_gradient", "kernel_gradient")
# On CPUs; on GPUs ours is to be the best of what there is, whose figures inform.
OVER_TORCH, OVER_XLA = 1.5, 10.0
TOLERANCE = {"float32": 1e-4, "bfloat16": 4e-2}
GPU_CALLS = 20  # a sample on a GPU: calls in a row, since one alone takes less than its launch

Sides = dict[str, Callable[[], object]]  # name to a call that returns when the result is there


@dataclasses.dataclass(frozen=True)
class Case:
    """A depthwise convolution: side and channels of its input, kernel size, stride; `count` blocks of MAX have it."""

    space: str
    side: int
    channels: int
    size: int
    stride: int
    count: int = 1

    @property
    def macs(self) -> int:
        return math.ceil(self.side / self.stride) ** 2 * self.channels * self.size**2

    def __str__(self) -> str:
        return f"{self.space} {self.side}x{self.side}x{self.channels}, {self.size}x{self.size} / {self.stride}"


def cases(resolution: int, everything: bool) -> list[Case]:
    """The distinct shapes of MAX of each space; without `everything`, the median by work of each kernel and stride."""
    found = []
    for name, recipe in SPACES.items():
        space = SearchSpace.from_config(recipe.get_config().space)
        side, counts = math.ceil(resolution / space.stem_stride), {}
        for block in blocks(space, space.biggest):
            case = Case(name, side, block.mid_width, block.kernel_size, block.stride)
            counts[case] = counts.get(case, 0) + 1
            side = math.ceil(side / block.stride)
        found += [dataclasses.replace(case, count=count) for case, count in counts.items()]
    if everything:
        return found
    kinds: dict[tuple, list[Case]] = {}
    for case in found:
        kinds.setdefault((case.space, case.size, case.stride), []).append(case)
    return [sorted(group, key=lambda case: case.macs)[len(group) // 2] for group in kinds.values()]


@dataclasses.dataclass(frozen=True)
class Operands:
    """x [B, H, W, C], kernel [k, k, C] and g, the gradient of the output, on the host in float32."""

    x: np.ndarray
    kernel: np.ndarray
    g: np.ndarray

    @classmethod
    def draw(cls, case: Case, batch: int) -> "Operands":
        rng = np.random.default_rng(0)
        out = math.ceil(case.side / case.stride)
        shapes = (batch, case.side, case.side), (case.size, case.size), (batch, out, out)
        return cls(*(rng.standard_normal((*shape, case.channels), np.float32) for shape in shapes))


def jax_functions(operands: Operands, stride: int, dtype: str) -> dict[str, Callable[[], object]]:
    """The forward pass and both gradients as compiled calls; the implementation is that of the context around."""
    x, g = jnp.asarray(operands.x, dtype), jnp.asarray(operands.g, dtype)
    kernel = jnp.asarray(operands.kernel)
    conv = lambda x, kernel: depthwise.depthwise_conv(x, kernel, stride)  # noqa: E731
    forward, gradient = jax.jit(conv), jax.jit(lambda x, kernel, g: jax.vjp(conv, x, kernel)[1](g))
    return {
        "forward": partial(forward.lower(x, kernel).compile(), x, kernel),
        "gradient": partial(gradient.lower(x, kernel, g).compile(), x, kernel, g),
    }


def torch_functions(operands: Operands, stride: int, dtype: str) -> dict[str, Callable[[], object]]:
    """The same in PyTorch; arrays in NHWC are its channels_last as they lie."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    x, g = (torch.tensor(a, device=device, dtype=getattr(torch, dtype)).permute(0, 3, 1, 2)
            for a in (operands.x, operands.g))
    kernel = torch.tensor(operands.kernel.transpose(2, 0, 1)[:, None], device=device, dtype=x.dtype)
    kernel = kernel.contiguous(memory_format=torch.channels_last)
    x.requires_grad_(), kernel.requires_grad_()
    size, channels = operands.kernel.shape[0], operands.kernel.shape[2]
    conv = partial(F.conv2d, x, kernel, None, stride, size // 2, groups=channels)
    y = conv()

    def forward():
        with torch.no_grad():
            return conv()

    return {"forward": forward, "gradient": lambda: torch.autograd.grad(y, (x, kernel), g, retain_graph=True)}


def check(ours, theirs, name: str, dtype: str) -> None:
    """Holds the forward pass and the gradients of one side against PyTorch's.

    Raises:
      SystemExit: they differ.
    """
    dx, d_kernel = theirs["gradient"]()
    expected = [theirs["forward"]().permute(0, 2, 3, 1), dx.permute(0, 2, 3, 1), d_kernel[:, 0].permute(1, 2, 0)]
    for found, value in zip((ours["forward"](), *ours["gradient"]()), expected, strict=True):
        value = value.detach().float().cpu().numpy()
        difference = np.abs(np.asarray(found, np.float32) - value).max() / np.abs(value).max()
        if not difference < TOLERANCE[dtype]:
            raise SystemExit(f"{name}: found a difference to PyTorch of {difference:.1e}, "
                             f"expected less than {TOLERANCE[dtype]:g}: nothing was timed")


def medians(sides: Sides, rounds: int) -> dict[str, float]:
    """Milliseconds of a call by side; the sides take turns."""
    on_gpu = jax.default_backend() == "gpu"
    calls = GPU_CALLS if on_gpu else 1
    samples: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(-1, rounds):  # one round to warm up
        for name, call in sides.items():
            start = time.perf_counter()
            for _ in range(calls):
                result = call()
            jax.block_until_ready(result)
            if on_gpu and name == "torch":
                torch.cuda.synchronize()
            if number >= 0:
                samples[name].append(1000 * (time.perf_counter() - start) / calls)
    return {name: statistics.median(values) for name, values in samples.items()}


def compare(case: Case, batch: int, dtype: str, rounds: int) -> dict[str, dict[str, float]]:
    """Milliseconds of ours, XLA's and PyTorch's, by part."""
    operands = Operands.draw(case, batch)
    sides = {"ours": jax_functions(operands, case.stride, dtype)}
    with depthwise.using("grouped"):
        sides["xla"] = jax_functions(operands, case.stride, dtype)
    sides["torch"] = torch_functions(operands, case.stride, dtype)
    for name in ("ours", "xla"):
        check(sides[name], sides["torch"], f"{case}, {name}", dtype)
    return {part: medians({name: functions[part] for name, functions in sides.items()}, rounds) for part in PARTS}


def measure(case: Case, batch: int, dtype: str, rounds: int, names: Sequence[str]) -> list[dict]:
    """An entry of the table for each direction: milliseconds of every named implementation that runs here."""
    operands = Operands.draw(case, batch)
    x, g = jnp.asarray(operands.x, dtype), jnp.asarray(operands.g, dtype)
    kernel, entries = jnp.asarray(operands.kernel), []
    for direction in DIRECTIONS:
        calls: Sides = {}
        for name in names:
            function = getattr(depthwise.IMPLEMENTATIONS[name], direction)
            if name == "pallas" and not depthwise_pallas.supports(x.shape, case.size, case.stride, x.dtype):
                continue
            arrays, run = {
                "forward": ((x, kernel), lambda x, k, f=function: f(x, k, case.stride)),
                "input_gradient": ((g, kernel), lambda g, k, f=function: f(g, k, case.stride, x.shape)),
                "kernel_gradient": ((x, g), lambda x, g, f=function: f(x, g, case.size, case.stride)),
            }[direction]
            try:
                calls[name] = partial(jax.jit(run).lower(*arrays).compile(), *arrays)
                jax.block_until_ready(calls[name]())
            except Exception as error:  # an implementation that this device cannot run is no candidate
                calls.pop(name, None)
                print(f"{case}, {direction}: {name} does not run here: {str(error).splitlines()[0]}")
        entries.append({
            "direction": direction, "shape": list(x.shape), "size": case.size, "stride": case.stride, "dtype": dtype,
            "milliseconds": {name: round(ms, 4) for name, ms in medians(calls, rounds).items()},
        })
    return entries


def results(found: Mapping[Case, Mapping[str, Mapping[str, float]]], on_cpu: bool) -> list[Result]:
    """Geometric means over shapes, and ratios of total time, in which a shape counts as often as MAX has it."""
    rows = []
    for part in PARTS:
        for peer, text, over, target, better in (
            ("torch", "time over PyTorch's", False, OVER_TORCH, "lower"),
            ("xla", "times faster than XLA's grouped", True, OVER_XLA, "higher"),
        ):
            pairs = [(times[part]["ours"], times[part][peer], case.count) for case, times in found.items()]
            ratios = [theirs / ours if over else ours / theirs for ours, theirs, _ in pairs]
            total = sum(count * ours for ours, _, count in pairs) / sum(count * theirs for _, theirs, count in pairs)
            target = target if on_cpu else None
            mean = math.exp(statistics.fmean(map(math.log, ratios)))
            rows.append(Result(f"{part}: {text}, mean of shapes", mean, "x", target, better))
            total = 1 / total if over else total
            rows.append(Result(f"{part}: {text}, total over the blocks of MAX", total, "x", target, better))
    return rows


def table_results(entries: Sequence[Mapping]) -> list[Result]:
    """How often each implementation was the fastest, and what the choice gains over always taking one."""
    rows = []
    for direction in DIRECTIONS:
        measured = [entry["milliseconds"] for entry in entries if entry["direction"] == direction]
        best = sum(min(times.values()) for times in measured)
        for name in dict.fromkeys(name for times in measured for name in times):
            if all(name in times for times in measured):
                wins = sum(min(times, key=times.get) == name for times in measured)
                text = f"{direction}: time of {name} over the fastest of each shape ({wins} of {len(measured)} its own)"
                rows.append(Result(text, sum(times[name] for times in measured) / best, "x", better="lower"))
    return rows


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=8, help="images")
    parser.add_argument("--resolution", type=int, default=128, help="side of the images that the networks would see")
    parser.add_argument("--all", action="store_true", help="every distinct shape")
    parser.add_argument("--dtype", choices=tuple(TOLERANCE), default="float32")
    parser.add_argument("--rounds", type=int, default=9, help="timed rounds")
    parser.add_argument("--write-table", nargs="?", const=str(depthwise_table.PATH), metavar="FILE")
    parser.add_argument("--json", help="file to write the results to")
    parser.add_argument("--quick", action="store_true", help="2 images of 32 pixels, 3 rounds")
    args = parser.parse_args()
    if args.write_table == str(depthwise_table.PATH) and jax.default_backend() != "gpu":
        parser.error(f"--write-table: found {jax.default_backend()}, expected a GPU; to try it out, name a FILE")
    if args.quick:
        args.batch, args.resolution, args.rounds = 2, 32, 3
    return args


def write_table(path: pathlib.Path, entries: Sequence[Mapping]) -> None:
    table = depthwise_table.read(path) if path.exists() else {}
    path.write_text(depthwise_table.dumps(depthwise_table.merge(table, jax.devices()[0].device_kind, entries)))


def main() -> None:
    args = arguments()
    use_compilation_cache()
    torch.backends.cudnn.benchmark = True
    chosen = cases(args.resolution, args.all)
    on_cpu = jax.default_backend() == "cpu"
    print(f"{jax.devices()[0].device_kind}, batch {args.batch}, {args.dtype}, shapes at {args.resolution} pixels; ms")
    entries = []
    if args.write_table or not on_cpu:
        names = ["shifted", "grouped"] if on_cpu else ["shifted", "grouped", "pallas"]
        for case in chosen:
            entries += measure(case, args.batch, args.dtype, args.rounds, names)
    if args.write_table:
        write_table(pathlib.Path(args.write_table), entries)
        depthwise_table.load.cache_clear()  # so that "ours" below is chosen by what was just measured
    found = {}
    for case in chosen:
        found[case] = compare(case, args.batch, args.dtype, args.rounds)
        print(str(case).ljust(40), *(f"{part} " + ", ".join(f"{name} {ms:.2f}" for name, ms in times.items())
                                     for part, times in found[case].items()), sep="  ")
    rows = results(found, on_cpu and not args.quick) + table_results(entries)
    write("depthwise", rows, args.quick, args.json)


if __name__ == "__main__":
    main()
