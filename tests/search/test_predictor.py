"""The accuracy predictor, on a made-up landscape and on spaces with nothing to learn."""

import numpy as np
import pytest
from landscape import SPACE, accuracy
from scipy.stats import kendalltau

from bignas_jax.search.predictor import Predictor


def draw(count, seed=0):
    rng = np.random.default_rng(seed)
    archs = list(dict.fromkeys(SPACE.sample(rng) for _ in range(3 * count)))[:count]
    return archs, [accuracy(arch) for arch in archs]


@pytest.mark.parametrize("count, least", [(30, 0.5), (100, 0.75), (300, 0.8)])
def test_it_ranks_architectures_it_has_not_seen(count, least):
    archs, scores = draw(count)
    predictor = Predictor(SPACE)
    seen = set(archs)
    others = [arch for arch in SPACE.enumerate() if arch not in seen]
    truth = [accuracy(arch) for arch in others]
    tau = kendalltau(predictor.fit(archs, scores).predict(others), truth).statistic
    assert tau > least
    assert abs(predictor.tau(archs, scores) - tau) < 0.15, "what it says of itself is about what it is"


def test_random_scores_are_not_ranked():
    archs, _ = draw(100)
    scores = np.random.default_rng(0).random(100)
    assert abs(Predictor(SPACE).tau(archs, scores)) < 0.2


def test_the_same_evaluations_give_the_same_numbers():
    archs, scores = draw(60)
    first, again = (Predictor(SPACE).fit(archs, scores).predict(archs) for _ in range(2))
    assert (first == again).all()
    assert Predictor(SPACE).tau(archs, scores, 1) == Predictor(SPACE).tau(archs, scores, 1)
    assert Predictor(SPACE).tau(archs, scores, 1) != Predictor(SPACE).tau(archs, scores, 2)


@pytest.mark.parametrize("count", [0, 1, 7])
def test_too_few_evaluations_have_no_rank(count):
    assert Predictor(SPACE).tau(*draw(count)) == 0.0


def test_equal_scores():
    archs, _ = draw(20)
    predictor = Predictor(SPACE)
    assert predictor.tau(archs, [0.5] * 20) == 0.0
    assert predictor.fit(archs, [0.5] * 20).predict(archs) == pytest.approx(0.5)
    assert predictor.predict([]).shape == (0,)


def test_predictions_without_a_fit_are_refused():
    with pytest.raises(RuntimeError, match="found no fitted predictor"):
        Predictor(SPACE).predict([SPACE.biggest])
