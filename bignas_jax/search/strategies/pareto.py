"""The whole front of accuracy against one cost, or several, in one run, by pymoo (Blank and Deb, 2020).

Against one cost it is NSGA-II (Deb et al., 2002). Against two or three it is NSGA-III (Deb and Jain, 2014). There, most
members of a population beat no other, so that crowding tells little. NSGA-III keeps those that are nearest to
directions which are spread evenly over the objectives (Das and Dennis, 1998).
"""

import math
from collections.abc import Mapping

import numpy as np
from pymoo.algorithms.moo.nsga2 import NSGA2
from pymoo.algorithms.moo.nsga3 import NSGA3
from pymoo.core.population import Population
from pymoo.core.problem import Problem as PymooProblem
from pymoo.core.termination import NoTermination
from pymoo.operators.crossover.ux import UniformCrossover
from pymoo.operators.mutation.pm import PolynomialMutation
from pymoo.operators.repair.rounding import RoundingRepair
from pymoo.util.ref_dirs import get_reference_directions

from bignas_jax.search.problem import Problem
from bignas_jax.search.strategies.strategy import Proposal
from bignas_jax.spaces.architecture import Architecture


class Pareto:
    """NSGA-II or NSGA-III over the positions of the choices, minimising (1 - accuracy, cost, ...).

    If the user named budgets, an architecture that none of them allows is brought back into one of them.

    Args:
      problem: the space, its costs and the budgets.
      seed: the seed of all draws.
      population: the size of the population.
      mutation_probability: the probability of each choice to change.
    """

    front = True

    def __init__(self, problem: Problem, seed: int, population: int, mutation_probability: float):
        self._problem = problem
        self._rng = np.random.default_rng(seed)
        tops = np.array([len(choice) - 1 for choice in problem.space.choices])
        objectives = 1 + len(problem.front_costs)
        method, directions = NSGA2, {}
        if objectives > 2:
            method, directions = NSGA3, {"ref_dirs": reference_directions(objectives, population)}
        self._algorithm = method(
            **directions,
            pop_size=population,
            sampling=self._spread(population, tops),
            crossover=UniformCrossover(),
            mutation=PolynomialMutation(
                prob=1.0, prob_var=mutation_probability, eta=1, vtype=float, repair=RoundingRepair()
            ),
            eliminate_duplicates=True,
        )
        definition = PymooProblem(n_var=len(tops), n_obj=objectives, xl=np.zeros_like(tops), xu=tops, vtype=int)
        self._algorithm.setup(definition, seed=seed, termination=NoTermination())
        self._asked: dict[Architecture, np.ndarray] = {}
        self._generation = 0

    def ask(self, count: int, pool: int = 1) -> list[Proposal]:
        """See `Strategy.ask`."""
        if self._asked:
            self._finish_generation({})
        self._algorithm.n_offsprings = count * pool
        individuals = self._algorithm.ask()
        if individuals is None:
            return []
        for genes in individuals.get("X"):
            arch = self._within(self._problem.space.at([int(round(g)) for g in genes]))
            self._asked[arch] = np.array(self._problem.space.indices(arch))
        phase = f"generation {self._generation}" if self._generation else "first generation"
        return [Proposal(arch, phase, screen=self._generation > 0) for arch in self._asked]

    def tell(self, scores: Mapping[Architecture, float]) -> None:
        """See `Strategy.tell`."""
        self._finish_generation(scores)

    def _finish_generation(self, scores: Mapping[Architecture, float]) -> None:
        """Adds the architectures that were asked for and scored to the population, and forgets the others."""
        told = [(genes, arch) for arch, genes in self._asked.items() if arch in scores]
        self._asked = {}
        if told:
            population = Population.new("X", np.array([genes for genes, _ in told]))
            objectives = [(1 - scores[arch], *self._problem.costs_of(arch)) for _, arch in told]
            population.set("F", np.array(objectives, float))
            self._algorithm.tell(infills=population)
            self._generation += 1

    def _spread(self, population: int, tops: np.ndarray) -> np.ndarray:
        """A first generation over the whole range of costs: int [population, choices].

        Uniform draws crowd in the middle of the range. So each individual has its own probability of large choices. The
        smallest and the biggest architecture are among them.
        """
        odds = np.linspace(0.0, 1.0, population)[:, None]
        return self._rng.binomial(tops, odds)

    def _within(self, arch: Architecture) -> Architecture:
        budgets = self._problem.budgets
        if not self._problem.bounded or any(self._problem.fits(arch, budget) for budget in budgets):
            return arch
        return self._problem.shrink(arch, budgets[self._rng.integers(len(budgets))], self._rng)


def reference_directions(objectives: int, population: int) -> np.ndarray:
    """Directions in the space of objectives, evenly spread, as many as a population can follow: [N, objectives].

    They are the points of the simplex whose coordinates are multiples of 1 / p, with the largest p that gives no more
    than `population` of them, and at least the axes.
    """
    parts = 1
    while math.comb(objectives + parts, parts + 1) <= population:
        parts += 1
    return get_reference_directions("das-dennis", objectives, n_partitions=parts)
