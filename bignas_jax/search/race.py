"""Progressive scoring: all candidates on the first part of the held-out images, likely winners on the rest, too.

All architectures see the same images, so that their accuracies are compared image by image. The difference of two
paired samples has a much smaller variance than the difference of two independent samples. This is a racing procedure,
after Maron and Moore (1994), with the paired differences of Moore and Lee (1994).

With previews, a candidate is scored before that with statistics of a single calibration batch: first on few images,
then on all of the first part. The candidates that went on show by how much such statistics change an accuracy on the
same images. Their mean change corrects a preview, and the spread of the changes is added to the doubt about it. As a
search narrows, more candidates are about as good as the best: previews end when they cost more images than they save.
"""

import collections
import dataclasses
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from bignas_jax.search.held_out import HeldOut, Part
from bignas_jax.search.journal import Journal, packed, unpacked
from bignas_jax.search.problem import Budget, Problem
from bignas_jax.search.strategies.strategy import Proposal
from bignas_jax.search.team import Team
from bignas_jax.spaces.architecture import Architecture

LEAST_CHANGES = 8  # candidates that went on, before one drops out by its preview
WATCHED = 16  # the last previews of a kind, by which it is seen whether they pay


@dataclasses.dataclass(frozen=True)
class Scored:
    """A scored architecture.

    Attributes:
      number: position in the order of scoring.
      arch: the architecture.
      phase: the strategy's phase that proposed it.
      top1: the fraction of images whose first answer is right. An estimate if not `complete`.
      top5: the fraction of images whose first five answers hold the right one.
      loss: mean cross-entropy; may be not a number.
      images: how many images were scored.
      complete: whether all held-out images were scored. If not, top1 is a rival's top1 on all images plus the
        difference to that rival on the first part. Of several such estimates, the lowest counts.
      correct: which images of the first part were right, bool [first part]; of the previews, if it dropped out there.
      seconds: seconds of evaluation that this search had taken when it was scored.
      change: its accuracy on the previews' images in the first part minus that in the previews; None without both.
    """

    number: int
    arch: Architecture
    phase: str
    top1: float
    top5: float
    loss: float
    images: int
    complete: bool
    correct: np.ndarray = dataclasses.field(repr=False, compare=False)
    seconds: float = dataclasses.field(default=0.0, compare=False)
    change: float | None = None


class Race:
    """The evaluations of a search, and the rule by which candidates drop out.

    Args:
      problem: the space, its costs and the budgets.
      held_out: images and executables.
      journal: the file that keeps evaluations; they are found there again after a kill.
      confidence: a candidate drops out when its accuracy is below its rival's by more than this many standard errors
        of their difference on the first part.
      front: whether an architecture's rivals are those that cost no more. If not, its rivals share a budget with it.
      tick: called before each evaluation. An exception that it raises ends the race.
      begin: called before each round. Statistics from earlier rounds are not used after it.
    """

    def __init__(
        self,
        problem: Problem,
        held_out: HeldOut | Team,
        journal: Journal,
        confidence: float,
        front: bool,
        tick: Callable[[], None] = lambda: None,
        begin: Callable[[], None] = lambda: None,
    ):
        self._problem, self._held_out, self._journal = problem, held_out, journal
        self._confidence, self._front, self._tick, self._begin = confidence, front, tick, begin
        self.seconds = 0.0  # of evaluation, with the evaluations found in the journal
        self.evaluations: dict[Architecture, Scored] = {}
        self.made = 0  # parts that were computed, not found in the journal
        self._lost = {part: collections.deque(maxlen=WATCHED) for part in Part if part.is_preview}

    def score(self, proposals: Sequence[Proposal], always: bool = False) -> dict[Architecture, float]:
        """Held-out top-1 of each proposed architecture. Each is scored once, however often it is proposed.

        Args:
          proposals: the proposed architectures.
          always: whether to score all of them on all images.
        """
        new = {p.arch: p for p in proposals if p.arch not in self.evaluations}
        self._begin()
        statistics: dict[tuple[Architecture, bool], Any] = {}
        opening = Part.PREVIEW if self._held_out.sizes.preview and self._pays(Part.PREVIEW) else Part.FIRST
        looks = {arch: self._part(arch, opening, statistics) for arch in new}
        # The most promising come first: the better the rivals, the more candidates drop out.
        order = sorted(new, key=lambda arch: -looks[arch]["top1_images"] / looks[arch]["images"])
        numbers = {arch: len(self.evaluations) + n for n, arch in enumerate(new)}
        for arch in order:
            previews, parts, estimate = self._run(arch, opening, looks[arch], always, statistics)
            for few in (True, False):
                statistics.pop((arch, few), None)
            self.evaluations[arch] = _scored(
                numbers[arch], new[arch], previews, parts, estimate, round(self.seconds, 3)
            )
        return {p.arch: self.evaluations[p.arch].top1 for p in proposals}

    def _run(
        self, arch: Architecture, opening: Part, look: Mapping, always: bool, statistics: dict
    ) -> tuple[list[Mapping], list[Mapping], float | None]:
        """The records of a candidate's previews and parts until it drops out, and its estimate if it does.

        Args:
          arch: the candidate.
          opening: the part that all candidates of the round were scored on.
          look: its record of that part.
          always: whether it runs to the end.
          statistics: see `_part`.
        """
        previews: list[Mapping] = []
        parts: list[Mapping] = []
        for part in self._held_out.sizes.parts():
            if part.is_preview and part is not opening and (opening is Part.FIRST or not self._pays(part)):
                continue
            kind = previews if part.is_preview else parts
            kind.append(look if part is opening else self._part(arch, part, statistics))
            if part is Part.REST or always:
                continue
            estimate = self._estimate_if_lost(arch, _bits(kind), part.is_preview)
            if part.is_preview and self._change() is not None:
                self._lost[part].append(estimate is not None)
            if estimate is not None:
                return previews, parts, estimate
        return previews, parts, None

    def rivals(self, arch: Architecture) -> list[Scored | None]:
        """The best complete evaluation of each group that `arch` is in; None for a group that has none yet.

        A group is a budget that `arch` keeps. In a search for a front, the architectures that cost no more, in any of
        the front's costs, are a group. So is every budget that limits another kind of cost than the front's.
        """
        complete = [e for e in self._searched() if e.complete and e.arch != arch]
        budgets, found = self._problem.budgets, []
        if self._front:
            costs = self._problem.costs_of(arch)
            found = [_best(e for e in complete if _no_more(self._problem.costs_of(e.arch), costs))]
            known = set(self._problem.front_costs)
            budgets = [budget for budget in budgets if budget.floors() or not set(budget.limits()) <= known]
        return found + [self.best(budget, complete) for budget in budgets if self._problem.fits(arch, budget)]

    def best(self, budget: Budget, among: Iterable[Scored] | None = None) -> Scored | None:
        """The best complete evaluation within a budget: by top-1, then by loss, then by cost.

        Args:
          budget: the budget.
          among: the evaluations to choose from; None means all.
        """
        found = self.evaluations.values() if among is None else among
        within = [e for e in found if e.complete and self._problem.fits(e.arch, budget)]

        def rank(e: Scored) -> tuple:
            return -e.top1, _finite(e.loss), self._problem.cost_of(e.arch), e.arch.to_json()

        return min(within, key=rank, default=None)

    def front(self) -> list[Scored]:
        """The complete evaluations that no other beats in cost, on the front's axis, and top-1, by rising cost."""
        complete = (e for e in self._searched() if e.complete)
        found: list[Scored] = []
        for e in sorted(complete, key=lambda e: (self._problem.cost_of(e.arch), -e.top1, e.number)):
            if not found or e.top1 > found[-1].top1:
                found.append(e)
        return found

    def surface(self) -> list[Scored]:
        """The complete evaluations that no other beats in all of the front's costs and top-1, by rising first cost.

        Of those that are equal in all of them, the first one counts. With one cost it is the front.
        """
        complete = sorted((e for e in self._searched() if e.complete), key=lambda e: e.number)
        costs = {e.number: self._problem.costs_of(e.arch) for e in complete}

        def beaten(e: Scored) -> bool:
            return any(
                r.top1 >= e.top1
                and _no_more(costs[r.number], costs[e.number])
                and (r.top1 > e.top1 or costs[r.number] != costs[e.number] or r.number < e.number)
                for r in complete
            )

        return sorted((e for e in complete if not beaten(e)), key=lambda e: (costs[e.number], e.number))

    def _searched(self) -> Iterator[Scored]:
        """The evaluations in the space that is searched. MAX of the whole space may be outside it, because of a cap."""
        return (e for e in self.evaluations.values() if e.arch in self._problem.space)

    def _estimate_if_lost(self, arch: Architecture, correct: np.ndarray, preview: bool) -> float | None:
        """None if `arch` can still win in one of its groups. Otherwise an estimate of its top-1 on all images.

        Args:
          arch: the architecture.
          correct: which of the first part's first images it got right, bool [n].
          preview: whether that was with the statistics of a preview.
        """
        correction, doubt = 0.0, 0.0
        if preview:
            if (change := self._change()) is None:
                return None
            correction, doubt = change
        estimates = []
        for rival in self.rivals(arch):
            if rival is None:
                return None
            difference, error = paired(correct, rival.correct[: len(correct)], self._held_out.sizes.held_out)
            difference += correction
            if difference + self._confidence * math.hypot(error, doubt) >= 0:
                return None
            estimates.append(rival.top1 + difference)
        # An architecture that no budget allows has no rivals. It loses, and keeps its own figure.
        return float(np.clip(min(estimates, default=correct.mean() + correction), 0, 1))

    def _change(self) -> tuple[float, float] | None:
        """How a preview differs from the first part: the mean, and the standard deviation of the next one's.

        None before enough candidates have had both.
        """
        changes = [e.change for e in self.evaluations.values() if e.change is not None]
        if len(changes) < LEAST_CHANGES:
            return None
        return float(np.mean(changes)), float(np.std(changes, ddof=1)) * math.sqrt(1 + 1 / len(changes))

    def _pays(self, part: Part) -> bool:
        """Whether the last previews of this kind, by dropping candidates, have saved more images than they took."""
        lost, sizes = self._lost[part], self._held_out.sizes
        cost = sizes.images(part) + (sizes.calibration_batch if part is Part.PREVIEW else 0)
        return len(lost) < WATCHED or sum(lost) * (sizes.calibration + sizes.first) > len(lost) * cost

    def _part(self, arch: Architecture, part: Part, statistics: dict) -> dict[str, Any]:
        """The record of a part, computed unless the journal has it. `statistics` keeps each candidate's statistics."""
        self._tick()
        record = self._journal.find(arch, part)
        if record is None or record["images"] != self._held_out.sizes.images(part):
            start = time.monotonic()
            key = arch, part.is_preview
            if key not in statistics:
                statistics[key] = self._held_out.calibrate(arch, preview=part.is_preview)
            rows = self._held_out.outcomes(arch, statistics[key], part)
            values = totals(rows)
            if part is not Part.REST:
                values["correct"] = packed(rows[:, 0] > 0)
            self.made += 1
            record = self._journal.add(arch, part, **values, seconds=round(time.monotonic() - start, 4))
        self.seconds += record["seconds"]
        return record


def paired(ours: np.ndarray, theirs: np.ndarray, total: int) -> tuple[float, float]:
    """Mean difference of two architectures' outcomes on the same images, and its standard error.

    Args:
      ours: bool [n], the images that one architecture gets right.
      theirs: bool [n], the same for the other.
      total: number of images that the n are a sample of. If n is all of them, the standard error is 0.
    """
    count = len(ours)
    difference = ours.astype(np.float64) - theirs
    # We add one image on which they disagree: n equal outcomes do not prove that all outcomes are equal.
    variance = (np.sum(difference**2) + 1) / (count + 1) - difference.mean() ** 2
    remaining = max(0.0, 1 - count / total)
    return float(difference.mean()), math.sqrt(max(variance, 0.0) / count * remaining)


def totals(rows: np.ndarray) -> dict[str, Any]:
    """Sums of `Evaluator.outcomes`, exact in JSON; a loss that is not finite is None."""
    top1, top5, loss = np.sum(rows, 0, dtype=np.float64)
    loss = float(loss) if np.isfinite(loss) else None
    return {"images": len(rows), "top1_images": int(top1), "top5_images": int(top5), "loss_sum": loss}


def _finite(loss: float) -> float:
    """The loss for a comparison: infinite, thus the worst, if it is not a finite number."""
    return loss if math.isfinite(loss) else math.inf


def _bits(records: Sequence[Mapping]) -> np.ndarray:
    """Which images were right, of records that say so of each image."""
    return np.concatenate([unpacked(r["correct"], r["images"]) for r in records if "correct" in r])


def _scored(
    number: int,
    proposal: Proposal,
    previews: Sequence[Mapping],
    parts: Sequence[Mapping],
    estimate: float | None,
    seconds: float,
) -> Scored:
    counted = parts or previews
    images, correct = sum(part["images"] for part in counted), _bits(counted)

    def mean(name: str) -> float:
        values = [part[name] for part in counted]
        return math.nan if None in values else sum(values) / images

    return Scored(
        number=number,
        arch=proposal.arch,
        phase=proposal.phase,
        top1=mean("top1_images") if estimate is None else estimate,
        top5=mean("top5_images"),
        loss=mean("loss_sum"),
        images=images,
        complete=estimate is None,
        correct=correct,
        seconds=seconds,
        change=_change(correct, _bits(previews)) if parts and previews else None,
    )


def _change(correct: np.ndarray, preview: np.ndarray) -> float:
    return float(correct[: len(preview)].mean() - preview.mean())


def _no_more(costs: Sequence[float], than: Sequence[float]) -> bool:
    return all(a <= b for a, b in zip(costs, than, strict=True))


def _best(evaluations: Iterable[Scored]) -> Scored | None:
    return max(evaluations, key=lambda e: (e.top1, -e.number), default=None)
