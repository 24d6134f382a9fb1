"""The strategies by name."""

from collections.abc import Callable

from bignas_jax.config.choices import Strategies
from bignas_jax.config.options import Search
from bignas_jax.plugins import find
from bignas_jax.search.problem import Problem
from bignas_jax.search.strategies.ageing_evolution import AgeingEvolution
from bignas_jax.search.strategies.asng import ASNG
from bignas_jax.search.strategies.coarse_to_fine import CoarseToFine
from bignas_jax.search.strategies.evolution import Evolution
from bignas_jax.search.strategies.pareto import Pareto
from bignas_jax.search.strategies.random_search import RandomSearch
from bignas_jax.search.strategies.strategy import Strategy

LEAST_GENERATION, LEAST_ROUND = 14, 6


# A maker gets the problem and the options of the search. A user's own class is made the same way.
Maker = Callable[[Problem, Search], Strategy]
STRATEGIES: dict[str, Maker] = {
    Strategies.COARSE_TO_FINE: lambda problem, o: CoarseToFine(problem, o.seed, o.num_evaluations),
    Strategies.EVOLUTION: lambda problem, o: Evolution(problem, o.seed, o.population, o.mutation_probability),
    Strategies.PARETO: lambda problem, o: Pareto(problem, o.seed, round_size(o), o.mutation_probability),
    Strategies.RANDOM: lambda problem, o: RandomSearch(problem, o.seed),
    Strategies.AGEING_EVOLUTION: lambda problem, o: AgeingEvolution(
        problem, o.seed, o.population, o.mutation_probability
    ),
    Strategies.ASNG: lambda problem, o: ASNG(problem, o.seed),
}


def strategy_maker(name: str) -> Maker:
    """The function that makes the strategy of this name.

    Raises:
      ConfigError: there is no strategy of that name.
    """
    return find(name, STRATEGIES, "config.search.strategy")


def make_strategy(options: Search, problem: Problem) -> Strategy:
    """The strategy that the options name.

    Raises:
      ConfigError: there is no strategy of that name.
    """
    return strategy_maker(options.strategy)(problem, options)


def round_size(options: Search) -> int:
    """How many architectures are scored in a round, before the strategy is told their scores.

    A round of NSGA-II is a generation, small enough to leave eight generations. A round of the other strategies is half
    a population, small enough to leave ten rounds.
    """
    if options.strategy == Strategies.PARETO:
        return min(options.population, max(LEAST_GENERATION, options.num_evaluations // 8))
    return max(2, min(options.population // 2, max(LEAST_ROUND, options.num_evaluations // 10)))
