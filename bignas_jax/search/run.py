"""A search from a run's folder to its winners: the loop over a strategy, and what is written."""

import contextlib
import dataclasses
import fcntl
import pathlib
import signal
import sys
import time
import zlib
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from bignas_jax.architecture import Architecture
from bignas_jax.buckets import Bucket, use_compilation_cache
from bignas_jax.checkpoint import Checkpoints
from bignas_jax.config import ConfigError
from bignas_jax.reporting import assess
from bignas_jax.search import held_out as images
from bignas_jax.search.coarse_to_fine import CoarseToFine
from bignas_jax.search.evolution import Evolution
from bignas_jax.search.held_out import HeldOut
from bignas_jax.search.journal import Journal
from bignas_jax.search.latency import LatencyTable
from bignas_jax.search.pareto import Pareto
from bignas_jax.search.problem import Problem, budgets_of, capped
from bignas_jax.search.race import Evaluation, Race
from bignas_jax.search.random_search import RandomSearch
from bignas_jax.search.result import result_of, write
from bignas_jax.search.screening import Screening
from bignas_jax.search.strategy import Proposal, Strategy
from bignas_jax.session import Session
from bignas_jax.training import Signals, Stopped

PREPARED = 100  # random architectures whose blocks are timed before a search under a latency
LEAST_GENERATION = 8
IDLE_ROUNDS = 20  # rounds of known architectures after which a space counts as exhausted


class SearchStopped(Stopped):
    """A signal ended the search; what it had scored is in its journal."""

    def __init__(self, signum: int, evaluations: int):
        Exception.__init__(self, f"{signal.Signals(signum).name} after {evaluations} evaluations")
        self.signum = signum


def search(config: ConfigDict, workdir: str | pathlib.Path, checkpoint: str = "newest") -> dict[str, Any]:
    """Searches the supernet of a run's folder, and writes the winners and the report into it.

    The course of a search follows from the config and the checkpoint alone. Evaluations are kept in
    search/evaluations.jsonl as they are made; a search that was killed goes through the same course again and finds
    them there.

    Args:
      checkpoint: 'newest', 'best' or a step.
    Returns:
      What search/result.json holds, see `result_of`.
    Raises:
      ValueError: no checkpoint, no held-out images, a budget that nothing fits; one line.
      SearchStopped: on SIGTERM or SIGINT.
    """
    _check(config)
    workdir = pathlib.Path(workdir)
    use_compilation_cache()
    session, weights, step = open_run(config, workdir, checkpoint)
    sizes = images.plan(session)
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(_locked(workdir / "search"))
        signals = stack.enter_context(Signals())
        latency = _latency_table(session, folder)
        problem = make_problem(session, latency)
        journal = Journal(folder / "evaluations.jsonl", identity(session, sizes, weights, step))
        stack.callback(journal.close)
        _say_what_is_there(journal)
        race = Race(
            problem,
            _place_images(session, weights, sizes, problem),
            journal,
            config.search.confidence,
            config.search.strategy == "pareto",
            _clock(journal),
            lambda: _stop_if(signals, len(race.evaluations)),
        )
        screening = Screening(
            problem, config.search.predictor_pool, config.search.predictor_min_tau, config.search.seed
        )
        explore(config, problem, race, screening, session.space.biggest)
        winners = winners_of(problem, race)
        final = _final(session, weights, journal, race, winners, signals)
        result = result_of(session, step, sizes, problem, race, winners, final, screening, latency, journal.seconds)
    result["run"]["workdir"] = str(workdir)
    write(result, workdir)
    return result


def _check(config: ConfigDict) -> None:
    if config.distributed.num_processes > 1:
        raise ConfigError(
            f"config.distributed.num_processes: found {config.distributed.num_processes}, expected 1: a search runs on "
            "one host, on all of its devices"
        )
    if not config.data.holdout:
        raise ConfigError(
            "config.data.holdout: found 0, expected some: architectures are chosen on images held out of the training "
            "set, never on the validation split; train with images held out"
        )


def open_run(config: ConfigDict, workdir: pathlib.Path, checkpoint: str) -> tuple[Session, Any, int]:
    """The session of a run, its weights on the devices, and the checkpoint's step.

    Raises:
      ValueError: there is no such checkpoint or it does not fit, or there are too few images; one line.
    """
    checkpoints = Checkpoints(workdir, read_only=True)
    try:
        step = checkpoints.find(checkpoint)
        session = Session.open(config)
        session.check_evaluation("holdout", "val")
        weights, step = checkpoints.weights(session.shapes, session.mesh, step)
    finally:
        checkpoints.close()
    return session, weights, step


@contextlib.contextmanager
def _locked(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """The folder, for one search at a time."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ConfigError(f"{folder}: another search is at work in it; wait for its end, or stop it") from error
        yield folder


def make_problem(session: Session, latency: LatencyTable | None = None) -> Problem:
    """What the config asks to be searched.

    Raises:
      ConfigError: a budget is below what the smallest architecture costs, or no resolution is below the cap.
    """
    config = session.config.search
    space = capped(session.space, config.max_resolution)
    arguments = dict(
        num_classes=session.config.model.num_classes, latency=None if latency is None else latency.estimate
    )
    costs = Problem(space, budgets=(), **arguments).costs
    budgets = budgets_of(config, costs(space.biggest), costs(space.smallest))
    if latency is not None:
        # Most blocks of the space at once: their programs compile side by side.
        rng = np.random.default_rng(0)
        latency.prepare([space.biggest, space.smallest, *(space.sample(rng) for _ in range(PREPARED))])
    named = any((config.max_macs, config.max_params, config.max_latency_ms))
    return Problem(space, budgets=budgets, cost=config.cost, bounded=bool(named), **arguments)


def _latency_table(session: Session, folder: pathlib.Path) -> LatencyTable | None:
    """Measured where a budget or the front asks for it: it takes compiles."""
    config = session.config
    if config.search.cost != "latency_ms" and not config.search.max_latency_ms:
        return None
    return LatencyTable(
        session.space,
        config.model.num_classes,
        config.model.dtype,
        config.search.latency_batch_size,
        folder / "latency.jsonl",
    )


def identity(session: Session, sizes: images.Sizes, weights: Any, step: int) -> dict[str, Any]:
    """What an evaluation depends on: the weights, the images and how they are used."""
    config = session.config
    data = {name: value for name, value in config.data.to_dict().items() if name not in ("augment", "num_workers")}
    return {
        "version": 1,
        "step": step,
        "weights": _checksum(weights),
        "space": session.space.to_dict(),
        "dtype": config.model.dtype,
        "seed": config.seed,
        "data": data,
        "images": dataclasses.asdict(sizes),
        "final": config.calibration.to_dict(),
    }


def _checksum(weights: Any) -> int:
    total = 0
    for leaf in jax.tree.leaves(weights):
        total = zlib.crc32(np.ascontiguousarray(np.asarray(leaf)).view(np.uint8), total)
    return total


def _place_images(session: Session, weights: Any, sizes: images.Sizes, problem: Problem) -> HeldOut:
    """The images on the devices if they fit, else in the host's memory; and the executables."""
    needed, allowed = images.device_bytes(session, sizes), images.allowed_bytes(session)
    resident = allowed is None or needed <= allowed
    if not resident:
        print(
            f"the {sizes.held_out + sizes.calibration:,} images of the search take {needed / 1e9:.3g} GB a device, of "
            f"which {allowed / 1e9:.3g} GB may be used: they stay in the host's memory and are copied for every "
            "candidate, which is slower (config.search.resident_gb, config.num_devices)",
            file=sys.stderr,
        )
    held_out = HeldOut(session, weights, sizes, resident)
    # MAX and MIN of the whole space are the reference, whatever the resolution cap.
    resolutions = {*problem.space.resolution, session.space.biggest.resolution, session.space.smallest.resolution}
    held_out.compile(sorted(resolutions))
    return held_out


def _say_what_is_there(journal: Journal) -> None:
    if journal.set_aside:
        print(f"the evaluations of another checkpoint or other images are kept as {journal.set_aside}", file=sys.stderr)
    if len(journal):
        print(f"going on with the evaluations in {journal.path}", file=sys.stderr)


def _clock(journal: Journal):
    before, start = journal.seconds, time.monotonic()
    return lambda: before + time.monotonic() - start


def _stop_if(signals: Signals, evaluations: int) -> None:
    if signals.received:
        raise SearchStopped(signals.received, evaluations)


def make_strategy(config: ConfigDict, problem: Problem) -> Strategy:
    """The strategy that `config.search` names."""
    c = config.search
    makers = {
        "coarse_to_fine": lambda: CoarseToFine(problem, c.seed, c.num_evaluations),
        "evolution": lambda: Evolution(problem, c.seed, c.population, c.mutation_probability),
        "pareto": lambda: Pareto(problem, c.seed, round_size(config), c.mutation_probability),
        "random": lambda: RandomSearch(problem, c.seed),
    }
    return makers[c.strategy]()


def explore(
    config: ConfigDict,
    problem: Problem,
    race: Race,
    screening: Screening,
    biggest: Architecture,
    progress: bool = True,
) -> None:
    """Asks the strategy and scores what it asks for, until `config.search.num_evaluations` are made or nothing is left.

    `biggest` (MAX of the whole space) and MIN come first, on top of that number.
    """
    c = config.search
    strategy = make_strategy(config, problem)
    # The space's own MAX is the reference, even where a cap keeps it out of the search.
    extremes = dict.fromkeys((biggest, problem.space.biggest, problem.space.smallest))
    strategy.tell(race.score([Proposal(arch, "extremes") for arch in extremes], always=True))
    start, idle = len(race.evaluations), 0
    with tqdm(total=c.num_evaluations, desc="search", unit="arch", disable=not progress, file=sys.stderr) as bar:
        while (left := c.num_evaluations - (len(race.evaluations) - start)) > 0 and idle < IDLE_ROUNDS:
            count = min(left, round_size(config))
            asked = strategy.ask(count, screening.pool)
            known = [p for p in asked if p.arch in race.evaluations]
            new = screening.select([p for p in asked if p.arch not in race.evaluations], race, count)
            if not asked:
                break
            strategy.tell(race.score([*known, *new]))
            idle = 0 if new else idle + 1
            if c.predictor and new:
                screening.learn({arch: e.top1 for arch, e in race.evaluations.items() if arch in problem.space})
            bar.update(len(race.evaluations) - start - bar.n)
            bar.set_postfix_str(_standing(problem, race))


def round_size(config: ConfigDict) -> int:
    """Architectures that are scored between two answers to the strategy.

    Half a population in evolution. For NSGA-II a generation, small enough that there are eight of them.
    """
    c = config.search
    if c.strategy == "pareto":
        return min(c.population, max(LEAST_GENERATION, c.num_evaluations // 8))
    return max(2, c.population // 2)


def _standing(problem: Problem, race: Race) -> str:
    best = [race.best(budget) for budget in problem.budgets]
    return " ".join("-" if e is None else f"{100 * e.top1:.2f}%" for e in best)


def winners_of(problem: Problem, race: Race) -> dict[str, Evaluation]:
    """The best within each budget, by the budget's name.

    Raises:
      ConfigError: nothing was scored within a budget.
    """
    found = {budget.name: race.best(budget) for budget in problem.budgets}
    for budget in problem.budgets:
        if found[budget.name] is None:
            raise ConfigError(
                f"config.search.num_evaluations: {len(race.evaluations)} evaluations found no architecture within "
                f"{budget.name}: raise it"
            )
    return found


def _final(
    session: Session, weights: Any, journal: Journal, race: Race, winners: dict[str, Evaluation], signals: Signals
) -> dict[Architecture, dict[str, Any]]:
    """Validation figures of the winners, MAX and MIN: each in an executable of its own, as eval.py has it, once."""
    archs = dict.fromkeys([e.arch for e in winners.values()])
    archs |= dict.fromkeys((session.space.biggest, session.space.smallest))
    missing = [arch for arch in archs if journal.find(arch, "val") is None]
    if missing:
        _stop_if(signals, len(race.evaluations))
        placement = {arch: Bucket(arch, masked=False) for arch in missing}
        session.compile_evaluation(placement.values())
        for row in assess(session, weights, placement, "val"):
            values = {name: row[name] for name in ("top1", "top5", "loss", "images")}
            journal.add(Architecture.from_dict(row["architecture"]), "val", **values)
    return {arch: journal.find(arch, "val") for arch in archs}
