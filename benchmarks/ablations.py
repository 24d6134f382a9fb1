"""What each part of the method is worth: the same training without it, in as many steps, for several seeds.

    python benchmarks/ablations.py --workdir exp/ablations [--config configs/cifar10.py] [--root ROOT]
        [--epochs 3] [--seeds 0,1] [--variant NAME FIELD=VALUE ...] [--quick] [--json FILE]

Without --variant these are the parts that BigNAS adds (Yu et al., 2020, section 3): the sandwich, in-place
distillation, zero gammas at the start, regularising the biggest alone, and the constant ending of an exponential
schedule. For these the recipe gets that schedule, scaled to the epochs, dropout at 0.2, the paper's loss, and students
that count as much as the biggest. 'no sandwich' is four random slices a step in place of the four members. They share
a resolution, and no biggest is among them that could teach or alone be regularised. Variants of your own take the
place of that list, and leave the recipe as it is: `--variant labels sandwich.loss=labels --variant wide
"space.head_width=(256,)"`. 'as it is' always comes first.

MAX and MIN are scored on the validation images, calibrated. The table gives the mean over the seeds, and the difference
to 'as it is' with the standard error of the mean over pairs of the same seed. With few seeds that error is rough: the
last line says how many errors a difference must be to be none by chance in 19 of 20 cases (Student's t). Trainings lie
in WORKDIR/NAME-EPOCHS-SEED, without --variant in WORKDIR/parts. The same command goes on after an interruption, and
trains nothing twice; others than the given ones stay where they are.
"""

import argparse
import ast
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from bignas_jax.programs import memory

memory.keep_freed_memory()

import jax  # noqa: E402
import numpy as np  # noqa: E402
from report import Result, write  # noqa: E402
from scipy import stats  # noqa: E402
from trainings import train_once  # noqa: E402

from bignas_jax.cli import scripts  # noqa: E402
from bignas_jax.config.options import Options  # noqa: E402
from bignas_jax.config.phases import runs_of  # noqa: E402
from bignas_jax.config.recipes import load_recipe  # noqa: E402
from bignas_jax.errors import ConfigError  # noqa: E402
from bignas_jax.text import aligned  # noqa: E402

AS_IT_IS = "as it is"
NAMES = ("MAX", "MIN")
PARTS: dict[str, dict[str, Any]] = {
    "no sandwich": {"sandwich.members": "slices", "sandwich.num_random": 4},
    "no distillation": {"sandwich.loss": "labels"},
    "no zero gammas": {"model.zero_gammas": False},
    "all regularised": {"sandwich.regularised": "all"},
    "no constant ending": {"optimizer.end_factor": 0.0},
}
# As in the papers, where students count as much as the biggest from the first step on.
EQUAL = {"sandwich.student_weight": 1.0, "sandwich.student_start": 0.0, "sandwich.student_ramp": 0.0}
PAPERS_EPOCHS = 360  # of the schedule that is scaled: 0.97 every 2.4 epochs, never below 5% of its start


def papers(epochs: int) -> dict[str, Any]:
    """The schedule and the regularisation whose parts the ablations switch off, for a training of so many epochs.

    Without the sandwich there are no students, so these count as much as the biggest: their weight is no part of it.
    """
    return EQUAL | {
        "sandwich.loss": "soft_cross_entropy",
        "optimizer.schedule": "exponential", "optimizer.decay_rate": 0.97, "optimizer.end_factor": 0.05,
        "optimizer.decay_epochs": 2.4 * epochs / PAPERS_EPOCHS, "optimizer.staircase": False, "model.dropout": 0.2,
    }  # fmt: skip


def changed(config: Mapping[str, Any], changes: Mapping[str, Any]) -> Options:
    """The options of a recipe whose fields have other values.

    Args:
      config: the recipe.
      changes: values by the names of fields, with dots.
    Raises:
      ConfigError: there is no such field, or it may not hold the value.
    """
    values = {"phases": {}} | Options.of(config).to_dict()
    for name, value in changes.items():
        *groups, field = name.split(".")
        inner = values
        for group in groups:
            inner = inner.get(group, {}) if isinstance(inner, dict) else {}
        if not isinstance(inner, dict) or field not in inner:
            raise ConfigError(f"found {name!r}, expected the name of a field, such as sandwich.loss")
        inner[field] = value
    made = Options.of(values)
    runs_of(made)  # which checks its phases
    return made


def given(words: Sequence[str]) -> tuple[str, dict[str, Any]]:
    """A variant as it was given: its name, and the values by field.

    Raises:
      SystemExit: a word is not FIELD=VALUE, or the name is no name of a folder.
    """
    name, *fields = words
    if not name or "/" in name or name == AS_IT_IS:
        raise SystemExit(f"--variant: found the name {name!r}, expected one of a folder, other than {AS_IT_IS!r}")
    found = {}
    for word in fields:
        field, equals, text = word.partition("=")
        if not equals:
            raise SystemExit(f"--variant {name}: found {word!r}, expected FIELD=VALUE")
        try:
            found[field] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            found[field] = text
    return name, found


def seeds_of(text: str) -> list[int]:
    """The seeds of --seeds.

    Raises:
      ConfigError: one is no whole number from 0 on, or stands there twice.
    """
    words = text.split(",")
    if not all(word.isdecimal() for word in words) or len({int(word) for word in words}) < len(words):
        raise ConfigError(f"--seeds: found {text!r}, expected different whole numbers from 0 on, such as 0,1,2")
    return [int(word) for word in words]


def scores(options: Options, folder: pathlib.Path) -> list[float]:
    """Top-1 of NAMES in percent, after a training that goes on where it stopped."""
    print(f"{folder}: seed {options.seed}", flush=True)
    rows = {row["name"]: row for row in train_once(options, folder)}
    jax.clear_caches()
    return [100 * rows[name]["top1"] for name in NAMES]


def differences(found: Mapping[str, np.ndarray]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """For each variant the mean difference to AS_IT_IS, and its standard error over the seeds.

    Args:
      found: for each variant [seeds, names].
    """
    result = {}
    for name, values in found.items():
        pairs = values - found[AS_IT_IS]
        error = pairs.std(0, ddof=1) / np.sqrt(len(pairs)) if len(pairs) > 1 else np.full(pairs.shape[1], np.nan)
        result[name] = pairs.mean(0), error
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=pathlib.Path, default="exp/ablations")
    parser.add_argument("--config", default="configs/cifar10.py")
    parser.add_argument("--root", help="the images, in place of the recipe's data.root")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seeds", default="0,1")
    parser.add_argument("--variant", nargs="+", action="append", metavar="NAME FIELD=VALUE", default=[])
    parser.add_argument("--quick", action="store_true", help="three steps, one seed, on digits, in WORKDIR/quick")
    parser.add_argument("--json", help="file to write the results to")
    args = parser.parse_args()
    folder = args.workdir / "quick" if args.quick else args.workdir
    config = load_recipe("configs/digits.py" if args.quick else args.config)
    base = {"epochs": args.epochs, "evaluation.every_epochs": float(args.epochs)}
    if args.quick:
        base |= {"max_steps": 3, "sandwich.num_random": 0, "space.resolution": (6,)}
    base |= {"data.root": args.root} if args.root else {}
    base |= {} if args.variant else papers(args.epochs)
    variants = {AS_IT_IS: {}} | (dict(map(given, args.variant)) or PARTS)
    if args.quick and not args.variant:
        variants = {name: variants[name] for name in (AS_IT_IS, "no distillation")}
    seeds = [0] if args.quick else seeds_of(args.seeds)
    folder = folder if args.variant else folder / "parts"
    runs = {name: [changed(config, base | changes | {"seed": seed}) for seed in seeds]
            for name, changes in variants.items()}  # fmt: skip
    found = {name: np.array([scores(options, folder / f"{name}-{args.epochs}-{options.seed}".replace(" ", "-"))
                             for options in each]) for name, each in runs.items()}  # fmt: skip
    cells, results = [], []
    for name, (mean, error) in differences(found).items():
        top1 = found[name].mean(0)
        told = ["" if name == AS_IT_IS else f"{m:+.2f} ± {e:.2f}" for m, e in zip(mean, error, strict=True)]
        cells.append((name, *(text for pair in zip((f"{t:.2f}" for t in top1), told, strict=True) for text in pair)))
        results += [Result(f"{which}, {name}", float(value), "%", shown=True)
                    for which, value in zip(NAMES, top1, strict=True)]  # fmt: skip
    print(aligned(("variant", "MAX (%)", "difference", "MIN (%)", "difference"), cells))
    if len(seeds) > 1:
        print(f"With {len(seeds)} seeds: clear from {stats.t.ppf(0.975, len(seeds) - 1):.1f} standard errors on")
    write("ablations", results, args.quick, args.json)


if __name__ == "__main__":
    sys.exit(scripts.run(sys.argv[0], main))
