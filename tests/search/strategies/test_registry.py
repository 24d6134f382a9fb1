"""The strategies by name: each name of the options has one, and no other name has."""

import pytest
from landscape import problem

from bignas_jax.config.choices import Strategies
from bignas_jax.config.options import Search
from bignas_jax.errors import ConfigError
from bignas_jax.search.strategies.ageing_evolution import AgeingEvolution
from bignas_jax.search.strategies.asng import ASNG
from bignas_jax.search.strategies.coarse_to_fine import CoarseToFine
from bignas_jax.search.strategies.evolution import Evolution
from bignas_jax.search.strategies.pareto import Pareto
from bignas_jax.search.strategies.random_search import RandomSearch
from bignas_jax.search.strategies.registry import make_strategy, round_size

CLASSES = {"coarse_to_fine": CoarseToFine, "evolution": Evolution, "pareto": Pareto, "random": RandomSearch,
           "ageing_evolution": AgeingEvolution, "asng": ASNG}


@pytest.mark.parametrize("name", Strategies)
def test_every_name_of_the_options_has_its_strategy(name):
    made = make_strategy(Search(strategy=name.value), problem(0.5))
    assert type(made) is CLASSES[name]


def test_an_unknown_strategy_is_refused():
    options = Search()
    object.__setattr__(options, "strategy", "grid")  # as if the options knew a name that nothing here acts on
    with pytest.raises(ConfigError, match="config.search.strategy: found 'grid', expected one of coarse_to_fine, evol"):
        make_strategy(options, problem(0.5))


@pytest.mark.parametrize(
    "strategy, population, evaluations, expected",
    [("pareto", 32, 300, 32), ("pareto", 32, 120, 15), ("pareto", 32, 40, 14), ("random", 32, 300, 16),
     ("evolution", 32, 100, 10), ("random", 32, 20, 6), ("random", 2, 300, 2)],
)  # fmt: skip
def test_rounds_are_small_enough_for_some_of_them(strategy, population, evaluations, expected):
    options = Search(strategy=strategy, population=population, num_evaluations=evaluations)
    assert round_size(options) == expected
