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
from collections.abc import Mapping, Sequence

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from bignas_jax.programs import memory  # noqa: E402

memory.keep_freed_memory()

import jax  # noqa: E402
import torch  # noqa: E402
from depthwise_timing import DIRECTIONS, PARTS, TOLERANCE, Case, compare, measure, repeats_of  # noqa: E402
from peer import torch_device  # noqa: E402
from report import Result, write  # noqa: E402

from bignas_jax.kernels.depthwise import table as depthwise_table  # noqa: E402
from bignas_jax.programs.kept import use_compilation_cache  # noqa: E402
from bignas_jax.spaces.mobilenet import SearchSpace, blocks  # noqa: E402
from configs import attentive_nas, bignas  # noqa: E402

SPACES = {"bignas": bignas, "attentive_nas": attentive_nas}
# Targets on CPUs. On GPUs there is no target: ours is the fastest implementation there is.
OVER_TORCH, OVER_XLA = 1.5, 10.0


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
