"""The accuracy predictor, on accuracies made up from the choices."""

import dataclasses
import warnings

import numpy as np
import pytest
from landscape import SPACE, accuracy
from scipy.stats import kendalltau

from bignas_jax.nets.slicing import single
from bignas_jax.spaces.cost import count
from bignas_jax.spaces.predictor import Predictor


def sample(number: int, seed: int = 0, space=SPACE) -> list:
    rng = np.random.default_rng(seed)
    found = {}
    while len(found) < number:
        found[space.sample(rng)] = None
    return list(found)


def noisy(archs, seed: int = 0) -> np.ndarray:
    """Accuracies as 1,000 held-out images show them."""
    return np.random.default_rng(seed).binomial(1000, [accuracy(arch) for arch in archs]) / 1000


def test_it_ranks_architectures_that_it_never_saw_better_than_their_cost_does():
    archs = sample(260)
    fitted, unseen = archs[:60], archs[60:]
    predictor = Predictor(SPACE)
    predictor.fit(fitted, noisy(fitted))
    truth = [accuracy(arch) for arch in unseen]
    tau = kendalltau(predictor.predict(unseen), truth).statistic
    by_cost = kendalltau([count(SPACE, arch, 10).macs for arch in unseen], truth).statistic
    assert tau > 0.7 and tau > by_cost + 0.1, (tau, by_cost)


@pytest.mark.parametrize("number, least", [(30, 0.5), (100, 0.75), (300, 0.8)])
def test_more_evaluations_rank_better_and_tau_says_how_well(number, least):
    archs = sample(number)
    unseen = list(set(SPACE.enumerate()) - set(archs))
    scores = [accuracy(arch) for arch in archs]
    predictor = Predictor(SPACE)
    predicted = predictor.fit(archs, scores).predict(unseen)
    tau = kendalltau(predicted, [accuracy(arch) for arch in unseen]).statistic
    assert tau > least
    assert predictor.tau(archs, scores) == pytest.approx(tau, abs=0.15)


def test_predictions_are_on_the_scale_of_the_scores():
    archs = sample(160)
    predictor = Predictor(SPACE)
    predictor.fit(archs[:80], [accuracy(arch) for arch in archs[:80]])
    truth = np.array([accuracy(arch) for arch in archs[80:]])
    assert np.abs(predictor.predict(archs[80:]) - truth).mean() < 0.3 * truth.std()


def test_a_choice_that_is_best_in_the_middle_is_learnt():
    """Resolution 14 of 12, 14 and 16 is the best here: no line through its place says so."""
    archs = sample(120)
    scores = [0.9 if arch.resolution == 14 else 0.8 for arch in archs]
    predictor = Predictor(SPACE)
    predictor.fit(archs[:60], scores[:60])
    np.testing.assert_allclose(predictor.predict(archs[60:]), scores[60:], atol=0.02)


def test_tau_is_that_of_evaluations_held_out_of_the_fit():
    archs = sample(60)
    predictor = Predictor(SPACE)
    real = predictor.tau(archs, noisy(archs), seed=0)
    assert 0.5 < real < 0.95
    # Numbers that follow from nothing: a fit reproduces some of them, a prediction none.
    random = np.random.default_rng(1).permutation(noisy(archs))
    predictor.fit(archs, random)
    assert kendalltau(predictor.predict(archs), random).statistic > 0.5
    assert abs(predictor.tau(archs, random, seed=0)) < 0.3


def test_tau_does_not_change_what_is_predicted():
    archs = sample(40)
    predictor = Predictor(SPACE)
    predictor.fit(archs, noisy(archs))
    before = predictor.predict(archs)
    predictor.tau(archs[:20], -noisy(archs[:20]), seed=3)
    np.testing.assert_array_equal(predictor.predict(archs), before)


def test_the_same_evaluations_give_the_same_bits():
    archs = sample(40)
    first, second = Predictor(SPACE), Predictor(SPACE)
    for predictor in (first, second):
        predictor.fit(archs, noisy(archs))
    np.testing.assert_array_equal(first.predict(sample(50, 7)), second.predict(sample(50, 7)))
    archs = archs[:16]
    taus = [predictor.tau(archs, noisy(archs), seed) for predictor in (first, second) for seed in (0, 1)]
    assert taus[:2] == taus[2:] and taus[0] != taus[1]


@pytest.mark.parametrize("number", [1, 2, 3, 7])
def test_few_evaluations_are_fitted_and_tell_no_tau(number):
    archs = sample(number)
    predictor = Predictor(SPACE)
    predictor.fit(archs, noisy(archs))
    assert np.isfinite(predictor.predict(sample(20, 5))).all()
    assert predictor.tau(archs, noisy(archs), seed=0) == predictor.tau([], [], seed=0) == 0.0


def test_the_fewest_evaluations_that_tell_a_tau():
    archs = sorted(sample(8), key=accuracy)
    assert Predictor(SPACE).tau(archs, np.linspace(0.6, 0.9, 8), seed=0) != 0.0


def test_equal_scores_tell_no_tau_and_are_predicted():
    archs = sample(30)
    predictor = Predictor(SPACE)
    predictor.fit(archs, [0.25] * 30)
    np.testing.assert_array_equal(predictor.predict(sample(5, 9)), 0.25)
    assert predictor.tau(archs, [0.25] * 30, seed=0) == 0.0
    # All but one are equal, so that most folds see no difference.
    assert np.isfinite(predictor.tau(archs, [0.25] * 29 + [0.5], seed=0))


def test_choices_of_one_value_are_left_out():
    fixed = dataclasses.replace(SPACE, resolution=(16,))
    fewer, more = (Predictor(space).features([SPACE.biggest]).shape[1] for space in (fixed, SPACE))
    assert fewer == more - 4  # a place and a one-hot of three
    archs = sample(40, space=fixed)
    predictor = Predictor(fixed)
    predictor.fit(archs, noisy(archs))
    assert np.isfinite(predictor.predict(archs)).all()


def test_a_space_without_a_choice():
    alone = single(SPACE, SPACE.smallest)
    predictor = Predictor(alone)
    predictor.fit([alone.biggest] * 9, np.linspace(0.5, 0.6, 9))
    np.testing.assert_allclose(predictor.predict([alone.biggest]), [0.55])
    assert predictor.predict([]).shape == (0,)
    assert -1 <= predictor.tau([alone.biggest] * 9, np.linspace(0.5, 0.6, 9), seed=0) <= 1


def test_features_lie_between_the_smallest_and_the_biggest():
    predictor = Predictor(SPACE)
    features = predictor.features(sample(100))
    assert features.min() == 0 and features.max() <= 1
    low, high = predictor.features([SPACE.smallest, SPACE.biggest])
    assert low[-2:].tolist() == [0, 0] and high[-2:].tolist() == [1, 1]
    # The only choice of three values, the resolution, also stands as a one-hot.
    assert features.shape[1] == sum(len(choice) > 1 for choice in SPACE.choices) + 3 + 2
    assert len(np.unique(predictor.features(list(SPACE.enumerate())), axis=0)) == SPACE.size


def test_nothing_to_fit_and_malformed_scores_are_refused():
    predictor = Predictor(SPACE)
    with pytest.raises(RuntimeError, match="found no fit"):
        predictor.predict(sample(3))
    with pytest.raises(ValueError, match="found no evaluation"):
        predictor.fit([], [])
    with pytest.raises(ValueError, match="found 2 scores, expected 3"):
        predictor.fit(sample(3), [0.1, 0.2])
    with pytest.raises(ValueError, match="not finite"):
        predictor.tau(sample(9), [float("nan")] * 9, seed=0)
    other = dataclasses.replace(SPACE.biggest, resolution=99)
    with pytest.raises(ValueError, match="resolution: found 99"):
        predictor.fit(sample(2), [0.1, 0.2]).predict([other])


def test_no_warning_reaches_the_user():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for number in (2, 8, 40):
            archs = sample(number)
            assert np.isfinite(Predictor(SPACE).fit(archs, noisy(archs)).predict(archs)).all()
