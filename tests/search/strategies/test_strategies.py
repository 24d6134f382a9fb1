"""The strategies on a space that can be enumerated."""

import numpy as np
import pytest
from landscape import SPACE, accuracy, problem

from bignas_jax.search.problem import Budget, Problem
from bignas_jax.search.strategies.ageing_evolution import AgeingEvolution
from bignas_jax.search.strategies.asng import ASNG, Distribution
from bignas_jax.search.strategies.coarse_to_fine import CoarseToFine, skeletons
from bignas_jax.search.strategies.evolution import Evolution
from bignas_jax.search.strategies.pareto import Pareto, reference_directions
from bignas_jax.search.strategies.random_search import RandomSearch
from bignas_jax.search.strategies.strategy import best_first

EVALUATIONS = 115  # 15% of 768
FRACTIONS = (0.35, 0.5, 0.7)
MAKERS = {
    "random": lambda problem, seed: RandomSearch(problem, seed),
    "coarse_to_fine": lambda problem, seed: CoarseToFine(problem, seed, EVALUATIONS),
    "evolution": lambda problem, seed: Evolution(problem, seed, 32, 0.15),
    "pareto": lambda problem, seed: Pareto(problem, seed, 14, 0.15),
    "ageing_evolution": lambda problem, seed: AgeingEvolution(problem, seed, 32, 0.15),
    "asng": lambda problem, seed: ASNG(problem, seed),
}


def drive(strategy, evaluations=EVALUATIONS, count=12, score=accuracy) -> dict:
    scores = {}
    for _ in range(1000):
        asked = strategy.ask(min(count, evaluations - len(scores)))
        if not asked:
            break
        told = {p.arch: score(p.arch) for p in asked}
        strategy.tell(told)
        scores |= told
        if len(scores) >= evaluations:
            break
    return scores


@pytest.fixture(scope="module")
def truth() -> dict:
    return {arch: accuracy(arch) for arch in SPACE.enumerate()}


def regret(scores, truth, searched) -> list[float]:
    """Accuracy short of the true best, for each budget."""
    bests = [best_first(truth, searched, budget)[0] for budget in searched.budgets]
    found = [best_first(scores, searched, budget)[0] for budget in searched.budgets]
    return [truth[b] - truth[f] for b, f in zip(bests, found, strict=True)]


def test_the_space_is_what_the_tests_say():
    assert SPACE.size == 768


@pytest.mark.parametrize("name", [name for name in MAKERS if name != "random"])
def test_each_finds_nearly_the_best_with_few_evaluations_and_more_than_random_search(name, truth):
    searched = problem(*FRACTIONS, bounded=False)
    ours, random = (
        [regret(drive(MAKERS[n](searched, seed)), truth, searched) for seed in range(5)] for n in (name, "random")
    )
    assert np.mean(ours) <= 0.005, ours
    assert np.mean(ours) < np.mean(random)


@pytest.mark.parametrize("name", MAKERS)
def test_the_same_seed_gives_the_same_course_and_another_seed_another(name):
    searched = problem(*FRACTIONS)
    first, again, other = (list(drive(MAKERS[name](searched, seed))) for seed in (1, 1, 2))
    assert first == again and first != other


@pytest.mark.parametrize("name", MAKERS)
def test_what_is_asked_is_in_the_space_and_within_a_named_budget(name):
    searched = problem(0.3, 0.6)
    for arch in drive(MAKERS[name](searched, 0)):
        assert arch in SPACE and any(searched.fits(arch, budget) for budget in searched.budgets)


@pytest.mark.parametrize("name", MAKERS)
def test_all_asks_end_once_everything_is_known(name):
    searched = problem(0.2)  # few architectures
    within = [arch for arch in SPACE.enumerate() if searched.fits(arch, searched.budgets[0])]
    scores = drive(MAKERS[name](searched, 0), evaluations=10_000, count=8)
    assert set(scores) <= set(within) | {SPACE.biggest, SPACE.smallest}
    assert len(scores) >= 0.5 * len(within)


def test_no_predictor_screens_the_baseline():
    asked = MAKERS["random"](problem(*FRACTIONS), 0).ask(12, pool=4)
    assert len(asked) == 12 and not any(p.screen for p in asked)


def test_evolution_goes_on_where_mutations_find_nothing_new():
    searched = problem(0.7)
    assert len(drive(Evolution(searched, 0, 8, 0.0), evaluations=150)) == 150


@pytest.mark.parametrize("name", [name for name in MAKERS if name != "random"])
def test_a_pool_asks_for_more_and_those_not_told_are_forgotten(name):
    searched = problem(*FRACTIONS)
    strategy = MAKERS[name](searched, 0)
    while not (asked := strategy.ask(12))[0].screen:
        strategy.tell({p.arch: accuracy(p.arch) for p in asked})
    strategy.tell({p.arch: accuracy(p.arch) for p in asked})
    strategy.tell({p.arch: accuracy(p.arch) for p in strategy.ask(12)})
    asked = strategy.ask(12, pool=4)
    assert 12 < len(asked) <= 48
    strategy.tell({asked[0].arch: accuracy(asked[0].arch)})
    assert strategy.ask(12)


def test_nsga2_covers_the_whole_range_of_costs():
    searched = problem(*FRACTIONS, bounded=False)
    scores = drive(MAKERS["pareto"](searched, 0))
    costs = sorted(searched.cost_of(arch) for arch in scores)
    all_costs = sorted(searched.cost_of(arch) for arch in SPACE.enumerate())
    assert costs[0] == all_costs[0] and costs[-1] == all_costs[-1]
    assert max(np.diff(costs)) < 0.15 * (costs[-1] - costs[0])


def test_skeletons_are_alike_in_all_stages():
    found = skeletons(problem(0.5))
    assert len(found) == len(set(found)) and {SPACE.biggest, SPACE.smallest} <= set(found)
    for arch in found:
        genes = SPACE.indices(arch)
        for kind in ("depth", "kernel_size", "expand_ratio"):
            levels = {gene / (len(choice) - 1) for gene, choice in zip(genes, SPACE.choices, strict=True)
                      if choice.kind == kind and len(choice) > 1}
            assert len(levels) <= 1, (arch, kind)


def test_mutations_of_coarse_to_fine_go_part_by_part():
    searched = problem(0.6)
    strategy, phases = CoarseToFine(searched, 0, EVALUATIONS), []
    for _ in range(40):
        asked = strategy.ask(12)
        if not asked:
            break
        phases.append(asked[0].phase)
        strategy.tell({p.arch: accuracy(p.arch) for p in asked})
    parts = [phase.split(",")[0] for phase in phases if phase != "grid"]
    assert phases[0] == "grid" and parts[:4] == ["resolution", "mb1", "mb2", "mb3"]


def test_the_oldest_die_and_not_the_worst():
    searched = problem(0.7)
    strategy = AgeingEvolution(searched, 0, 8, 0.0)
    within = [arch for arch in SPACE.enumerate() if searched.fits(arch, searched.budgets[0])][:40]
    best, young = within[0], within[1:9]
    strategy.tell({best: 1.0})
    strategy.tell(dict.fromkeys(young, 0.5))  # as many as the population has places

    def near(arch, others):
        genes = SPACE.indices(arch)
        return min(sum(a != b for a, b in zip(genes, SPACE.indices(o), strict=True)) for o in others)

    searched.grow = lambda arch, *_, **__: arch
    children = [proposal.arch for proposal in strategy.ask(6)]
    assert all(near(child, young) == 1 for child in children)
    strategy.tell(dict.fromkeys(young[:1], 1.0))  # told again: no birth
    assert best not in strategy._alive[searched.budgets[0]] and len(strategy._alive[searched.budgets[0]]) == 8


def test_the_natural_gradient_finds_what_is_good_and_grows_its_steps_on_the_way():
    rng, found = np.random.default_rng(0), Distribution([2, 3, 1, 4])
    start = found.step
    for _ in range(60):
        draws = [found.sample(rng) for _ in range(6)]
        scores = np.array([2.0 * d[0] + d[1] - d[3] for d in draws])
        found.learn(draws, scores - scores.mean())
    p = found.probabilities
    assert p[0][1] > 0.7 and p[1][2] > 0.45 and p[3][0] > 0.5 and p[2][0] == 1  # no value gets less than its floor
    assert all(np.isclose(q.sum(), 1) and q.min() > 0 for q in p)
    noisy = Distribution([2, 3, 1, 4])
    for _ in range(60):
        noisy.learn([noisy.sample(rng) for _ in range(6)], rng.permutation([1, 1, 0, 0, -1, -1]))
    assert found.step > noisy.step and start > noisy.step


def test_a_choice_that_does_not_matter_is_not_learned():
    found = Distribution([2, 2])
    found.learn([[0, None], [1, None]], np.array([1.0, -1.0]))
    assert found.probabilities[0][0] > 0.5 and found.probabilities[1].tolist() == [0.5, 0.5]


@pytest.mark.parametrize("name", MAKERS)
def test_narrow_limits_from_both_sides_are_searched(name):
    """Between 34 and 36% of MAX: 48 of 768 architectures, and no skeleton of the grid."""
    macs = problem().costs(SPACE.biggest)["macs"]
    band = Problem(SPACE, 10, [Budget("band", macs=0.36 * macs, min_macs=0.34 * macs)])
    inside = [accuracy(arch) for arch in SPACE.enumerate() if band.fits(arch, band.budgets[0])]
    assert len(inside) == 48 and not any(band.fits(arch, band.budgets[0]) for arch in skeletons(band))
    found = best_first(drive(MAKERS[name](band, 1), evaluations=40), band, band.budgets[0])
    assert len(found) >= 10 and sum(accuracy(found[0]) >= other for other in inside) >= 40


# ---- fronts over several costs


def volume(scores, searched) -> float:
    """The share of the box between the extremes that the scored architectures beat, drawn point by point."""
    points = np.array([(1 - top1, *searched.costs_of(arch)) for arch, top1 in scores.items()])
    low = np.array([0.05, *searched.costs_of(SPACE.smallest)])
    high = np.array([0.4, *searched.costs_of(SPACE.biggest)])
    points = (points - low) / (high - low)
    drawn = np.random.default_rng(0).random((4000, points.shape[1]))
    return float(np.mean([(points <= one).all(1).any() for one in drawn]))


@pytest.mark.parametrize("costs", ["macs,params", "macs,params,latency_ms"])
def test_a_front_over_several_costs_is_nearly_that_of_all_architectures(costs, truth):
    """It beats random search, and loses little to the whole space."""
    searched = problem(0.5, cost=costs, bounded=False, latency=lambda arch: sum(arch.depth) + arch.resolution / 16)
    whole = volume(truth, searched)
    found = [volume(drive(Pareto(searched, seed, 14, 0.15)), searched) for seed in range(3)]
    random = [volume(drive(RandomSearch(searched, seed)), searched) for seed in range(3)]
    assert np.mean(found) > np.mean(random) and np.mean(found) > 0.93 * whole
    assert len(drive(Pareto(searched, 0, 14, 0.15), 40)) >= 40


def test_several_costs_take_the_same_course_again():
    searched = problem(0.5, cost="macs,params")
    first, second = (list(drive(Pareto(searched, 4, 14, 0.15), 60)) for _ in range(2))
    assert first == second and all(any(searched.fits(a, b) for b in searched.budgets) for a in first)


@pytest.mark.parametrize("objectives, population, number", [(3, 14, 10), (3, 15, 15), (4, 14, 10), (4, 3, 4)])
def test_there_are_no_more_directions_than_a_population_follows(objectives, population, number):
    """Das and Dennis, 1998: with p parts, C(objectives + p - 1, p) of them."""
    found = reference_directions(objectives, population)
    assert found.shape == (number, objectives)
    np.testing.assert_allclose(found.sum(1), 1)
