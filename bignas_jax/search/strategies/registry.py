"""The strategies by name."""

from bignas_jax.config.options import Search, Strategies
from bignas_jax.errors import ConfigError
from bignas_jax.search.problem import Problem
from bignas_jax.search.strategies.coarse_to_fine import CoarseToFine
from bignas_jax.search.strategies.evolution import Evolution
from bignas_jax.search.strategies.pareto import Pareto
from bignas_jax.search.strategies.random_search import RandomSearch
from bignas_jax.search.strategies.strategy import Strategy

LEAST_GENERATION, LEAST_ROUND = 14, 6


def make_strategy(options: Search, problem: Problem) -> Strategy:
    """The strategy that the options name.

    Raises:
      ConfigError: there is none of that name.
    """
    o = options
    makers = {
        Strategies.COARSE_TO_FINE: lambda: CoarseToFine(problem, o.seed, o.num_evaluations),
        Strategies.EVOLUTION: lambda: Evolution(problem, o.seed, o.population, o.mutation_probability),
        Strategies.PARETO: lambda: Pareto(problem, o.seed, round_size(o), o.mutation_probability),
        Strategies.RANDOM: lambda: RandomSearch(problem, o.seed),
    }
    if o.strategy not in makers:
        raise ConfigError(f"config.search.strategy: found {o.strategy!r}, expected one of {', '.join(makers)}")
    return makers[o.strategy]()


def round_size(options: Search) -> int:
    """Architectures that are scored between two answers to the strategy.

    For NSGA-II a generation, small enough that there are eight of them; half a population for the others, and small
    enough that there are ten rounds.
    """
    if options.strategy == Strategies.PARETO:
        return min(options.population, max(LEAST_GENERATION, options.num_evaluations // 8))
    return max(2, min(options.population // 2, max(LEAST_ROUND, options.num_evaluations // 10)))
