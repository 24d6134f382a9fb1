"""Costs, budgets and their names."""

import numpy as np
import pytest
from tiny import tiny_space

from bignas_jax.config.choices import Costs
from bignas_jax.config.options import Search
from bignas_jax.errors import ConfigError
from bignas_jax.search.problem import COSTS, Budget, Problem, allowed, budgets_of, capped
from bignas_jax.spaces.cost import count

SPACE = tiny_space()
MAX, MIN = SPACE.biggest, SPACE.smallest


def problem(*budgets: Budget, **arguments) -> Problem:
    return Problem(SPACE, 7, budgets, **arguments)


def middle(kind: str, part: float = 0.5) -> float:
    least, most = (getattr(count(SPACE, arch, 7), kind) for arch in (MIN, MAX))
    return least + part * (most - least)


@pytest.mark.parametrize("kind", ["macs", "params"])
@pytest.mark.parametrize("part", [0.0, 0.1, 0.5, 1.0])
def test_samples_and_changes_keep_the_budget(kind, part):
    budget = Budget("b", **{kind: middle(kind, part)})
    found = problem(budget)
    rng = np.random.default_rng(0)
    for _ in range(20):
        arch = found.sample(budget, rng)
        assert getattr(count(SPACE, arch, 7), kind) <= middle(kind, part)
        grown = found.grow(arch, budget, rng)
        assert arch in SPACE and grown in SPACE and found.fits(grown, budget)
        assert all(a <= b for a, b in zip(SPACE.indices(arch), SPACE.indices(grown), strict=True))
    assert found.fits(found.shrink(MAX, budget, rng), budget)


def test_grown_architectures_cannot_grow_further():
    budget = Budget("b", macs=middle("macs"))
    found, rng = problem(budget), np.random.default_rng(1)
    genes = list(SPACE.indices(found.grow(MIN, budget, rng)))
    for position, choice in enumerate(SPACE.choices):
        if genes[position] + 1 < len(choice):
            larger = [gene + (n == position) for n, gene in enumerate(genes)]
            assert not found.fits(SPACE.at(larger), budget), position


def test_what_is_kept_is_shrunk_last():
    stage = SPACE.groups["mb2"]
    budget = Budget("b", macs=middle("macs", 0.6))
    shrunk = problem(budget).shrink(MAX, budget, np.random.default_rng(0), keep=stage)
    genes, most = SPACE.indices(shrunk), SPACE.indices(MAX)
    assert all(genes[position] == most[position] for position in stage) and genes != most


def test_several_limits_hold_together():
    budget = Budget("b", macs=middle("macs"), params=middle("params", 0.2), latency_ms=5.0)
    found = problem(budget, latency=lambda arch: 4.0 if arch.resolution == 20 else 6.0)
    rng = np.random.default_rng(0)
    archs = [found.sample(budget, rng) for _ in range(30)]
    assert all(arch.resolution == 20 and count(SPACE, arch, 7).params <= middle("params", 0.2) for arch in archs)
    assert not found.fits(MAX, budget) and found.costs(MIN)["latency_ms"] == 4.0
    assert found.use(MIN, budget) == pytest.approx(
        max(count(SPACE, MIN, 7).macs / middle("macs"), count(SPACE, MIN, 7).params / middle("params", 0.2), 0.8)
    )


def test_a_budget_below_the_smallest_is_refused_with_what_that_costs():
    least = count(SPACE, MIN, 7).macs
    with pytest.raises(ConfigError, match=rf"^config.search.max_macs: found .*expected at least {least},"):
        problem(Budget("b", macs=least - 1.0))
    problem(Budget("b", macs=least))


def test_budgets_of_a_config():
    biggest, smallest = {"macs": 1000.0, "params": 10.0}, {"macs": 200.0, "params": 1.0}
    assert [b.macs for b in budgets_of(Search(), biggest, smallest)] == [300, 500, 700]
    assert [b.name for b in budgets_of(Search(), biggest, smallest)] == ["macs-30pct", "macs-50pct", "macs-70pct"]
    assert [b.limits() for b in budgets_of(Search(cost="params"), biggest, smallest)] == [
        {"params": 3.0}, {"params": 5.0}, {"params": 7.0}]
    assert [b.macs for b in budgets_of(Search(), biggest, {"macs": 301.0})] == [500, 700]
    assert [b.macs for b in budgets_of(Search(), biggest, {"macs": 800.0})] == [1000]
    several = budgets_of(Search(max_macs=(3e8, 6e8), max_params=(5e6,)), biggest, smallest)
    assert several == (Budget("macs-300M-params-5M", macs=3e8, params=5e6),
                       Budget("macs-600M-params-5M", macs=6e8, params=5e6))
    (timed,) = budgets_of(Search(max_latency_ms=(2.5,)), biggest, smallest)
    assert timed == Budget("latency-2.5ms", latency_ms=2.5)
    twice = budgets_of(Search(max_macs=(3e8, 3e8 + 1)), biggest, smallest)
    assert len({b.name for b in twice}) == 2


def test_a_resolution_cap():
    assert capped(SPACE, 0) is SPACE
    assert capped(SPACE, 25).resolution == (20,)
    found = Problem(capped(SPACE, 25), 7, [Budget("b", macs=1e12)])
    assert not found.fits(MAX, found.budgets[0])
    with pytest.raises(ConfigError, match="^config.search.max_resolution: found 19, expected at least 20"):
        capped(SPACE, 19)


def test_every_kind_of_cost_of_the_options_is_counted_and_may_be_a_budget():
    costs = Problem(SPACE, 7, (), latency=lambda arch: 2.0).costs(MAX)
    assert list(costs) == [cost.value for cost in Costs] == list(COSTS)
    for cost in Costs:
        (budget,) = budgets_of(Search(cost=cost.value, **{f"max_{cost}": (5e3,)}), costs, costs)
        assert budget.limits() == {cost.value: 5e3}


@pytest.mark.parametrize("kind", ["macs", "params"])
@pytest.mark.parametrize("part", [0.0, 0.3, 0.6, 0.8])
def test_limits_from_both_sides(kind, part):
    least, most = middle(kind, part), middle(kind, part + 0.1)
    for budget in (Budget("band", **{f"min_{kind}": least, kind: most}), Budget("floor", **{f"min_{kind}": least})):
        found, rng = problem(budget), np.random.default_rng(0)
        for arch in [found.sample(budget, rng) for _ in range(10)]:
            cost = getattr(count(SPACE, arch, 7), kind)
            assert least <= cost and (budget.limits() == {} or cost <= most) and found.fits(arch, budget)
            grown = found.grow(arch, budget, rng)
            assert found.fits(grown, budget) and 0 < found.use(grown, budget) <= 1
        assert not found.fits(MIN, budget) or part == 0
        assert found.fits(MAX, budget) == (not budget.limits())


def test_what_is_asked_for_must_be_allowed():
    most = count(SPACE, MAX, 7).macs
    with pytest.raises(ConfigError, match=rf"search.min_macs: found .*expected at most {most}, what the biggest arch"):
        problem(Budget("b", min_macs=most + 1.0))
    between = round(middle("params"))
    with pytest.raises(ConfigError, match=rf"found {between + 9}, expected at most {between}, config.search.max_p"):
        problem(Budget("b", min_params=between + 9.0, params=float(between)))
    problem(Budget("b", min_macs=float(most)))


def test_names_of_limits_from_both_sides():
    costs = {"macs": 1e9, "params": 1e7}
    (band,) = budgets_of(Search(min_macs=(2e8,), max_macs=(3e8,)), costs, costs)
    assert band == Budget("macs-200M-to-300M", macs=3e8, min_macs=2e8) and band.floors() == {"macs": 2e8}
    first, second = budgets_of(Search(min_params=(1e6, 2e6), max_macs=(3e8,)), costs, costs)
    assert (first.name, second.name) == ("macs-300M-params-from-1M", "macs-300M-params-from-2M")
    assert second.limits() == {"macs": 3e8} and second.floors() == {"params": 2e6}


def test_what_a_budget_allows_is_said():
    """With the costs of the two ends, and the share of all architectures, counted one by one."""
    budget = Budget("band", macs=middle("macs", 0.5), min_macs=middle("macs", 0.2))
    (line,) = allowed(problem(budget), MAX)
    low, high = (count(SPACE, arch, 7).macs / 1e6 for arch in (MIN, MAX))
    assert f"M multiply-adds (MIN {low:,.4g}, MAX {high:,.4g}); " in line and line.startswith("band: ")
    said = int(line.split("; ")[1].split(" of ")[0]) / 200
    rng = np.random.default_rng(5)
    drawn = [count(SPACE, SPACE.sample(rng), 7).macs for _ in range(2000)]
    assert said == pytest.approx(np.mean([budget.min_macs <= macs <= budget.macs for macs in drawn]), abs=0.12)
    (line,) = allowed(problem(Budget("slow", latency_ms=9.0), latency=lambda arch: float(arch.resolution) / 4), MAX)
    assert line == "slow: 5 to 6.5 ms (MIN 5, MAX 6.5)"
