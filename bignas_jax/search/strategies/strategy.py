"""What a search strategy is: it is asked for architectures and told their scores."""

import dataclasses
from collections.abc import Mapping
from typing import Protocol

from bignas_jax.search.problem import Budget, Problem
from bignas_jax.spaces.architecture import Architecture


@dataclasses.dataclass(frozen=True)
class Proposal:
    """An architecture that a strategy wants scored.

    `phase` is the part of the strategy's course (for the report); `screen` whether a predictor may leave it out.
    """

    arch: Architecture
    phase: str
    screen: bool = True


class Strategy(Protocol):
    """Finds good architectures by asking for scores.

    A strategy draws from its own seeded generator and knows nothing but what it was told, so that the same scores
    lead to the same course. `front` says whether it looks for a whole front (True) or for the budgets' winners.
    """

    front: bool

    def ask(self, count: int, pool: int = 1) -> list[Proposal]:
        """Architectures to score next, at most `count * pool`, of which one in `pool` will be scored.

        None: the strategy has nothing more to ask. Some may have been told before.
        """

    def tell(self, scores: Mapping[Architecture, float]) -> None:
        """Scores (held-out top-1, 0..1) of architectures asked for; some of them may never be scored."""


def best_first(scores: Mapping[Architecture, float], problem: Problem, budget: Budget) -> list[Architecture]:
    """The scored architectures within a budget, the best first; of equals the cheaper one."""
    within = [arch for arch in scores if problem.fits(arch, budget)]
    return sorted(within, key=lambda arch: (-scores[arch], problem.cost_of(arch), arch.to_json()))
