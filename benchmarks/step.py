"""Images a second of the sandwich step and of each member, beside plain PyTorch (benchmarks/peer.py).

    python benchmarks/step.py [--config configs/bignas.py] [--batch 8] [--resolutions 96,112,128] [--steps 9]
        [--dtype float32] [--peer eager] [--remat] [--quick] [--json FILE] [--trace FOLDER]
    python benchmarks/step.py --config configs/cifar10.py --batch 128

It takes the space and the optimizer of a recipe, and the paper's loss with students that count as much as the biggest,
which is what PyTorch's side computes. There is no augmentation: images are random bytes in memory. Both sides run the
same architectures on the same weights and images. Before anything is timed, their results are compared: the
predictions of the biggest, and the gradients of the biggest, of the random ones and of the smallest. In float32 a bound
limits the difference. In bfloat16 a few images are first compared in float32. Then the distance between PyTorch's own
bfloat16 and float32 sets the limit. Every architecture runs untimed first, on every side. Steps alternate, and the
figures are ratios of medians. The peer computes 1x1 convolutions in two forms, as convolutions or as matrix products.
Each part is compared with the form that is faster at it.

`--peer compile` times only the biggest and the smallest, under torch.compile. Each architecture compiles for a minute
or more, so that all architectures of all steps would exceed the time budget of benchmarks/gpu.sh. `--remat` also times
our step with blocks recomputed, and measures its memory.
"""

import argparse
import pathlib
import statistics
import sys
from functools import partial

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from bignas_jax.programs import memory  # noqa: E402

memory.keep_freed_memory()

import jax  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from peer import TRAINED, torch_device  # noqa: E402
from report import Result, write  # noqa: E402
from step_sides import (  # noqa: E402
    FORMS,
    Ours,
    Theirs,
    check,
    check_exactly,
    prepare_compile,
    seconds,
    start_weights,
)

from bignas_jax.cli import scripts  # noqa: E402
from bignas_jax.config.options import Options  # noqa: E402
from bignas_jax.config.recipes import load_recipe  # noqa: E402
from bignas_jax.errors import ConfigError  # noqa: E402
from bignas_jax.programs.kept import use_compilation_cache  # noqa: E402
from bignas_jax.spaces import cost  # noqa: E402
from bignas_jax.spaces.mobilenet import SearchSpace  # noqa: E402
from bignas_jax.spaces.registry import space_of  # noqa: E402
from bignas_jax.step.members.registry import make_members  # noqa: E402

TARGETS = {"cpu": {"step": 1.4, "random": 1.25}, "gpu": {}}
TARGET = {"cpu": 1.3, "gpu": 2.0}  # of other parts
BIGNAS = "configs/bignas.py"
# Of BIGNAS by default: with all of its resolutions, up to 288 pixels, a step takes long on a CPU.
REDUCED = "96,112,128"
TRAFFIC = "step: memory traffic by XLA's count (a conditional's heavier branch always, native kernels never)"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default=BIGNAS, help="the recipe")
    parser.add_argument("--batch", type=int, default=8, help="images a step")
    parser.add_argument("--resolutions", help=f"the space's, ascending; {REDUCED} of {BIGNAS}, else the recipe's")
    parser.add_argument("--steps", type=int, default=9, help="timed steps a side")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--peer", default="eager", help="eager, compile (the biggest and smallest), or both by comma")
    parser.add_argument("--remat", action="store_true", help="our step with rematerialisation too")
    parser.add_argument("--trace", help="folder for a profile of two of our steps")
    parser.add_argument("--json", help="file to write the results to")
    parser.add_argument("--quick", action="store_true", help="configs/digits.py at one resolution, 3 steps")
    args = parser.parse_args()
    if not set(args.peer.split(",")) <= set(FORMS):
        parser.error(f"--peer: found {args.peer}, expected some of {', '.join(FORMS)}")
    return args


def configuration(args: argparse.Namespace):
    """The config and its space. Random regularisation is off, so that both sides compute the same."""
    config = load_recipe("configs/digits.py" if args.quick else args.config)
    sides = args.resolutions or (REDUCED if pathlib.Path(args.config).resolve() == ROOT / BIGNAS else "")
    sides = "6" if args.quick else sides
    if sides:
        config.space.resolution = tuple(int(side) for side in sides.split(","))
    config.model.dropout = config.model.drop_connect = 0.0
    config.sandwich.update(TRAINED)
    space, options = space_of(config.space), Options.of(config)
    given = type(space).__name__, options.sandwich.members, options.optimizer.name
    expected = SearchSpace.__name__, "sandwich", "sgd"
    if given != expected:
        raise ConfigError(f"{args.config}: found {', '.join(given)}, expected {', '.join(expected)}, as in PyTorch")
    return config, space


def time_members(side, archs, names, times: dict[str, list[float]]) -> None:
    """Times each member's call, and appends the seconds to `times`."""
    total = targets = None
    for name, arch in zip(names, archs, strict=True):
        taken, (total, targets) = seconds(side.member, arch, targets, total)
        times.setdefault(name.rstrip("0123456789"), []).append(taken)
    if isinstance(side, Theirs):
        side.update()


def compare(sides: dict[str, object], space, recipe, steps: int) -> dict[str, dict[str, float]]:
    """Median seconds of the step and of each member by side; the sides take turns, on the same architectures."""
    names = make_members(space, recipe).names
    drawn = [make_members(space, recipe).architectures(number) for number in range(steps)]
    whole = {name: getattr(side, "whole", True) for name, side in sides.items()}
    for name, side in sides.items():
        if isinstance(side, Theirs) and whole[name]:
            side.tune(drawn)
    times: dict[str, dict[str, list[float]]] = {name: {} for name in sides}
    for number in range(-steps, steps):  # first every architecture runs untimed: libraries prepare for each
        archs = drawn[number]
        for name, side in sides.items():
            found: dict[str, list[float]] = {} if number < 0 else times[name]
            if whole[name]:
                found.setdefault("step", []).append(seconds(side.step, number % steps, archs)[0])
            if whole[name] and number >= 0:
                time_members(side, archs, names, found)
            elif not whole[name]:
                time_members(side, (archs[0], archs[-1]), (names[0], names[-1]), found)
    return {name: {part: statistics.median(v) for part, v in found.items()} for name, found in times.items()}


def table(medians: dict[str, dict[str, float]]) -> None:
    """Prints the medians of all sides."""
    parts = list(medians["ours"])
    print("milliseconds".ljust(24) + "".join(part.rjust(12) for part in parts))
    for name, found in medians.items():
        cells = (f"{1000 * found[part]:.1f}" if part in found else "-" for part in parts)
        print(name.ljust(24) + "".join(cell.rjust(12) for cell in cells))


def ratios(medians, args, quick: bool) -> list[Result]:
    """Our images a second over the peer's fastest form, by part. A part that no form ran has no ratio."""
    platform = jax.default_backend()
    forms = [name for name in medians if name.startswith("peer")]
    results = []
    for part, ours in medians["ours"].items():
        theirs = [medians[form][part] for form in forms if part in medians[form]]
        target = None if quick else TARGETS.get(platform, {}).get(part, TARGET.get(platform))
        if theirs:
            results.append(Result(f"{part}: images a second over the peer's", min(theirs) / ours, "x", target))
        results.append(Result(f"{part}: images a second", args.batch / ours, "images/s"))
    return results


def rates(ours: Ours, space, classes: int, batch: int, steps: int, seconds_a_step: float) -> list[Result]:
    """Useful arithmetic of the timed steps, and memory traffic as XLA counts it (TRAFFIC names the count's limits)."""
    executables, macs, traffic = ours.sandwich.executables, 0, 0
    for number in range(steps):
        members = ours.sandwich.members.choose(number, None)
        macs += sum(cost.count(space, member.arch, classes).macs for member in members)
        keys = [*(member.part for member in members), "update"]
        traffic += sum(executables[key].cost_analysis().get("bytes accessed", 0) for key in keys)
    # A multiply-add is two operations. The gradient takes two products where the forward pass takes one.
    operations = 2 * 3 * batch * macs / steps / seconds_a_step
    return [
        Result("step: rate of arithmetic", operations / 1e12, "TFLOP/s"),
        Result(TRAFFIC, traffic / steps / seconds_a_step / 1e9, "GB/s"),
    ]


def memory_results(ours: Ours, remat: Ours | None) -> list[Result]:
    """The peak memory of the step's executables, and its ratio with rematerialisation."""
    peaks, figure = ours.peak_bytes(), partial(Result, better="lower", shown=True)
    results = [figure("peak memory of the step's executables", max(peaks.values()) / 1e9, "GB")]
    less = (remat or ours).peak_bytes()
    for name, size in peaks.items():
        print(f"memory of {name}: {size / 1e9:.3f} GB, with remat {less[name] / 1e9:.3f} GB")
    if remat is not None:
        masked = max((name for name in peaks if name.endswith("masked")), key=peaks.get)
        for title, name in (("the biggest", "the biggest"), ("a random member", masked)):
            results.append(figure(f"rematerialisation: memory of {title}", less[name] / peaks[name], "x"))
    used = jax.devices()[0].memory_stats() if jax.default_backend() != "cpu" else None
    if used:
        results.append(figure("peak memory of the device", used["peak_bytes_in_use"] / 1e9, "GB"))
    return results


def main() -> None:
    args = arguments()
    use_compilation_cache()
    config, space = configuration(args)
    steps = 3 if args.quick else args.steps
    params = start_weights(space, config.model.num_classes)
    side = config.data.image_size if args.quick else max(space.resolution)
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (args.batch, side, side, 3), dtype=np.uint8)
    labels = rng.integers(0, config.model.num_classes, args.batch)
    given = params, images, labels
    torch_device()  # says at once if there is no peer here
    if args.dtype == "bfloat16":
        check_exactly(config, space, *given)
    ours = Ours(config, space, args.dtype, *given)
    sides, first = {"ours": ours}, make_members(space, ours.recipe).architectures(0)
    for form in args.peer.split(","):
        if form == "compile":
            prepare_compile(2)
        for pointwise in FORMS[form]:
            side = Theirs(config, space, args.dtype, *given, form, pointwise)
            sides[f"peer {form}, {pointwise}"] = side
            check(ours, side, first if side.whole else (first[0], first[-1]), args.dtype)
    if torch_device() == "cuda":
        torch.cuda.empty_cache()  # frees the memory of the checks
    remat = Ours(config, space, args.dtype, *given, remat=True) if args.remat else None
    if remat is not None:
        sides["ours, remat"] = remat
    medians = compare(sides, space, ours.recipe, steps)
    if "compile" in args.peer.split(","):
        graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
        print(f"torch.compile made {graphs} graphs for 2 architectures")
    table(medians)
    results = ratios(medians, args, args.quick)
    if remat is not None:
        for part in ("biggest", "random"):
            slower = medians["ours, remat"][part] / medians["ours"][part]
            results.append(Result(f"rematerialisation: time of the {part}", slower, "x", None, "lower", shown=True))
    results += rates(ours, space, config.model.num_classes, args.batch, steps, medians["ours"]["step"])
    results += memory_results(ours, remat)
    macs = [cost.count(space, arch, config.model.num_classes).macs for arch in (space.biggest, space.smallest)]
    print(f"{jax.devices()[0].device_kind}, batch {args.batch}, {args.dtype}, multiply-adds of the biggest"
          f" {macs[0] / 1e6:.1f} M, of the smallest {macs[1] / 1e6:.1f} M")
    write("step", results, args.quick, args.json)
    if args.trace:  # last, because it takes longest
        with jax.profiler.trace(args.trace):
            for number in (steps, steps + 1):
                ours.step(number, None)


if __name__ == "__main__":
    sys.exit(scripts.run(sys.argv[0], main))
