"""Evolution under budgets (Real et al., 2019). Cai et al. (2020) and Wang et al. (2021) search a supernet this way.

Each budget has a population: the best architectures within it, among all that were scored for any budget. The first
generation is drawn at random. Each later one is half mutations and half crossovers of the best quarter.
"""

from collections.abc import Mapping
from functools import partial

import numpy as np

from bignas_jax.search.problem import Budget, Problem
from bignas_jax.search.strategies.strategy import Proposal, best_first
from bignas_jax.spaces.architecture import Architecture

PARENTS = 0.25  # of the population
TRIES = 20  # draws to find a child that is new


class Evolution:
    """Mutation and crossover of the best within each budget.

    Args:
      problem: the space, its costs and the budgets.
      seed: the seed of all draws.
      population: number of architectures, over all budgets. The best quarter are parents.
      mutation_probability: the probability of each choice to change.
    """

    front = False

    def __init__(self, problem: Problem, seed: int, population: int, mutation_probability: float):
        self._problem, self._population, self._probability = problem, population, mutation_probability
        self._rng = np.random.default_rng(seed)
        self._scores: dict[Architecture, float] = {}
        self._generation = 0

    def ask(self, count: int, pool: int = 1) -> list[Proposal]:
        """See `Strategy.ask`."""
        found: dict[Architecture, None] = {}
        budgets = self._problem.budgets
        parents = {budget: self._parents(budget) for budget in budgets}
        phase = f"generation {self._generation}" if any(parents.values()) else "first generation"
        for number in range(count * pool):
            budget = budgets[number % len(budgets)]
            mutate = number // len(budgets) % 2 == 0
            draws = [partial(self._child, budget, parents[budget], mutate)] * TRIES
            # If all children of the population are known, random architectures are drawn instead.
            draws += [partial(self._problem.sample, budget, self._rng)] * TRIES
            arch = next((a for a in (draw() for draw in draws) if a not in self._scores and a not in found), None)
            if arch is not None:
                found[arch] = None
        self._generation += 1
        return [Proposal(arch, phase) for arch in found]

    def _parents(self, budget: Budget) -> list[Architecture]:
        """The best quarter of the budget's share of the population; empty until half of that share is there."""
        known = best_first(self._scores, self._problem, budget)
        share = max(1, self._population // len(self._problem.budgets))
        if len(known) < max(2, share // 2):
            return []
        return known[: max(2, round(PARENTS * min(share, len(known))))]

    def _child(self, budget: Budget, parents: list[Architecture], mutate: bool) -> Architecture:
        if not parents:
            return self._problem.sample(budget, self._rng)
        space = self._problem.space
        first, second = (parents[self._rng.integers(len(parents))] for _ in range(2))
        child = first if mutate else space.crossover(first, second, self._rng)
        # A crossover of near relatives may equal one of them. A small mutation keeps the search moving.
        mutant = space.mutate(child, self._rng, self._probability if mutate else self._probability / 2)
        # Mutated choices stay. Other choices change to keep the budget, and every other time to use it up. Otherwise
        # few larger choices would survive near the budget's limit.
        pairs = zip(space.indices(child), space.indices(mutant), strict=True)
        moved = [position for position, (old, new) in enumerate(pairs) if old != new]
        mutant = self._problem.shrink(mutant, budget, self._rng, keep=moved)
        return self._problem.grow(mutant, budget, self._rng, keep=moved) if self._rng.random() < 0.5 else mutant

    def tell(self, scores: Mapping[Architecture, float]) -> None:
        """See `Strategy.tell`."""
        self._scores.update(scores)
