"""A cost of the user's own: what it is given, what it may return, and what a search does with it."""

import math
import re

import numpy as np
import pytest
from landscape import CLASSES, SPACE, FakeHeldOut, accuracy

from bignas_jax.config.options import Search
from bignas_jax.errors import ConfigError
from bignas_jax.search.journal import Journal
from bignas_jax.search.own_cost import OwnCost
from bignas_jax.search.problem import Budget, Problem, allowed, budgets_of
from bignas_jax.search.race import Race
from bignas_jax.search.run import explore
from bignas_jax.search.screening import Screening
from bignas_jax.search.strategies.random_search import RandomSearch
from bignas_jax.spaces.cost import count

MODULE = '''
import numpy as np
seen = []
def weights(layout):
    """Numbers in kernels alone."""
    seen.append(layout)
    return sum(np.prod(w.shape) for layer in layout for w in layer.weights() if w.path[-1] == "kernel") / 1000
def fails(layout): raise KeyError("board")
def silent(layout): raise RuntimeError
def nothing(layout): pass
def text(layout): return "3"
def negative(layout): return -1.0
def infinite(layout): return float("inf")
def listed(layout): return [1.0, 2.0]
def zero(layout): return np.zeros(1, np.float32)[0]
limit = 3.0
'''


@pytest.fixture(autouse=True)
def module(tmp_path, monkeypatch):
    (tmp_path / "own_board.py").write_text(MODULE)
    (tmp_path / "own_broken.py").write_text("raise RuntimeError('no board here')")
    monkeypatch.syspath_prepend(tmp_path)


def own(name: str) -> OwnCost:
    return OwnCost(name, SPACE, CLASSES)


def test_it_is_given_the_layers_of_the_child():
    cost = own("own_board:weights")
    found = [cost(arch) for arch in (SPACE.smallest, SPACE.biggest)]
    # Of the counted parameters, those that are no kernels: scales and biases, and squeeze-and-excitation.
    for value, arch in zip(found, (SPACE.smallest, SPACE.biggest), strict=True):
        layout = SPACE.restricted(only=arch).layout(arch, CLASSES)
        others = sum(2 * conv.out_width * conv.norm + conv.out_width * conv.bias for la in layout for conv in la.convs)
        gates = sum((2 * c.out_width + 1) * c.squeeze + c.out_width for la in layout for c in la.convs if c.squeeze)
        flat = sum(la.shortcut.in_width * la.shortcut.out_width for la in layout
                   if la.shortcut is not None and la.shortcut.elastic and not la.shortcut.projects)  # fmt: skip
        assert 1000 * value == count(SPACE, arch, CLASSES).params - others - gates + flat
    assert found[0] < found[1] and own("own_board:zero")(SPACE.smallest) == 0.0


@pytest.mark.parametrize("name, words", [
    ("own_missing:cost", "cannot import 'own_missing'"), ("own_board:none", "found no 'none' in the module own_board, "
     "expected a function"), ("own_board:limit", "found 3.0 as own_board:limit, expected a function"),
    ("own_broken:cost", "own_broken:cost cannot be imported (RuntimeError: no board here)"),
    ("own_board:fails", "own_board:fails failed on {\"resolution\": 12"), ("own_board:silent", "(RuntimeError): mend"),
    ("own_board:nothing", "found None from own_board:nothing"), ("own_board:text", "found '3' from"),
    ("own_board:negative", "found -1.0 from own_board:negative"), ("own_board:infinite", "found inf"),
    ("own_board:listed", "expected a finite number >= 0"),
])  # fmt: skip
def test_what_cannot_be_a_cost_is_one_line(name, words):
    with pytest.raises(ConfigError, match="^config.search.own_cost: ") as error:
        own(name)(SPACE.smallest)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_its_digest_is_that_of_its_text(tmp_path, monkeypatch):
    about = own("own_board:weights").about
    assert about["name"] == "own_board:weights" and re.fullmatch("[0-9a-f]{12}", about["source"])
    assert own("own_board:fails").about["source"] == about["source"]


def test_it_is_a_limit_from_both_sides_and_asked_once_for_an_architecture():
    cost = own("own_board:weights")
    low, high = (cost(arch) for arch in (SPACE.smallest, SPACE.biggest))
    (band,) = budgets_of(Search(own_cost="own_board:weights", max_own=(low + 0.6 * (high - low),),
                                min_own=(low + 0.3 * (high - low),)), {}, {})  # fmt: skip
    problem = Problem(SPACE, CLASSES, [band], own=cost)
    rng = np.random.default_rng(0)
    drawn = [problem.sample(band, rng) for _ in range(20)]
    assert all(band.min_own <= cost(arch) <= band.own for arch in drawn)
    import own_board

    before = len(own_board.seen)
    assert all(problem.fits(arch, band) for arch in drawn) and len(own_board.seen) == before
    (line,) = allowed(problem, SPACE.biggest)
    assert line.startswith(band.name) and f"(MIN {low:,.4g}, MAX {high:,.4g})" in line and "own cost" in line
    with pytest.raises(ConfigError, match="config.search.max_own: found .* expected at least"):
        Problem(SPACE, CLASSES, [Budget("b", own=low / 2)], own=cost)


def test_a_search_under_it_finds_a_winner_and_keeps_its_evaluations_when_the_function_changes(tmp_path):
    """What was scored stays true: accuracy depends on no cost."""
    made = []
    for name, limit in (("own_board:weights", 8.0), ("own_board:zero", 1.0)):
        problem = Problem(SPACE, CLASSES, [Budget("b", own=limit)], cost="own", own=own(name))
        journal = Journal(tmp_path / "evaluations.jsonl", {"version": 1})
        race = Race(problem, FakeHeldOut(), journal, 2.0, front=False)
        explore(Search(num_evaluations=20), problem, RandomSearch(problem, 0), race,
                Screening(problem, 4, 0.3, 0), SPACE.biggest, progress=False)  # fmt: skip
        journal.close()
        best = race.best(problem.budgets[0])
        assert problem.cost_of(best.arch) <= limit
        assert best.top1 == max(e.top1 for e in race.evaluations.values()
                                if e.complete and problem.cost_of(e.arch) <= limit)  # fmt: skip
        made.append(race.made)
    assert made[0] > 20 and made[1] < made[0]
    assert not math.isnan(accuracy(best.arch)) and journal.set_aside is None
