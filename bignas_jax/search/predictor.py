"""A regression from an architecture to its accuracy (Cai et al., 2020, section 3.3, train a network for it).

A search has tens to a few hundred evaluations, and their noise is that of a few hundred or thousand images: a Bayesian
ridge regression on the choices, their squares and products is enough, and needs no settings.
"""

from collections.abc import Sequence

import numpy as np
from scipy.stats import kendalltau
from sklearn.linear_model import BayesianRidge
from sklearn.model_selection import KFold
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import PolynomialFeatures, StandardScaler

from bignas_jax.architecture import Architecture
from bignas_jax.cost import count
from bignas_jax.space import SearchSpace

FOLDS = 5
LEAST = 8  # evaluations for a rank correlation


class Predictor:
    """Predicts the held-out accuracy of architectures of a space."""

    def __init__(self, space: SearchSpace):
        self._space = space
        self._open = [n for n, (_, values) in enumerate(space.choices) if len(values) > 1]
        self._model: Pipeline | None = None

    def fit(self, archs: Sequence[Architecture], scores: Sequence[float]) -> "Predictor":
        """Fits to evaluated architectures; what an earlier fit learned is forgotten."""
        self._model = _model().fit(self._features(archs), np.asarray(scores, float))
        return self

    def predict(self, archs: Sequence[Architecture]) -> np.ndarray:
        """Accuracies, float64 [len(archs)].

        Raises:
          RuntimeError: it was not fitted.
        """
        if self._model is None:
            raise RuntimeError("predict: found no fitted predictor, expected a call of fit before")
        return self._model.predict(self._features(archs)) if len(archs) else np.zeros(0)

    def tau(self, archs: Sequence[Architecture], scores: Sequence[float], seed: int = 0) -> float:
        """Kendall's rank correlation of scores with predictions, each made by a fit without its own fold.

        From -1 to 1; 0.0 where there are too few evaluations or all scores are equal. Fits the predictor to nothing.
        """
        scores = np.asarray(scores, float)
        if len(scores) < LEAST or np.ptp(scores) == 0:
            return 0.0
        features, predicted = self._features(archs), np.zeros(len(scores))
        for rest, fold in KFold(FOLDS, shuffle=True, random_state=seed).split(features):
            predicted[fold] = _model().fit(features[rest], scores[rest]).predict(features[fold])
        tau = kendalltau(scores, predicted).statistic
        return float(tau) if np.isfinite(tau) else 0.0

    def _features(self, archs: Sequence[Architecture]) -> np.ndarray:
        """Each open choice from 0 to 1, then log multiply-adds and log parameters: float64 [archs, features]."""
        rows = []
        for arch in archs:
            genes = self._space.indices(arch)
            cost = count(self._space, arch, 2)
            choices = [genes[n] / (len(self._space.choices[n][1]) - 1) for n in self._open]
            rows.append([*choices, np.log(cost.macs), np.log(cost.params)])
        return np.array(rows, float).reshape(len(archs), len(self._open) + 2)


def _model() -> Pipeline:
    return make_pipeline(StandardScaler(), PolynomialFeatures(2, include_bias=False), StandardScaler(), BayesianRidge())
