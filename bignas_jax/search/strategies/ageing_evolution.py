"""Regularised evolution (Real et al., 2019): the oldest of a population dies, not the worst.

Each budget has a population of its own. Of a few members drawn from it, the best one is the parent of the next
architecture. So a network stays in play only if its children do well, too: one lucky score does not last.
"""

from collections import deque
from collections.abc import Mapping

import numpy as np

from bignas_jax.search.problem import Budget, Problem
from bignas_jax.search.strategies.strategy import Proposal
from bignas_jax.spaces.architecture import Architecture

DRAWN = 0.25  # of the population, to choose a parent from
TRIES = 20  # draws to find a child that is new


class AgeingEvolution:
    """Mutations of the best of a few members, drawn from the youngest architectures within each budget.

    Args:
      problem: the space, its costs and the budgets.
      seed: the seed of all draws.
      population: number of architectures, over all budgets.
      mutation_probability: the probability of each choice to change. At least one changes.
    """

    front = False

    def __init__(self, problem: Problem, seed: int, population: int, mutation_probability: float):
        self._problem, self._probability = problem, mutation_probability
        self._rng = np.random.default_rng(seed)
        self._share = max(2, population // len(problem.budgets))
        self._alive: dict[Budget, deque] = {budget: deque(maxlen=self._share) for budget in problem.budgets}
        self._told: dict[Architecture, float] = {}
        self._open = [gene for gene, choice in enumerate(problem.space.choices) if len(choice) > 1]

    def ask(self, count: int, pool: int = 1) -> list[Proposal]:
        """See `Strategy.ask`."""
        found: dict[Architecture, str] = {}
        budgets = self._problem.budgets
        for number in range(count * pool):
            budget = budgets[number % len(budgets)]
            young = len(self._alive[budget]) < max(2, self._share // 2)
            draws = [lambda b=budget: self._problem.sample(b, self._rng)] * TRIES
            if not young:
                draws = [lambda b=budget: self._child(b)] * TRIES + draws
            arch = next((a for a in (draw() for draw in draws) if a not in self._told and a not in found), None)
            if arch is not None:
                found[arch] = "first population" if young else "ageing"
        return [Proposal(arch, phase) for arch, phase in found.items()]

    def _child(self, budget: Budget) -> Architecture:
        """A mutation of the best of some members, brought back within the budget."""
        alive = self._alive[budget]
        drawn = self._rng.choice(len(alive), max(2, round(DRAWN * len(alive))), replace=False)
        parent = max((alive[n] for n in drawn), key=lambda arch: (self._told[arch], arch.to_json()))
        space = self._problem.space
        mutant = space.mutate(parent, self._rng, self._probability)
        genes, old = list(space.indices(mutant)), space.indices(parent)
        if mutant == parent and self._open:
            active = space.active(genes)
            gene = self._rng.choice([gene for gene in self._open if active[gene]])
            genes[gene] = (genes[gene] + self._rng.integers(1, len(space.choices[gene]))) % len(space.choices[gene])
        # What was changed stays. Other choices keep the budget, and every other time use it up.
        moved = [gene for gene, (a, b) in enumerate(zip(genes, old, strict=True)) if a != b]
        child = self._problem.shrink(space.at(genes), budget, self._rng, keep=moved)
        return self._problem.grow(child, budget, self._rng, keep=moved) if self._rng.random() < 0.5 else child

    def tell(self, scores: Mapping[Architecture, float]) -> None:
        """See `Strategy.tell`. An architecture joins the population of every budget that it keeps."""
        for arch, score in scores.items():
            if arch not in self._told:
                self._told[arch] = score
                for budget, alive in self._alive.items():
                    if self._problem.fits(arch, budget):
                        alive.append(arch)
