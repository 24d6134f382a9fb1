"""A search from a run's folder to its winners: the loop over a strategy, and the files that it writes."""

import contextlib
import dataclasses
import pathlib
import sys
import zlib
from collections.abc import Callable, Collection
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from bignas_jax.config.choices import Costs
from bignas_jax.config.options import Options, Search
from bignas_jax.data.fingerprint import fingerprint
from bignas_jax.errors import ConfigError, Stopped
from bignas_jax.programs.kept import use_compilation_cache
from bignas_jax.programs.processes import gather, own_index, together
from bignas_jax.runs.agree import check_images, check_options, check_same
from bignas_jax.runs.checkpoint import Checkpoints
from bignas_jax.runs.hold import held
from bignas_jax.runs.identity import Use, check_run
from bignas_jax.runs.session import Session
from bignas_jax.runs.signals import Signals
from bignas_jax.search import held_out as images
from bignas_jax.search.device_table import DeviceTable
from bignas_jax.search.held_out import HeldOut
from bignas_jax.search.journal import Journal
from bignas_jax.search.latency import LatencyTable
from bignas_jax.search.problem import Problem, allowed, make_problem
from bignas_jax.search.race import Race, Scored
from bignas_jax.search.report.result import Found, result_of, write
from bignas_jax.search.screening import Screening
from bignas_jax.search.strategies.registry import make_strategy, round_size, strategy_maker
from bignas_jax.search.strategies.strategy import Proposal, Strategy
from bignas_jax.search.team import Team
from bignas_jax.spaces.architecture import Architecture

IDLE_ROUNDS = 20  # rounds of known architectures after which a space counts as exhausted


@together
def search(options: Options, workdir: str | pathlib.Path, checkpoint: str = "newest") -> dict[str, Any]:
    """Searches the supernet of a run's folder, and writes the winners and the report into it.

    The course of a search depends on the options and the checkpoint alone. Each evaluation is saved in
    search/evaluations.jsonl as it is made. A search that was killed takes the same course again and finds its
    evaluations there. Of several processes, the first one searches and writes, see `Team`; the course is that of one
    process with as many devices.

    Args:
      options: of the run, as `flags.parse` returns them.
      workdir: the run's folder.
      checkpoint: 'newest', 'best' or a step.
    Returns:
      The content of search/result.json, see `result_of`.
    Raises:
      ValueError: there is no checkpoint, there are no held-out images, or nothing fits a budget; one line.
      Stopped: SIGTERM or SIGINT arrived.
    """
    _check(options)
    workdir = pathlib.Path(workdir)
    use_compilation_cache()
    check_options(options)
    session, weights, step = open_run(options, workdir, checkpoint)
    check_images(fingerprint(session.dataset))
    check_same("--checkpoint", step)
    sizes = images.plan(session)
    with held(workdir / "search", "search") as folder:
        if own_index():
            return _team(session, weights, step, sizes)[0].follow()
        return _searched(session, weights, step, sizes, folder)


def _searched(session: Session, weights: Any, step: int, sizes: images.Sizes, folder: pathlib.Path) -> dict[str, Any]:
    """The search itself, on the first process. Returns the result, which is written."""
    options = session.options.search
    with contextlib.ExitStack() as stack:
        signals = stack.enter_context(Signals())
        scored: Collection = ()

        def tick() -> None:
            if signals.received:
                raise Stopped(signals.received, f"after {len(scored)} evaluations")

        latency = _latency_table(session, folder)
        problem = make_problem(session, latency, tick)
        print(*allowed(problem, session.space.biggest), sep="\n", file=sys.stderr)
        team, own_identity = _team(session, weights, step, sizes, problem)
        journal = Journal(folder / "evaluations.jsonl", own_identity)
        stack.callback(journal.close)
        _say_what_is_there(journal)
        strategy = make_strategy(options, problem)
        race = Race(problem, team, journal, options.confidence, strategy.front, tick, team.begin_round)
        scored = race.evaluations
        screening = Screening(
            problem, options.predictor_pool, options.predictor_min_tau, options.seed
        )
        explore(options, problem, strategy, race, screening, session.space.biggest)
        found = Found(race, winners_of(problem, race), screening, latency)
        final = _final(session, team, journal, found, tick)
        result = result_of(session, str(folder.parent), step, team.sizes, problem, found, final)
    write(result, folder.parent)
    team.dismiss(result)
    return result


def _team(
    session: Session, weights: Any, step: int, sizes: images.Sizes, problem: Problem | None = None
) -> tuple[Team, dict[str, Any]]:
    """The team, ready to evaluate, and the identity of its evaluations. The first process has the problem.

    Raises:
      ConfigError: the processes have other weights or other images.
    """
    resolutions: set[int] = set()
    if problem is not None:
        # MAX and MIN of the whole space are the reference, even if a cap leaves out their resolutions.
        space = session.space
        resolutions = {*problem.space.resolutions, space.biggest.resolution, space.smallest.resolution}
    resolutions = gather(sorted(resolutions))[0]  # the others wait here while the first one measures latencies
    held_out = _place_images(session, weights, sizes)
    found = identity(session, held_out, weights, step)
    for name in ("weights", "images", "pixels"):
        check_same(f"the {name} of the search", found[name])
    held_out.compile(resolutions, progress=own_index() == 0)
    return Team(session, weights, held_out), found


def _check(options: Options) -> None:
    strategy_maker(options.search.strategy)
    if not options.data.holdout:
        raise ConfigError(
            "config.data.holdout: found 0, expected some: architectures are chosen on images held out of the training "
            "set, never on the validation split; train with images held out"
        )


def open_run(options: Options, workdir: pathlib.Path, checkpoint: str) -> tuple[Session, Any, int]:
    """The session of a run, its weights on the devices, and the checkpoint's step.

    Raises:
      ValueError: there is no such checkpoint, the run was trained with another config, or there are too few images; one
        line.
    """
    checkpoints = Checkpoints(workdir, read_only=True, on_damage=options.checkpoint.on_damage)
    try:
        check_run(options, workdir, Use.SEARCH)
        checkpoints.find(checkpoint)  # refused before the images are looked at
        session = Session.open(options, run=workdir, use=Use.SEARCH, rounded=options.search.quantized)
        session.check_evaluation("holdout", "val")
        weights, step = checkpoints.weights(session.shapes, session.mesh, checkpoint)
    finally:
        checkpoints.close()
    return session, weights, step


def _latency_table(session: Session, folder: pathlib.Path) -> LatencyTable | DeviceTable | None:
    """The table of latencies: that of another device, if the options name one, or of this one.

    None if neither a budget nor the front needs what would be measured here: that takes compiles.
    """
    options = session.options
    if options.search.latency_table:
        return DeviceTable(
            session.space,
            options.model.num_classes,
            options.search.latency_batch_size,
            options.search.latency_table,
        )
    if not options.search.uses(Costs.LATENCY_MS):
        return None
    return LatencyTable(
        session.space,
        options.model.num_classes,
        options.model.dtype,
        options.search.latency_batch_size,
        folder / "latency.jsonl",
    )


def identity(session: Session, held_out: HeldOut, weights: Any, step: int) -> dict[str, Any]:
    """Everything that an evaluation depends on: the weights, the images and how they are used.

    The number of devices is left out, because results do not depend on it, and so is the preview: its records are of no
    use to a search whose previews take another number of images.
    """
    options = session.options
    data = _without(options.data.to_dict(), "augment", "num_workers", "max_pixels", "root")
    return {
        "version": 1,
        "step": step,
        "weights": _checksum(weights),
        "space": session.space.to_dict(),
        "dtype": options.model.dtype,
        "seed": options.seed,
        "data": data,
        "images": _without(dataclasses.asdict(held_out.sizes), "batch", "preview"),
        "pixels": held_out.checksum,
        "val": fingerprint(session.dataset)["val"],
        "final": options.calibration.to_dict(),
    } | ({"quantized": True} if options.search.quantized else {})


def _without(values: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in names}


def _checksum(weights: Any) -> int:
    total = 0
    for leaf in jax.tree.leaves(weights):
        total = zlib.crc32(np.ascontiguousarray(np.asarray(leaf)).view(np.uint8), total)
    return total


def _place_images(session: Session, weights: Any, sizes: images.Sizes) -> HeldOut:
    """The images and the evaluator. The images are on the devices if they fit, or in the host's memory."""
    needed, allowed = images.device_bytes(session, sizes), images.allowed_bytes(session)
    held_out = None
    if all(gather(allowed is None or needed <= allowed)):
        try:
            held_out = HeldOut(session, weights, sizes, resident=True)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
        if not all(gather(held_out is not None)):
            held_out = None
    if held_out is None:
        least = "" if allowed is None else f", of which {allowed / 1e9:.3g} GB may be used"
        number = sizes.held_out + sizes.calibration
        _say(
            f"the {number:,} images of the search take {needed / 1e9:.3g} GB a device{least}: they stay "
            "in the host's memory and are copied for every candidate, which is slower "
            "(config.search.resident_gb, config.num_devices)"
        )
        held_out = HeldOut(session, weights, sizes, resident=False)
    if held_out.skipped:
        _say(f"holdout: left out {held_out.skipped} corrupt images of {sizes.held_out}")
    return held_out


def _say(text: str) -> None:
    """A line for the user, from the first process."""
    if own_index() == 0:
        print(text, file=sys.stderr)


def _say_what_is_there(journal: Journal) -> None:
    if journal.set_aside:
        changed = ", ".join(journal.differences)
        print(f"evaluations that differ in {changed} are kept as {journal.set_aside}", file=sys.stderr)
    if len(journal):
        print(f"going on with the evaluations in {journal.path}", file=sys.stderr)


def explore(
    options: Search,
    problem: Problem,
    strategy: Strategy,
    race: Race,
    screening: Screening,
    biggest: Architecture,
    progress: bool = True,
) -> None:
    """Scores the architectures that the strategy asks for, until `num_evaluations` are made or nothing is new.

    `biggest` and the two extremes of the space that is searched come first. They do not count in that number.

    Args:
      options: the options of the search.
      problem: the space, its costs and the budgets.
      strategy: the strategy that proposes architectures.
      race: scores them and keeps the evaluations.
      screening: chooses the proposals that are scored.
      biggest: MAX of the whole space.
      progress: whether to show a bar.
    """
    # MAX of the whole space is the reference, even if a cap keeps it out of the search.
    extremes = dict.fromkeys((biggest, problem.space.biggest, problem.space.smallest))
    strategy.tell(race.score([Proposal(arch, "extremes") for arch in extremes], always=True))
    start, idle = len(race.evaluations), 0
    with tqdm(total=options.num_evaluations, desc="search", unit="arch", disable=not progress, file=sys.stderr) as bar:
        while (left := options.num_evaluations - (len(race.evaluations) - start)) > 0 and idle < IDLE_ROUNDS:
            count = min(left, round_size(options))
            asked = strategy.ask(count, screening.pool)
            known = [p for p in asked if p.arch in race.evaluations]
            new = screening.select([p for p in asked if p.arch not in race.evaluations], race, count)[:left]
            strategy.tell(race.score([*known, *new]))
            idle = 0 if new else idle + 1
            if options.predictor and new and left > len(new):
                screening.learn({arch: e.top1 for arch, e in race.evaluations.items() if arch in problem.space})
            bar.update(len(race.evaluations) - start - bar.n)
            bar.set_postfix_str(_standing(problem, race, screening))
    if left > 0 and progress:
        made = options.num_evaluations - left
        print(f"nothing new to try after {made} of {options.num_evaluations} evaluations", file=sys.stderr)


def _standing(problem: Problem, race: Race, screening: Screening) -> str:
    best = [race.best(budget) for budget in problem.budgets]
    tau = [f"tau {screening.history[-1]['tau']:.2f}"] if screening.history else []
    return " ".join(["-" if e is None else f"{100 * e.top1:.2f}%" for e in best] + tau)


def winners_of(problem: Problem, race: Race) -> dict[str, Scored]:
    """The best evaluation within each budget, by the budget's name.

    Raises:
      ConfigError: no architecture was scored within a budget.
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
    session: Session, team: Team, journal: Journal, found: Found, tick: Callable[[], None]
) -> dict[Architecture, dict[str, Any]]:
    """Validation figures of the winners, MAX and MIN. Each is scored once, in an executable of its own, as in eval.py.

    Their latencies are measured, too, if the search has a table of latencies.
    """
    archs = dict.fromkeys([e.arch for e in found.winners.values()])
    archs |= dict.fromkeys((session.space.biggest, session.space.smallest))
    missing = [arch for arch in archs if journal.find(arch, "val") is None]
    if missing:
        tick()
        for row in team.validate(missing):
            values = {name: row[name] for name in ("top1", "top5", "images")}
            journal.add(Architecture.from_dict(row["architecture"]), "val", **values)
    measured = {arch: None if found.latency is None else found.latency.measure(arch) for arch in archs}
    return {arch: {**journal.find(arch, "val"), "measured_ms": measured[arch]} for arch in archs}
