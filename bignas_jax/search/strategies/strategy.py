"""The protocol of a search strategy: it is asked for architectures and told their scores."""

import dataclasses
from collections.abc import Mapping
from typing import Protocol

from bignas_jax.search.problem import Budget, Problem
from bignas_jax.spaces.architecture import Architecture


@dataclasses.dataclass(frozen=True)
class Proposal:
    """An architecture that a strategy wants scored.

    Attributes:
      arch: the architecture.
      phase: the name of the strategy's phase, for the report.
      screen: whether a predictor may leave it out.
    """

    arch: Architecture
    phase: str
    screen: bool = True


class Strategy(Protocol):
    """Finds good architectures by asking for scores.

    A strategy draws from its own seeded generator and knows only the scores that it was told. So the same scores lead
    to the same course.

    Attributes:
      front: True if it looks for a whole front, False if it looks for the budgets' winners.
    """

    front: bool

    def ask(self, count: int, pool: int = 1) -> list[Proposal]:
        """Proposals to score next: at most `count * pool`. One in `pool` will be scored.

        An empty list means that the strategy has nothing more to ask. Proposals may have been scored before.
        """

    def tell(self, scores: Mapping[Architecture, float]) -> None:
        """Takes the scores (held-out top-1, 0..1) of proposed architectures. Some proposals are never scored."""


def best_first(scores: Mapping[Architecture, float], problem: Problem, budget: Budget) -> list[Architecture]:
    """The scored architectures within a budget, the best first. Of equal scores, the cheaper comes first."""
    within = [arch for arch in scores if problem.fits(arch, budget)]
    return sorted(within, key=lambda arch: (-scores[arch], problem.cost_of(arch), arch.to_json()))
