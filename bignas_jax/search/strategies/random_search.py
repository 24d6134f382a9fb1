"""Uniform random search within each budget, the baseline that every strategy must beat (Li and Talwalkar, 2019)."""

from collections.abc import Mapping

import numpy as np

from bignas_jax.search.problem import Problem
from bignas_jax.search.strategies.strategy import Proposal
from bignas_jax.spaces.architecture import Architecture

TRIES = 30  # draws to find an architecture that is new


class RandomSearch:
    """Draws architectures within a budget, the budgets in turn. Draws are uniform, unless such architectures are rare.

    No predictor screens the draws: a screened search would be no baseline.
    """

    front = False

    def __init__(self, problem: Problem, seed: int):
        self._problem = problem
        self._rng = np.random.default_rng(seed)
        self._told: set[Architecture] = set()

    def ask(self, count: int, pool: int = 1) -> list[Proposal]:
        """See `Strategy.ask`."""
        found: dict[Architecture, None] = {}
        budgets = self._problem.budgets
        for number in range(count * TRIES):
            arch = self._problem.sample(budgets[number % len(budgets)], self._rng)
            if arch not in self._told:
                found[arch] = None
            if len(found) == count:
                break
        return [Proposal(arch, "random", screen=False) for arch in found]

    def tell(self, scores: Mapping[Architecture, float]) -> None:
        """See `Strategy.tell`."""
        self._told.update(scores)
