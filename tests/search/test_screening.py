"""Screening: which proposals are worth a score, and when the predictor is not to be trusted."""

import numpy as np
import pytest
from landscape import SPACE, FakeHeldOut, accuracy, problem

from bignas_jax.search.journal import Journal
from bignas_jax.search.race import Race
from bignas_jax.search.screening import LEAST, Screening
from bignas_jax.search.strategies.strategy import Proposal


@pytest.fixture(scope="module")
def scores():
    rng = np.random.default_rng(0)
    return {arch: accuracy(arch) for arch in (SPACE.sample(rng) for _ in range(70))}


def make(searched, min_tau=0.3, pool=4):
    return Screening(searched, pool, min_tau, seed=0)


def make_race(tmp_path, searched):
    return Race(searched, FakeHeldOut(), Journal(tmp_path / "j.jsonl", {}), 2.0, front=False)


def others(scores, count=48):
    rng = np.random.default_rng(1)
    archs = dict.fromkeys(SPACE.sample(rng) for _ in range(10 * count))
    return [Proposal(arch, "test") for arch in archs if arch not in scores][:count]


def test_the_better_ones_are_kept(scores, tmp_path):
    searched = problem(1.0)
    screening, race = make(searched), make_race(tmp_path, searched)
    assert screening.pool == 1
    screening.learn(scores)
    assert screening.pool == 4 and screening.history[0]["used"] and screening.history[0]["tau"] > 0.5
    proposals = others(scores)
    kept = screening.select(proposals, race, 12)
    assert len(kept) == 12 and screening.rounds == 1
    left = [accuracy(p.arch) for p in proposals if p not in kept]
    assert np.mean([accuracy(p.arch) for p in kept]) > np.mean(left) + 0.02


def test_each_budget_keeps_its_share(scores, tmp_path):
    searched = problem(0.35, 1.0)
    screening = make(searched)
    screening.learn(scores)
    proposals = others(scores)
    kept = screening.select(proposals, make_race(tmp_path, searched), 12)

    def cheap(some):
        return sum(searched.fits(p.arch, searched.budgets[0]) for p in some)

    assert 2 < cheap(proposals) < 46
    assert cheap(kept) == pytest.approx(12 * cheap(proposals) / len(proposals), abs=1.5)


def test_what_must_not_be_screened_is_kept(scores, tmp_path):
    searched = problem(1.0)
    screening = make(searched)
    screening.learn(scores)
    grid = [Proposal(p.arch, "grid", screen=False) for p in others(scores, 20)]
    assert screening.select(grid, make_race(tmp_path, searched), 12) == grid


def test_a_predictor_that_ranks_badly_is_not_used(scores, tmp_path):
    searched = problem(1.0)
    screening, random = make(searched), np.random.default_rng(0)
    screening.learn({arch: random.random() for arch in scores})
    assert screening.history[0]["used"] is False and screening.pool == 1
    proposals = others(scores, 12)
    assert screening.select(proposals, make_race(tmp_path, searched), 12) == proposals and screening.rounds == 0


def test_it_falls_back_when_the_rank_correlation_falls(scores, tmp_path):
    searched, random = problem(1.0), np.random.default_rng(0)
    screening = make(searched)
    some = dict(list(scores.items())[:40])
    screening.learn(some)
    assert screening.pool == 4
    screening.learn({arch: random.random() for arch in scores})
    assert screening.pool == 1 and [h["used"] for h in screening.history] == [True, False]


def test_it_is_not_fitted_to_few_or_to_hardly_more(scores):
    screening = make(problem(1.0))
    screening.learn(dict(list(scores.items())[: LEAST - 1]))
    assert screening.history == []
    for count in (30, 31, 40):
        screening.learn(dict(list(scores.items())[:count]))
    assert [h["evaluations"] for h in screening.history] == [30, 40]
