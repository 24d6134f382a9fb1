"""Are slices of a supernet as good as the same networks trained alone, and can their ranking be trusted?

    python benchmarks/claim.py --workdir exp/cifar10 [--percent 30,50,70] [--ranked 12] [--ranked-epochs 2]
        [--finetune-epochs 2] [--kinds epochs,seconds,tuned] [--quick] [--json FILE]

For MAX, MIN, and the winner of a search at each share of MAX's multiply-adds: the slice as it is; the same network
trained alone for as many epochs, and for as many seconds, by the supernet's own recipe; the slice fine-tuned at a fifth
of the learning rate. Seconds follow from the images a second that both trainings logged. Then `ranked` random
architectures are trained alone for a few epochs each, all alike, and Kendall's tau says how far their order is that of
their slices. All scores are calibrated children's on the validation images, on which no choice made here depends; the
search sees held-out training images alone. Trainings lie in WORKDIR/claim, in folders that are named by their epochs.
The same command goes on after an interruption, and trains nothing twice; --kinds selects trainings of a network alone,
the dearest of which is the one for as many seconds.
"""

import argparse
import collections
import dataclasses
import json
import math
import pathlib
import sys
from collections.abc import Sequence

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from bignas_jax.programs import memory

memory.keep_freed_memory()

import jax  # noqa: E402
import matplotlib  # noqa: E402
import numpy as np  # noqa: E402
from report import Result, write  # noqa: E402
from scipy.stats import kendalltau  # noqa: E402
from trainings import train_once  # noqa: E402

from bignas_jax.api import Run, open_run  # noqa: E402
from bignas_jax.cli import scripts  # noqa: E402
from bignas_jax.config.options import Distributed, Options  # noqa: E402
from bignas_jax.errors import ConfigError  # noqa: E402
from bignas_jax.files import read_json  # noqa: E402
from bignas_jax.runs.assess import evaluate_run  # noqa: E402
from bignas_jax.runs.folder import steps, supernet_options  # noqa: E402
from bignas_jax.runs.identity import DATA  # noqa: E402
from bignas_jax.spaces.architecture import Architecture  # noqa: E402
from bignas_jax.text import aligned  # noqa: E402
from bignas_jax.training.plan import Plan  # noqa: E402

matplotlib.use("Agg")
RESAMPLES = 10_000
LEAST = 3  # pairs that an interval can be resampled from
FINETUNING = 0.2  # of the learning rate from scratch
WARM_UP = 0.25  # of a training's epochs at most
# The columns of the table, and the folder of each kind of training.
SLICE, EPOCHS, SECONDS, TUNED = "slice", "alone, equal epochs", "alone, equal seconds", "slice, fine-tuned"
FOLDERS = {EPOCHS: "epochs", SECONDS: "seconds", TUNED: "tuned"}


class Claim:
    """The trainings beside one supernet.

    Args:
      workdir: the folder of the supernet's run.
    Raises:
      ConfigError: it is not the run of a supernet that was trained for all of its config's epochs, in one phase.
    """

    def __init__(self, workdir: pathlib.Path):
        found = supernet_options(str(workdir))
        self.workdir, self.options = workdir, dataclasses.replace(found, distributed=Distributed())
        check_whole(workdir, found)

    def alone(self, arch: Architecture, folder: str, epochs: int, tuned: bool = False) -> tuple[float, int]:
        """The top-1 of a network that is trained by itself, and the number of images that it was scored on.

        Args:
          arch: the network.
          folder: its run's, below `claim`, without the epochs and the supernet's step.
          epochs: of the training.
          tuned: whether it starts as its slice, at a lower learning rate.
        """
        values = self.options.to_dict() | {
            "arch": json.dumps(arch.to_dict()), "init_from": str(self.workdir), "epochs": epochs, "max_steps": 0,
            "init_checkpoint": str(steps(self.workdir)[-1]) if tuned else "none", "phases": {},
        }  # fmt: skip
        values["evaluation"]["every_epochs"] = float(epochs)
        values["log"]["wandb"] = values["log"]["mlflow"] = values["teacher"]["source"] = ""
        optimizer = values["optimizer"]
        optimizer["warmup_epochs"] = min(optimizer["warmup_epochs"], epochs * WARM_UP)
        optimizer["learning_rate"] *= FINETUNING if tuned else 1
        if tuned:  # a supernet that goes on has other slices
            folder = f"{folder}-from-{values['init_checkpoint']}"
        print(f"{folder}: {epochs} epochs", flush=True)
        rows = train_once(Options.of(values), self._folder(folder, epochs))
        jax.clear_caches()  # no other network runs the same programs
        (row,) = (row for row in rows if row["name"] == "CHILD")
        return row["top1"], row["images"]

    def _folder(self, name: str, epochs: int) -> pathlib.Path:
        return self.workdir / "claim" / f"{name}-{epochs}"

    def epochs_in_its_seconds(self, folder: str) -> int:
        """How many epochs the network that `folder` has for equal epochs can be trained in the supernet's time."""
        pace = seconds_an_image(self.workdir) / seconds_an_image(self._folder(folder, self.options.epochs))
        return max(1, round(self.options.epochs * pace))

    def slices(self, archs: Sequence[Architecture]) -> list[dict]:
        """The rows of the supernet's slices."""
        given = [json.dumps(arch.to_dict()) for arch in archs]
        return evaluate_run(self.options, self.workdir, given, "val", "newest")[0]


def check_whole(workdir: pathlib.Path, options: Options) -> None:
    """Refuses a run that no network alone is trained as long as.

    Raises:
      ConfigError: it is of a single child, began with other weights, has phases or a `max_steps`, or is not at its end.
    """
    for field in ("arch", "init_from", "phases", "max_steps"):
        if getattr(options, field):
            raise ConfigError(
                f"{workdir}: found a run with config.{field}, expected a supernet that was trained for all of its "
                "config.epochs in one phase, as the networks alone are"
            )
    made = steps(workdir)
    if not made or not made[-1]:
        raise ConfigError(f"{workdir}: found no trained weights, expected a finished run of train.py")
    try:
        images = read_json(workdir / DATA)["train"]["images"]
    except FileNotFoundError:  # of a run from before there was such a file
        return
    stop = Plan.of(options, (images - options.data.holdout) // options.batch_size).stop
    if made[-1] < stop:
        raise ConfigError(f"{workdir}: found {made[-1]} of {stop} steps, expected a finished run: train.py goes on")


def seconds_an_image(workdir: pathlib.Path) -> float:
    """From a run's log by its medians, which leave out compilation and what other work held up now and then.

    Steps of other members, such as those before the students train, have a median of their own.
    """
    rates = collections.defaultdict(list)
    for row in map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines()):
        if row.get("images_per_second"):
            rates[sum(name.startswith("loss/") for name in row)].append(row["images_per_second"])
    if not rates:
        raise SystemExit(f"{workdir / 'metrics.jsonl'}: found no images_per_second, expected the log of a training")
    return sum(len(alike) / float(np.median(alike)) for alike in rates.values()) / sum(map(len, rates.values()))


def error(top1: float, images: int) -> float:
    """The standard error of a fraction that is measured on so many images."""
    return math.sqrt(top1 * (1 - top1) / images)


def tau(first: Sequence[float], second: Sequence[float]) -> tuple[float, float, float]:
    """Kendall's tau, and the ends of its 95% interval by resampling the pairs (percentile bootstrap, seed 0)."""
    first, second = np.asarray(first), np.asarray(second)
    rng = np.random.default_rng(0)
    drawn = rng.integers(0, len(first), (RESAMPLES, len(first)))
    values = [kendalltau(first[rows], second[rows]).statistic for rows in drawn if len(set(rows)) >= LEAST]
    low, high = np.nanpercentile(values, [2.5, 97.5])
    return float(kendalltau(first, second).statistic), float(low), float(high)


def subjects(run: Run, percents: Sequence[int]) -> dict[str, Architecture]:
    """MAX, MIN, and the searched child at each share of MAX's multiply-adds."""
    biggest = run.child("max").macs
    limits = tuple(float(biggest * percent // 100) for percent in percents)
    found = {"MAX": run.space.biggest, "MIN": run.space.smallest}
    winners = zip(percents, run.search(max_macs=limits), strict=True)
    return found | {f"macs-{percent}pct": winner.arch for percent, winner in winners}


def compare(claim: Claim, archs: dict[str, Architecture], finetune_epochs: int, kinds: Sequence[str]) -> list[dict]:
    """A row of figures for each network.

    Args:
      claim: the trainings.
      archs: the networks by name.
      finetune_epochs: of a slice.
      kinds: keys of FOLDERS, the trainings to make.
    """
    rows = []
    for (name, arch), row in zip(archs.items(), claim.slices(list(archs.values())), strict=True):
        figures = {SLICE: (row["top1"], row["images"])}
        for kind in kinds:
            epochs = claim.options.epochs if kind == EPOCHS else finetune_epochs
            if kind == SECONDS:
                epochs = row["epochs"] = claim.epochs_in_its_seconds(f"{name}/{FOLDERS[EPOCHS]}")
            figures[kind] = claim.alone(arch, f"{name}/{FOLDERS[kind]}", epochs, tuned=kind == TUNED)
        rows.append({"name": name, "macs": row["macs"], "epochs": row.get("epochs"), "figures": figures})
    return rows


def selected(text: str) -> list[str]:
    """The kinds of --kinds, in the order of FOLDERS.

    Raises:
      ConfigError: there is no such kind, or nothing to compare with.
    """
    names = text.split(",")
    for name in names:
        if name not in FOLDERS.values():
            raise ConfigError(f"--kinds: found {name!r}, expected some of {', '.join(FOLDERS.values())}")
    if FOLDERS[EPOCHS] not in names:
        raise ConfigError(f"--kinds: found {text!r}, expected {FOLDERS[EPOCHS]!r} among them, for the comparison")
    return [kind for kind, name in FOLDERS.items() if name in names]


def shares(text: str) -> list[int]:
    """The shares of --percent.

    Raises:
      ConfigError: one is no whole number from 1 to 99.
    """
    for share in text.split(","):
        if not (share.isdecimal() and 1 <= int(share) <= 99):
            raise ConfigError(f"--percent: found {share!r}, expected whole numbers from 1 to 99, such as 30,50,70")
    return list(dict.fromkeys(map(int, text.split(","))))


def ranking(claim: Claim, run: Run, count: int, epochs: int) -> list[tuple[float, float]]:
    """The top-1 of random architectures: of their slices, and of the networks alone."""
    if not count:
        return []
    archs = list(dict.fromkeys(run.sample(seed) for seed in range(4 * count)))[:count]
    rows = claim.slices(archs)
    return [(row["top1"], claim.alone(arch, f"ranked/{n}", epochs)[0])
            for n, (arch, row) in enumerate(zip(archs, rows, strict=True))]  # fmt: skip


def no_worse(row: dict) -> bool:
    """Whether a slice is above the network trained as long alone, or below it by a standard error at most."""
    ours, theirs = row["figures"][SLICE], row["figures"][EPOCHS]
    return ours[0] - theirs[0] >= -math.hypot(error(*ours), error(*theirs))


def picture(rows: Sequence[dict], path: pathlib.Path) -> None:
    """Top-1 over multiply-adds: the slices as a line, networks trained alone as points."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6.4, 4.2), layout="constrained")
    rows = sorted(rows, key=lambda row: row["macs"])
    for kind, mark in ((SLICE, "o-"), (EPOCHS, "s"), (SECONDS, "^"), (TUNED, "x")):
        if kind not in rows[0]["figures"]:
            continue
        values = [row["figures"][kind] for row in rows]
        axes.errorbar([row["macs"] / 1e6 for row in rows], [100 * top1 for top1, _ in values],
                      [100 * error(*value) for value in values], fmt=mark, label=kind, capsize=2)  # fmt: skip
    axes.set(xlabel="multiply-adds (M)", ylabel="top-1 on the validation images (%)")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=pathlib.Path, default="exp/cifar10", help="of a finished supernet's run")
    parser.add_argument("--percent", default="30,50,70", help="shares of MAX's multiply-adds to search children for")
    parser.add_argument("--ranked", type=int, default=12, help="random architectures whose order is compared; 0: none")
    parser.add_argument("--ranked-epochs", type=int, default=2, help="epochs of each of them alone")
    parser.add_argument("--finetune-epochs", type=int, default=2)
    parser.add_argument("--kinds", default=",".join(FOLDERS.values()), help="trainings of a network alone, by commas")
    parser.add_argument("--quick", action="store_true", help="one child, three ranked architectures")
    parser.add_argument("--json", help="file to write the results to")
    args = parser.parse_args()
    percents, kinds = [50] if args.quick else shares(args.percent), selected(args.kinds)
    for name in ("ranked_epochs", "finetune_epochs"):
        if getattr(args, name) < 1:
            raise ConfigError(f"--{name.replace('_', '-')}: found {getattr(args, name)}, expected at least 1")
    if args.ranked < LEAST and args.ranked:
        raise ConfigError(f"--ranked: found {args.ranked}, expected at least {LEAST}, for an interval, or 0")
    claim, run = Claim(args.workdir), open_run(args.workdir)
    rows = compare(claim, subjects(run, percents), args.finetune_epochs, kinds)
    pairs = ranking(claim, run, LEAST if args.quick else args.ranked, args.ranked_epochs)
    cells = [(row["name"], f"{row['macs'] / 1e6:.2f}", *(f"{100 * top1:.2f} ± {100 * error(top1, images):.2f}"
              for top1, images in row["figures"].values()), str(row["epochs"] or "")) for row in rows]  # fmt: skip
    print(aligned(("network", "MACs (M)", SLICE, *kinds, "epochs in its seconds"), cells))
    picture(rows, args.workdir / "claim" / "claim.png")
    results = [Result(f"{row['name']}: {kind}", 100 * top1, "%", shown=True) for row in rows
               for kind, (top1, _) in row["figures"].items()]  # fmt: skip
    good = sum(map(no_worse, rows))
    results.append(Result(f"slices no worse than alone at equal epochs, of {len(rows)}", good, "", len(rows) - 1))
    if pairs:
        value, low, high = tau(*zip(*pairs, strict=True))
        results.append(Result(f"Kendall's tau of {len(pairs)} architectures", value, "", 0.8))
        for end, limit in (("from", low), ("to", high)):
            results.append(Result(f"its 95% interval {end}", limit, "", shown=True))
    write("claim", results, args.quick, args.json)


if __name__ == "__main__":
    sys.exit(scripts.run(sys.argv[0], main))
