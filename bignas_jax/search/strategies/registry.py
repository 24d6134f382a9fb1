"""The strategies by name."""

from collections.abc import Callable

from bignas_jax.config.options import Search, Strategies
from bignas_jax.plugins import find
from bignas_jax.search.problem import Problem
from bignas_jax.search.strategies.coarse_to_fine import CoarseToFine
from bignas_jax.search.strategies.evolution import Evolution
from bignas_jax.search.strategies.pareto import Pareto
from bignas_jax.search.strategies.random_search import RandomSearch
from bignas_jax.search.strategies.strategy import Strategy

LEAST_GENERATION, LEAST_ROUND = 14, 6


# How each is made, of the problem and the options of the search. A user's own class is made the same way.
Maker = Callable[[Problem, Search], Strategy]
STRATEGIES: dict[str, Maker] = {
    Strategies.COARSE_TO_FINE: lambda problem, o: CoarseToFine(problem, o.seed, o.num_evaluations),
    Strategies.EVOLUTION: lambda problem, o: Evolution(problem, o.seed, o.population, o.mutation_probability),
    Strategies.PARETO: lambda problem, o: Pareto(problem, o.seed, round_size(o), o.mutation_probability),
    Strategies.RANDOM: lambda problem, o: RandomSearch(problem, o.seed),
}


def strategy_maker(name: str) -> Maker:
    """How the strategy of a name is made.

    Raises:
      ConfigError: there is none.
    """
    return find(name, STRATEGIES, "config.search.strategy")


def make_strategy(options: Search, problem: Problem) -> Strategy:
    """The strategy that the options name.

    Raises:
      ConfigError: there is none of that name.
    """
    return strategy_maker(options.strategy)(problem, options)


def round_size(options: Search) -> int:
    """Architectures that are scored between two answers to the strategy.

    For NSGA-II a generation, small enough that there are eight of them; half a population for the others, and small
    enough that there are ten rounds.
    """
    if options.strategy == Strategies.PARETO:
        return min(options.population, max(LEAST_GENERATION, options.num_evaluations // 8))
    return max(2, min(options.population // 2, max(LEAST_ROUND, options.num_evaluations // 10)))
