"""An accuracy predictor that decides which proposals are worth an evaluation (Cai et al., 2020, section 3.3)."""

from collections.abc import Mapping, Sequence

from bignas_jax.search.problem import Problem
from bignas_jax.search.race import Race
from bignas_jax.search.strategies.strategy import Proposal
from bignas_jax.spaces.architecture import Architecture
from bignas_jax.spaces.predictor import Predictor

GROWTH = 1.1  # the predictor is fitted again when the evaluations have grown by this factor
LEAST = 24  # evaluations before a predictor is fitted


class Screening:
    """Fits a predictor to the evaluations so far, and keeps the proposals that it finds most promising.

    Args:
      problem: the space, its costs and the budgets.
      pool: how many proposals to ask for, for each one that is scored.
      min_tau: the least rank correlation (Kendall's tau) on held-out evaluations. Below it, all proposals are scored.
      seed: the seed of the cross-validation's folds.
    """

    def __init__(self, problem: Problem, pool: int, min_tau: float, seed: int):
        self._problem, self._pool, self._min_tau, self._seed = problem, pool, min_tau, seed
        self._predictor = Predictor(problem.space)
        self._used, self._known = False, 0
        self.history: list[dict] = []  # evaluations, tau, used
        self.rounds = 0  # how many rounds of proposals were screened

    @property
    def pool(self) -> int:
        """How many proposals to ask for, for each one that will be scored."""
        return self._pool if self._used else 1

    def learn(self, scores: Mapping[Architecture, float]) -> None:
        """Checks how well the predictor ranks evaluations that it was not fitted to, and fits it to all if well enough.

        This is done only when the evaluations have grown by a tenth since the last time, because a fit takes time.
        """
        if len(scores) < max(LEAST, GROWTH * self._known):
            return
        self._known = len(scores)
        archs, values = list(scores), list(scores.values())
        tau = self._predictor.tau(archs, values, self._seed)
        self._used = tau >= self._min_tau
        if self._used:
            self._predictor.fit(archs, values)
        self.history.append({"evaluations": len(scores), "tau": round(float(tau), 4), "used": self._used})

    def select(self, proposals: Sequence[Proposal], race: Race, count: int) -> list[Proposal]:
        """At most `count` of the proposals: those that are predicted to exceed their best rivals by most.

        The proposals are grouped by their tightest budget, and each group keeps its share. Proposals that must not be
        screened come first.
        """
        kept = [p for p in proposals if not p.screen]
        open_ = [p for p in proposals if p.screen]
        count = min(count - len(kept), max(1, len(open_) // self.pool)) if open_ else 0
        if not self._used or count <= 0:
            return (kept + open_)[: len(kept) + max(count, 0)]
        self.rounds += 1
        predicted = dict(zip([p.arch for p in open_], self._predictor.predict([p.arch for p in open_]), strict=True))
        groups: dict[int, list[Proposal]] = {}
        for p in open_:
            groups.setdefault(self._tightest(p.arch), []).append(p)
        ranked = [
            (place / len(group), key, p)
            for key, group in groups.items()
            for place, p in enumerate(sorted(group, key=lambda p: -self._advantage(p.arch, predicted, race)))
        ]
        ranked.sort(key=lambda entry: entry[:2])
        return kept + [p for _, _, p in ranked[:count]]

    def _tightest(self, arch: Architecture) -> int:
        budgets = self._problem.budgets
        fitting = [n for n, budget in enumerate(budgets) if self._problem.fits(arch, budget)]
        return max(fitting, key=lambda n: self._problem.use(arch, budgets[n]), default=len(budgets))

    def _advantage(self, arch: Architecture, predicted: Mapping[Architecture, float], race: Race) -> float:
        rivals = [rival.top1 for rival in race.rivals(arch) if rival is not None]
        return float(predicted[arch]) - min(rivals, default=0.0)
