"""The strategies by name."""

from ml_collections import ConfigDict

from bignas_jax.search.problem import Problem
from bignas_jax.search.strategies.coarse_to_fine import CoarseToFine
from bignas_jax.search.strategies.evolution import Evolution
from bignas_jax.search.strategies.pareto import Pareto
from bignas_jax.search.strategies.random_search import RandomSearch
from bignas_jax.search.strategies.strategy import Strategy

LEAST_GENERATION, LEAST_ROUND = 14, 6


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


def round_size(config: ConfigDict) -> int:
    """Architectures that are scored between two answers to the strategy.

    For NSGA-II a generation, small enough that there are eight of them; half a population for the others, and small
    enough that there are ten rounds.
    """
    c = config.search
    if c.strategy == "pareto":
        return min(c.population, max(LEAST_GENERATION, c.num_evaluations // 8))
    return max(2, min(c.population // 2, max(LEAST_ROUND, c.num_evaluations // 10)))
