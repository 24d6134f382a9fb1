"""Depthwise convolutions of both spaces' biggest networks: ours, XLA's grouped convolution, and PyTorch's.

    python benchmarks/depthwise.py [--batch 8] [--resolution 128] [--all] [--dtype float32] [--rounds 9]
        [--write-table [FILE]] [--quick] [--json FILE]

"Ours" is the implementation that `bignas_jax.kernels.depthwise` chooses on this device. PyTorch's is conv2d with
groups=C on channels_last tensors, with its autograd. The forward pass is compared with PyTorch's values and timed. So
are both gradients together, without the forward pass. The sides are timed in turns; figures are ratios of medians.
Without --all there is one shape for each kernel size, stride and space.

On a GPU every implementation is timed for each direction alone, many times inside one executable (PyTorch: inside one
CUDA graph). --write-table keeps the times in bignas_jax/kernels/depthwise/table.json (or in FILE). Later programs
choose by this table: ours is then the fastest implementation of each direction, and a gradient the sum of two. The
table and the results are written after every shape, so that a stopped run keeps them.
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

from bignas_jax.programs import memory  # noqa: E402

memory.keep_freed_memory()

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from peer import torch_device  # noqa: E402
from report import Result, write  # noqa: E402

from bignas_jax.kernels.depthwise import pallas as depthwise_pallas  # noqa: E402
from bignas_jax.kernels.depthwise import table as depthwise_table  # noqa: E402
from bignas_jax.kernels.depthwise.choice import IMPLEMENTATIONS, depthwise_conv, using  # noqa: E402
from bignas_jax.programs.compile import compile_ahead  # noqa: E402
from bignas_jax.programs.kept import use_compilation_cache  # noqa: E402
from bignas_jax.spaces.mobilenet import SearchSpace, blocks  # noqa: E402
from configs import attentive_nas, bignas  # noqa: E402

SPACES = {"bignas": bignas, "attentive_nas": attentive_nas}
PARTS = ("forward", "gradient")
DIRECTIONS = ("forward", "input_gradient", "kernel_gradient")
# Targets on CPUs. On GPUs there is no target: ours is the fastest implementation there is.
OVER_TORCH, OVER_XLA = 1.5, 10.0
TOLERANCE = {"float32": 1e-4, "bfloat16": 4e-2}
# A sample on a GPU repeats a computation until it has moved this many bytes (some milliseconds), within these limits.
SAMPLE_BYTES, REPEATS = 4e9, (5, 200)

Sides = dict[str, Callable[[], object]]  # from a name to a call that returns when its result is ready


@dataclasses.dataclass(frozen=True)
class Case:
    """A depthwise convolution: side and channels of its input, kernel size, stride, and number of blocks of MAX."""

    space: str
    side: int
    channels: int
    size: int
    stride: int
    count: int = 1

    @property
    def shape(self) -> tuple[int, ...]:
        """Everything that decides the computation. The space is left out."""
        return self.side, self.channels, self.size, self.stride

    @property
    def macs(self) -> int:
        """Multiply-adds for one image."""
        return math.ceil(self.side / self.stride) ** 2 * self.channels * self.size**2

    def __str__(self) -> str:
        return f"{self.space} {self.side}x{self.side}x{self.channels}, {self.size}x{self.size} / {self.stride}"


def cases(resolution: int, everything: bool) -> list[Case]:
    """The distinct shapes of each space's MAX. Without `everything`, one of median work for each kernel and stride."""
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
    """float32 operands: x [B, H, W, C], kernel [k, k, C] and g, the output's gradient. On the host, or on the GPU."""

    x: np.ndarray | jax.Array
    kernel: np.ndarray | jax.Array
    g: np.ndarray | jax.Array

    @classmethod
    def draw(cls, case: Case, batch: int) -> "Operands":
        """Random operands of a case."""
        out = math.ceil(case.side / case.stride)
        shapes = (batch, case.side, case.side), (case.size, case.size), (batch, out, out)
        if jax.default_backend() != "cpu":
            keys = jax.random.split(jax.random.key(0), 3)
            draw = jax.jit(jax.random.normal, static_argnums=1)
            return cls(*(draw(key, (*shape, case.channels)) for key, shape in zip(keys, shapes, strict=True)))
        rng = np.random.default_rng(0)
        return cls(*(rng.standard_normal((*shape, case.channels), np.float32) for shape in shapes))


def jax_functions(operands: Operands, stride: int, dtype: str) -> dict[str, Callable[[], object]]:
    """The forward pass and both gradients as compiled calls. The surrounding context chooses the implementation."""
    x, g = jnp.asarray(operands.x, dtype), jnp.asarray(operands.g, dtype)
    kernel = jnp.asarray(operands.kernel)
    conv = lambda x, kernel: depthwise_conv(x, kernel, stride)  # noqa: E731
    forward, gradient = jax.jit(conv), jax.jit(lambda x, kernel, g: jax.vjp(conv, x, kernel)[1](g))
    return {
        "forward": partial(forward.lower(x, kernel).compile(), x, kernel),
        "gradient": partial(gradient.lower(x, kernel, g).compile(), x, kernel, g),
    }


def torch_functions(operands: Operands, stride: int, dtype: str) -> dict[str, Callable[[], object]]:
    """The same in PyTorch. Arrays in NHWC already have the memory layout of its channels_last."""
    device = torch_device()
    if device == "cuda":  # in the same memory as JAX's arrays
        x, g, kernel = (torch.from_dlpack(a) for a in (operands.x, operands.g, operands.kernel))
    else:
        x, g, kernel = (torch.tensor(a) for a in (operands.x, operands.g, operands.kernel))
    x, g = (a.to(getattr(torch, dtype)).permute(0, 3, 1, 2) for a in (x, g))
    kernel = kernel.permute(2, 0, 1)[:, None].to(x.dtype).contiguous(memory_format=torch.channels_last)
    size, _, channels = operands.kernel.shape
    if device == "cuda":
        # Called directly: autograd would run on the stream of the forward pass, which the graph does not capture.
        arguments = [stride] * 2, [size // 2] * 2, [1, 1], False, [0, 0], channels
        backward = torch.ops.aten.convolution_backward
        return {
            "forward": lambda: F.conv2d(x, kernel, None, stride, size // 2, groups=channels),
            "gradient": lambda: backward(g, x, kernel, None, *arguments, [True, True, False])[:2],
        }
    x.requires_grad_(), kernel.requires_grad_()
    conv = partial(F.conv2d, x, kernel, None, stride, size // 2, groups=channels)
    y = conv()

    def forward():
        with torch.no_grad():
            return conv()

    return {"forward": forward, "gradient": lambda: torch.autograd.grad(y, (x, kernel), g, retain_graph=True)}


def repeats_of(case: Case, batch: int) -> int:
    """How often a sample on a GPU repeats this case. With few repetitions of a small case, launches would dominate."""
    numbers = batch * case.channels * (case.side**2 + math.ceil(case.side / case.stride) ** 2)
    return int(min(REPEATS[1], max(REPEATS[0], SAMPLE_BYTES / (2 * numbers))))


def repeated(run: Callable, repeats: int) -> Callable:
    """A function that computes `run` `repeats` times, one after the other, and returns the last result."""
    if repeats == 1:
        return run

    def body(_, carry):
        arrays, result = jax.lax.optimization_barrier(carry)  # operands wait until the previous result is ready
        return arrays, run(*arrays)

    def loop(*arrays):
        result = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), jax.eval_shape(run, *arrays))
        return jax.lax.fori_loop(0, repeats, body, (arrays, result))[1]

    return loop


def torch_repeated(call: Callable[[], object], repeats: int) -> Callable[[], object]:
    """A call that makes `call` `repeats` times: on a GPU as one CUDA graph, because PyTorch's launches take longer."""
    if not torch.cuda.is_available():
        return lambda: [call() for _ in range(repeats)][-1]
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # cuDNN searches now, not while a graph is captured
        for _ in range(3):
            call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(repeats):
            call()
    return graph.replay


def check(ours, theirs, name: str, dtype: str) -> None:
    """Compares the forward pass and the gradients of one side with PyTorch's.

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


def medians(sides: Sides, rounds: int, repeats: int = 1) -> dict[str, float]:
    """Milliseconds of each side's computation. A call makes it `repeats` times, and the sides take turns."""
    samples: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(-1, rounds):  # one round to warm up
        for name, call in sides.items():
            start = time.perf_counter()
            jax.block_until_ready(call())
            if name == "torch" and torch.cuda.is_available():
                torch.cuda.synchronize()
            if number >= 0:
                samples[name].append(1000 * (time.perf_counter() - start) / repeats)
    return {name: statistics.median(values) for name, values in samples.items()}


def compare(case: Case, batch: int, dtype: str, rounds: int) -> dict[str, dict[str, float]]:
    """Milliseconds of ours, XLA's and PyTorch's, by part."""
    operands = Operands.draw(case, batch)
    sides = {"ours": jax_functions(operands, case.stride, dtype)}
    with using("grouped"):
        sides["xla"] = jax_functions(operands, case.stride, dtype)
    sides["torch"] = torch_functions(operands, case.stride, dtype)
    for name in ("ours", "xla"):
        check(sides[name], sides["torch"], f"{case}, {name}", dtype)
    return {part: medians({name: functions[part] for name, functions in sides.items()}, rounds) for part in PARTS}


def measure(
    case: Case, batch: int, dtype: str, rounds: int, names: Sequence[str], repeats: int = 1
) -> tuple[list[dict], dict[str, dict[str, float]]]:
    """Milliseconds of each direction, by every named implementation that runs here and by PyTorch.

    Returns:
      An entry of the table for each direction, and the times as `compare` gives them, with the fastest as ours.
    """
    operands = Operands.draw(case, batch)
    x, g = jnp.asarray(operands.x, dtype), jnp.asarray(operands.g, dtype)
    kernel, theirs = jnp.asarray(operands.kernel), torch_functions(operands, case.stride, dtype)
    del operands
    given = {"forward": (x, kernel), "input_gradient": (g, kernel), "kernel_gradient": (x, g)}
    jobs, entries = {}, []
    for name in names:
        if name == "pallas" and not depthwise_pallas.supports(x.shape, case.size, case.stride, x.dtype):
            continue
        for direction in DIRECTIONS:
            function = getattr(IMPLEMENTATIONS[name], direction)
            run = {
                "forward": lambda x, k, f=function: f(x, k, case.stride),
                "input_gradient": lambda g, k, f=function: f(g, k, case.stride, x.shape),
                "kernel_gradient": lambda x, g, f=function: f(x, g, case.size, case.stride),
            }[direction]
            jobs[direction, name] = partial(jax.jit(repeated(run, repeats)).lower, *given[direction])
    compiled = compile_those_that_run(jobs, str(case))
    dx, d_kernel = theirs["gradient"]()
    expected = {"forward": theirs["forward"]().permute(0, 2, 3, 1), "input_gradient": dx.permute(0, 2, 3, 1),
                "kernel_gradient": d_kernel[:, 0].permute(1, 2, 0)}  # fmt: skip
    found: dict[str, dict[str, float]] = {}
    for direction in DIRECTIONS:
        calls: Sides = {}
        for name in names:
            if (direction, name) not in compiled:
                continue
            call = partial(compiled[direction, name], *given[direction])
            try:
                result = jax.block_until_ready(call())
            except Exception as error:  # this device cannot run the implementation: it is left out
                print(f"{case}, {direction}: {name} does not run here: {str(error).splitlines()[0]}")
                continue
            check_one(result, expected[direction], f"{case}, {direction}, {name}", dtype)
            calls[name] = call
        found[direction] = medians(calls, rounds, repeats)
        entries.append({
            "direction": direction, "shape": list(x.shape), "size": case.size, "stride": case.stride, "dtype": dtype,
            "milliseconds": {name: round(ms, 4) for name, ms in found[direction].items()},
        })
    del expected, dx, d_kernel
    times = {}
    for part, directions in (("forward", DIRECTIONS[:1]), ("gradient", DIRECTIONS[1:])):
        parts = [found[direction] for direction in directions]
        times[part] = medians({"torch": torch_repeated(theirs[part], repeats)}, rounds, repeats)
        times[part]["ours"] = sum(min(part.values()) for part in parts)
        if all("grouped" in part for part in parts):
            times[part]["xla"] = sum(part["grouped"] for part in parts)
    return entries, times


def compile_those_that_run(jobs: Mapping[tuple[str, str], Callable], title: str) -> dict[tuple[str, str], Callable]:
    """The compiled programs. They compile side by side. Programs that do not compile here are left out."""
    try:
        return compile_ahead(jobs, title, progress=False)
    except Exception:
        compiled = {}
        for (direction, name), lower in jobs.items():
            try:
                compiled[direction, name] = lower().compile()
            except Exception as error:
                print(f"{title}, {direction}: {name} does not compile here: {str(error).splitlines()[0]}")
        return compiled


def check_one(found: jax.Array, expected: torch.Tensor, name: str, dtype: str) -> None:
    """Compares one result with PyTorch's, on the device that holds both.

    Raises:
      SystemExit: they differ.
    """
    value = jnp.from_dlpack(expected.detach().float().contiguous())
    difference = float(jnp.abs(found.astype(jnp.float32) - value).max() / jnp.abs(value).max())
    if not difference < TOLERANCE[dtype]:
        raise SystemExit(f"{name}: found a difference to PyTorch of {difference:.1e}, "
                         f"expected less than {TOLERANCE[dtype]:g}: nothing was timed")


def results(found: Mapping[Case, Mapping[str, Mapping[str, float]]], on_cpu: bool) -> list[Result]:
    """Geometric means over shapes, and ratios of total time. The total counts a shape as often as MAX has it."""
    rows = []
    for part in PARTS:
        for peer, text, over, target, better in (
            ("torch", "time over PyTorch's", False, OVER_TORCH, "lower"),
            ("xla", "times faster than XLA's grouped", True, OVER_XLA, "higher"),
        ):
            pairs = [(times[part]["ours"], times[part][peer], case.count) for case, times in found.items()
                     if peer in times[part]]
            if not pairs:
                continue
            ratios = [theirs / ours if over else ours / theirs for ours, theirs, _ in pairs]
            total = sum(count * ours for ours, _, count in pairs) / sum(count * theirs for _, theirs, count in pairs)
            target = target if on_cpu else None
            mean = math.exp(statistics.fmean(map(math.log, ratios)))
            rows.append(Result(f"{part}: {text}, mean of shapes", mean, "x", target, better))
            total = 1 / total if over else total
            rows.append(Result(f"{part}: {text}, total over the blocks of MAX", total, "x", target, better))
    return rows


def table_results(entries: Sequence[Mapping]) -> list[Result]:
    """How often each implementation was the fastest, and the gain of the choice over always taking the same one."""
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
    """Writes the entries as the table of this device."""
    table = depthwise_table.read(path) if path.exists() else {}
    path.write_text(depthwise_table.dumps(depthwise_table.merge(table, jax.devices()[0].device_kind, entries)))


def main() -> None:
    args = arguments()
    use_compilation_cache()
    torch.backends.cudnn.benchmark = True
    torch_device()  # says at once if there is no peer here
    chosen = cases(args.resolution, args.all)
    on_cpu = jax.default_backend() == "cpu"
    print(f"{jax.devices()[0].device_kind}, batch {args.batch}, {args.dtype}, shapes at {args.resolution} pixels; ms")
    names = ["shifted", "grouped"] if on_cpu else ["shifted", "grouped", "pallas"]
    entries, measured, found = [], {}, {}
    if args.write_table or not on_cpu:
        for case in chosen:
            if case.shape not in measured:
                repeats = 1 if on_cpu else repeats_of(case, args.batch)
                new, measured[case.shape] = measure(case, args.batch, args.dtype, args.rounds, names, repeats)
                entries += new
                if args.write_table:
                    write_table(pathlib.Path(args.write_table), new)
            if not on_cpu:
                found[case] = measured[case.shape]
                show(case, found[case])
                write("depthwise", results(found, False) + table_results(entries), args.quick, args.json, silent=True)
        depthwise_table.load.cache_clear()  # so that "ours" below is chosen by the new times
    for case in chosen if on_cpu else ():
        found[case] = compare(case, args.batch, args.dtype, args.rounds)
        show(case, found[case])
    rows = results(found, on_cpu and not args.quick) + table_results(entries)
    write("depthwise", rows, args.quick, args.json)


def show(case: Case, times: Mapping[str, Mapping[str, float]]) -> None:
    """Prints the times of a case."""
    print(str(case).ljust(40), *(f"{part} " + ", ".join(f"{name} {ms:.3g}" for name, ms in found.items())
                                 for part, found in times.items()), sep="  ", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
