"""The ways in which relatives train a supernet, side by side on the same space, in as many optimizer steps.

    python benchmarks/relatives.py --workdir exp/relatives [--config configs/cifar10.py] [--root ROOT]
        [--epochs 4] [--seed 0] [--evaluations 100] [--only NAME,...] [--quick] [--json FILE]

The recipe's own sandwich comes first. Then, with one part of it changed: BigNAS's loss (Yu et al., 2020, section 3.1),
where the recipe has another one; AlphaNet's adaptive alpha-divergence (Wang et al., ICML 2021), for both of which
students count as much as the biggest; AttentiveNAS's BestUp-3 (Wang et al., CVPR 2021). Last is Once-for-All's
progressive shrinking (Cai et al., 2020, section 3.3): a quarter of the epochs for the full network, then for kernels,
for depths, and for the whole space, at its authors' ratios of learning rates, with the full network as the teacher.

MAX, MIN and the winner of a search under half of MAX's multiply-adds are scored on the validation images, calibrated.
A step of one is not as dear as a step of another, so the table has the minutes of all steps, too, at the median speed
that was logged; they can be compared if the machine had nothing else to do. Trainings lie in WORKDIR/NAME-EPOCHS-SEED.
The same command goes on after an interruption and trains nothing twice.
"""

import argparse
import json
import math
import pathlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from bignas_jax.programs import memory

memory.keep_freed_memory()

from ablations import EQUAL, changed, scores  # noqa: E402
from claim import seconds_an_image  # noqa: E402
from report import Result, write  # noqa: E402

from bignas_jax.api import open_run  # noqa: E402
from bignas_jax.cli import scripts  # noqa: E402
from bignas_jax.config.options import Options  # noqa: E402
from bignas_jax.config.phases import runs_of  # noqa: E402
from bignas_jax.config.recipes import load_recipe  # noqa: E402
from bignas_jax.errors import ConfigError  # noqa: E402
from bignas_jax.spaces.cost import count  # noqa: E402
from bignas_jax.text import aligned  # noqa: E402

SHARE = 0.5  # of MAX's multiply-adds, for the search
LARGEST = ("width", "depth", "kernel_size", "expand_ratio")
# Of progressive shrinking's phases: the choices that are at their largest, the learning rate as a share of the full
# network's (0.96, 0.24 and 0.24 of 2.6 in configs/ofa_mbv3_shrinking.py), and slices a step. Its two short phases,
# which open the values one by one, are left out.
PHASES = {"p0_full": (LARGEST, 1.0, 1), "p1_kernel": (("width", "depth", "expand_ratio"), 0.37, 1),
          "p2_depth": (("width", "expand_ratio"), 0.09, 2), "": ((), 0.09, 4)}  # fmt: skip


def shrinking(options: Options) -> dict[str, Any]:
    """The fields of progressive shrinking in as many epochs as the recipe has, a quarter for each phase.

    Raises:
      ConfigError: the epochs are no multiple of four.
    """
    if options.epochs % len(PHASES):
        raise ConfigError(f"--epochs: found {options.epochs}, expected a multiple of {len(PHASES)}, one for each phase")
    epochs = options.epochs // len(PHASES)
    phases = {}
    for name, (largest, share, slices) in PHASES.items():
        optimizer = {"learning_rate": share * options.optimizer.learning_rate,
                     "warmup_epochs": min(options.optimizer.warmup_epochs, 0.5 * epochs)}  # fmt: skip
        phases[name] = {"largest": dict.fromkeys(largest, 1), "epochs": epochs, "optimizer": optimizer,
                        "sandwich": {"num_random": slices}}  # fmt: skip
    last = phases.pop("")
    return {
        "phases": phases, "epochs": epochs, "evaluation.every_epochs": float(epochs), "teacher.source": "phase:p0_full",
        "sandwich.members": "slices", "sandwich.num_random": last["sandwich"]["num_random"],
        "sandwich.loss": "soft_cross_entropy",
    } | {f"optimizer.{name}": value for name, value in last["optimizer"].items()}  # fmt: skip


# What differs from the recipe by the name of a way to train.
WAYS: dict[str, Callable[[Options], dict[str, Any]]] = {
    "sandwich": lambda options: {},
    "bignas_loss": lambda options: {"sandwich.loss": "soft_cross_entropy"} | EQUAL,
    "alpha_divergence": lambda options: {"sandwich.loss": "alpha_divergence"} | EQUAL,
    "best_up": lambda options: {"sandwich.members": "best_up"},
    "shrinking": shrinking,
}


def ways(options: Options, only: Sequence[str] = ()) -> dict[str, Options]:
    """The options of each way to train, all checked.

    Args:
      options: of the recipe.
      only: names of WAYS; none means all that differ.
    Raises:
      ConfigError: there is no such way, its fields cannot work, or the recipe is none of a sandwich.
    """
    if options.phases or options.sandwich.members != "sandwich":
        raise ConfigError("--config: found a recipe that trains no sandwich in one phase, expected one that does")
    for name in only:
        if name not in WAYS:
            raise ConfigError(f"--only: found {name!r}, expected some of {', '.join(WAYS)}")
    found = {name: changed(options.to_dict(), WAYS[name](options)) for name in only or WAYS}
    if not only and found["bignas_loss"] == found["sandwich"]:
        found.pop("bignas_loss")
    return found


def trained(options: Options, folder: pathlib.Path) -> tuple[int, float]:
    """The optimizer steps of a training and of its phases, and their minutes without compilation and evaluation."""
    steps, minutes = 0, 0.0
    for name, run in runs_of(options).items():
        part = folder / "phases" / name if name else folder
        last = json.loads((part / "metrics.jsonl").read_text().splitlines()[-1])["step"]
        steps += last
        minutes += last * run.batch_size * seconds_an_image(part) / 60
    return steps, minutes


def figures(options: Options, folder: pathlib.Path, evaluations: int) -> dict[str, Any]:
    """Trains, searches, and gives what the table shows of one way."""
    biggest, smallest = scores(options, folder)
    run = open_run(folder)
    most = count(run.space, run.space.biggest, run.num_classes).macs
    (winner,) = run.search(max_macs=float(math.floor(SHARE * most)), num_evaluations=evaluations)
    steps, minutes = trained(options, folder)
    return {"steps": steps, "minutes": minutes, "MAX": biggest, "MIN": smallest, "winner": 100 * winner.val_top1,
            "macs": winner.macs}  # fmt: skip


def table(found: Mapping[str, Mapping[str, Any]], first: str = "trained by") -> str:
    """The figures of all trainings as text; `first` is the head of their names' column."""
    cells = [(name, str(row["steps"]), f"{row['minutes']:.1f}", f"{row['MAX']:.2f}", f"{row['MIN']:.2f}",
              f"{row['winner']:.2f}", f"{row['macs'] / 1e6:.2f}") for name, row in found.items()]  # fmt: skip
    return aligned((first, "steps", "minutes", "MAX (%)", "MIN (%)", "winner (%)", "its MACs (M)"), cells)


def shown(found: Mapping[str, Mapping[str, Any]]) -> list[Result]:
    """The accuracies of all trainings as results."""
    kinds = {"MAX": "MAX", "MIN": "MIN", f"winner under {SHARE:.0%}": "winner"}
    return [Result(f"{name}: {kind}", row[field], "%", shown=True)
            for name, row in found.items() for kind, field in kinds.items()]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=pathlib.Path, default="exp/relatives")
    parser.add_argument("--config", default="configs/cifar10.py")
    parser.add_argument("--root", help="the images, in place of the recipe's data.root")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--evaluations", type=int, default=100, help="of each search")
    parser.add_argument("--only", help="these ways, by commas; all by default")
    parser.add_argument("--quick", action="store_true", help="two ways, two steps a phase, digits, in WORKDIR/quick")
    parser.add_argument("--json", help="file to write the results to")
    args = parser.parse_args()
    folder = args.workdir / "quick" if args.quick else args.workdir
    base = {"epochs": args.epochs, "evaluation.every_epochs": float(args.epochs), "seed": args.seed}
    base |= {"data.root": args.root} if args.root else {}
    if args.quick:
        base |= {"max_steps": 2, "space.resolution": (6,)}
    only = args.only.split(",") if args.only else ["best_up", "shrinking"] if args.quick else []
    chosen = ways(changed(load_recipe("configs/digits.py" if args.quick else args.config), base), only)
    found = {name: figures(options, folder / f"{name}-{args.epochs}-{args.seed}", args.evaluations)
             for name, options in chosen.items()}  # fmt: skip
    print(table(found))
    results = shown(found)
    for name, row in found.items():
        results.append(Result(f"{name}: minutes of its steps", row["minutes"], "min", better="lower"))
    write("relatives", results, args.quick, args.json)


if __name__ == "__main__":
    sys.exit(scripts.run(sys.argv[0], main))
