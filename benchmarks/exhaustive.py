"""How near each search strategy comes to the true best, on a space small enough to score every architecture.

    python benchmarks/exhaustive.py [--quick] [--workdir DIR]

It trains a supernet on handwritten digits and scores all of its 384 architectures on the held-out images. Then each
strategy searches with 15% as many evaluations, with several seeds and three budgets. Regret is the held-out accuracy of
the best architecture within the budget minus the winner's. It takes minutes on 2 CPU cores; `--quick` takes one seed.
"""

import argparse
import dataclasses
import pathlib
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from bignas_jax.programs import memory

memory.keep_freed_memory()

import numpy as np  # noqa: E402
from ml_collections import ConfigDict  # noqa: E402
from tqdm import tqdm  # noqa: E402
from trainings import train_once  # noqa: E402

from bignas_jax.config.fields import canonical, validate  # noqa: E402
from bignas_jax.config.options import Options, Search, Strategies  # noqa: E402
from bignas_jax.programs.kept import use_compilation_cache  # noqa: E402
from bignas_jax.search import held_out as images  # noqa: E402
from bignas_jax.search import run  # noqa: E402
from bignas_jax.search.held_out import HeldOut, Part  # noqa: E402
from bignas_jax.search.journal import Journal  # noqa: E402
from bignas_jax.search.problem import make_problem  # noqa: E402
from bignas_jax.search.race import Race  # noqa: E402
from bignas_jax.search.screening import Screening  # noqa: E402
from bignas_jax.search.strategies.registry import make_strategy  # noqa: E402
from configs import digits  # noqa: E402

SHARE = 0.15  # the share of all architectures that a search may score, with MAX and MIN


def get_config() -> ConfigDict:
    """Digits at low resolutions and few epochs, so that architectures differ."""
    config = digits.get_config()
    stages = dict(
        mb1=dict(width=(8, 16), depth=(1,), kernel_size=(3,), expand_ratio=(1,), stride=1, se=False),
        mb2=dict(width=(8, 16), depth=(1, 2), kernel_size=(3, 5), expand_ratio=(2, 3), stride=2, se=True),
        mb3=dict(width=(16, 24), depth=(1, 2), kernel_size=(3,), expand_ratio=(3,), stride=2, se=True),
    )
    config.space = ConfigDict(dict(
        resolution=(6, 8, 12), stem_width=(8,), stem_stride=1, head_width=(64,), v3_head=False, activation="swish",
        stages=stages,
    ))
    config.epochs = 12
    config.data.holdout = 400
    config.evaluation.every_epochs = 12.0
    config.search.calibration_images = 512
    config = canonical(config)
    validate(config)
    return config.lock()


class Recorded:
    """Replaces `HeldOut`: it gives the outcomes of architectures that were all scored before."""

    def __init__(self, sizes: images.Sizes, rows: dict):
        self.sizes, self.rows = sizes, rows

    def calibrate(self, arch):
        """Nothing: the outcomes are recorded."""
        return None

    def outcomes(self, arch, statistics, part: Part) -> np.ndarray:
        """The recorded outcomes on a part of the images."""
        return self.rows[arch][self.sizes.of(part)]


def score_all(session, weights) -> Recorded:
    """Scores all architectures of the space."""
    held_out = HeldOut(session, weights, images.plan(session), resident=True)
    held_out.compile(session.space.resolution)
    rows = {}
    for arch in tqdm(list(session.space.enumerate()), desc="all architectures", file=sys.stderr):
        statistics = held_out.calibrate(arch)
        rows[arch] = np.concatenate([held_out.outcomes(arch, statistics, part) for part in (Part.FIRST, Part.REST)])
    return Recorded(held_out.sizes, rows)


def search_once(options: Search, problem, recorded: Recorded, strategy: Strategies, seed: int, screen: bool) -> Race:
    """One search on the recorded outcomes."""
    evaluations = int(SHARE * problem.space.size) - 2
    options = dataclasses.replace(
        options, strategy=strategy.value, seed=seed, predictor=screen, num_evaluations=evaluations
    )
    with tempfile.TemporaryDirectory() as folder:
        journal = Journal(pathlib.Path(folder) / "evaluations.jsonl", {})
        searching = make_strategy(options, problem)
        race = Race(problem, recorded, journal, options.confidence, searching.front)
        screening = Screening(problem, options.predictor_pool, options.predictor_min_tau, seed)
        run.explore(options, problem, searching, race, screening, problem.space.biggest, progress=False)
        journal.close()
    return race


def regrets(race: Race, problem, truth: dict) -> list[float]:
    """For each budget, the best accuracy within it minus the winner's. A missing winner counts as accuracy 0."""
    found = []
    for budget in problem.budgets:
        best = max(top1 for arch, top1 in truth.items() if problem.fits(arch, budget))
        winner = race.best(budget)
        found.append(best - (0.0 if winner is None else truth[winner.arch]))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one seed")
    parser.add_argument("--workdir", help="where the supernet is trained, or lies already", default=None)
    arguments = parser.parse_args()
    config = get_config()
    use_compilation_cache()
    with tempfile.TemporaryDirectory() as folder:
        workdir = pathlib.Path(arguments.workdir or folder)
        train_once(Options.of(config), workdir)
        session, weights, _ = run.open_run(Options.of(config), workdir, "newest")
        recorded = score_all(session, weights)
    problem = make_problem(session)
    truth = {arch: float(rows[:, 0].mean()) for arch, rows in recorded.rows.items()}
    values = np.array(list(truth.values()))
    print(
        f"{len(truth)} architectures on {recorded.sizes.held_out} held-out images: top-1 {100 * values.min():.2f}% "
        f"to {100 * values.max():.2f}%, standard deviation {100 * values.std():.2f}%"
    )
    for budget in problem.budgets:
        within = [top1 for arch, top1 in truth.items() if problem.fits(arch, budget)]
        print(f"  {budget.name}: {len(within)} architectures, the best {100 * max(within):.2f}%")
    print(f"{'strategy':30} mean regret %  worst regret %  evaluations of all %  images of all %")
    seeds = range(1 if arguments.quick else 10)
    for strategy in Strategies:
        for screen in (False, True) if strategy != Strategies.RANDOM else (False,):
            races = [search_once(session.options.search, problem, recorded, strategy, seed, screen) for seed in seeds]
            found = 100 * np.array([regrets(race, problem, truth) for race in races])
            share = max(len(race.evaluations) for race in races) / len(truth)
            seen = np.mean([sum(e.images for e in race.evaluations.values()) for race in races])
            name = strategy.value + (" with predictor" if screen else "")
            print(
                f"{name:30} {found.mean():13.3f}  {found.max():14.3f}  {100 * share:20.1f}  "
                f"{100 * seen / (recorded.sizes.held_out * len(truth)):15.1f}"
            )


if __name__ == "__main__":
    main()
