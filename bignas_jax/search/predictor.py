"""A predictor of accuracies from choices, fitted to the evaluations of a search (Cai et al., 2020, section 3.3).

Once-for-All fits a small neural network to 16,000 evaluations. A search here has tens or hundreds, whose accuracies
have a standard error of about a percent, so the predictor is the mean of two models that do with few: a Gaussian
process, which is smooth and knows the noise, and gradient boosting, which sees thresholds.
"""

import warnings
from collections.abc import Sequence

import numpy as np
from scipy.stats import kendalltau
from sklearn.ensemble import GradientBoostingRegressor, VotingRegressor
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel
from sklearn.model_selection import KFold

from bignas_jax.spaces.architecture import Architecture
from bignas_jax.spaces.cost import count
from bignas_jax.spaces.space import Space

LEAST = 8  # evaluations that say anything of a rank correlation
FOLDS = 5


class Predictor:
    """Predicts scores of a space's architectures. The same evaluations in the same order give the same predictions.

    Args:
      space: the search space.
    """

    # Chosen on a CIFAR-10 supernet (configs/cifar10.py): Kendall's tau on evaluations not fitted to, mean of 16
    # random splits of 181 evaluations (60 uniform, 121 of a search), each on 1,251 held-out images.
    #   fitted to                           30     60     100    130
    #   this mean of two                    0.701  0.760  0.775  0.790
    #   Gaussian process alone              0.679  0.742  0.761  0.781
    #   gradient boosting alone             0.675  0.744  0.761  0.775
    # and in a comparison on 8 of these splits, where the mean of two had 0.699, 0.764, 0.776 and 0.797:
    #   ridge regression, pairwise terms    0.670  0.722  0.742  0.759
    #   extra trees                         0.608  0.689  0.707  0.729

    def __init__(self, space: Space):
        self.space = space
        self._model: VotingRegressor | None = None
        self._constant: float | None = None  # the mean score; None before a fit

    def fit(self, archs: Sequence[Architecture], scores: Sequence[float]) -> "Predictor":
        """Fits to evaluations and returns itself; what an earlier fit learned is forgotten.

        Args:
          archs: of the space. scores: one each, the higher the better (top-1, 0..1).
        Raises:
          ValueError: there is no evaluation, their numbers differ, a score is not finite, or an architecture is not
            in the space.
        """
        values = _checked(archs, scores)
        if not len(values):
            raise ValueError("predictor: found no evaluation to fit to, expected at least one")
        self._constant = float(values.mean())
        features = self.features(archs)
        # Where nothing differs, neither model has anything to learn.
        differ = np.ptp(values) > 0 and np.ptp(features, axis=0).any()
        self._model = _fitted(features, values) if differ else None
        return self

    def predict(self, archs: Sequence[Architecture]) -> np.ndarray:
        """Predicted scores, float64 [N].

        Raises:
          ValueError: an architecture is not in the space. RuntimeError: nothing was fitted before.
        """
        if self._constant is None:
            raise RuntimeError("predictor: found no fit, expected a call of fit before predict")
        features = self.features(archs)
        if self._model is None or not len(features):
            return np.full(len(features), self._constant)
        return self._model.predict(features)

    def tau(self, archs: Sequence[Architecture], scores: Sequence[float], seed: int = 0) -> float:
        """Kendall's rank correlation (tau-b) of scores with predictions that come from fits without them.

        From cross-validation in `FOLDS` folds, drawn with `seed`; does not change what `predict` gives.

        Returns:
          -1..1; 0 where the evaluations cannot tell: fewer than `LEAST`, or all scores the same.
        Raises:
          ValueError: as `fit` raises.
        """
        values = _checked(archs, scores)
        if len(values) < LEAST or np.ptp(values) == 0:
            return 0.0
        predicted = np.empty_like(values)
        for rest, held_out in KFold(FOLDS, shuffle=True, random_state=seed).split(values):
            fold = Predictor(self.space)
            fold.fit([archs[n] for n in rest], values[rest])
            predicted[held_out] = fold.predict([archs[n] for n in held_out])
        found = float(kendalltau(predicted, values).statistic)
        return 0.0 if np.isnan(found) else found

    def features(self, archs: Sequence[Architecture]) -> np.ndarray:
        """float64 [N, F], each 0..1: every choice by its place among its values, and as a one-hot where it has more
        than two; the logarithms of multiply-adds and parameters, between those of the smallest and the biggest.

        Raises:
          ValueError: an architecture is not in the space.
        """
        genes = np.array([self.space.indices(arch) for arch in archs], np.int64)
        genes = genes.reshape(len(archs), len(self.space.choices))
        columns = []
        active = np.array([self.space.active(own) for own in genes], bool).reshape(genes.shape)
        for gene, runs, choice in zip(genes.T, active.T, self.space.choices, strict=True):
            # A block that does not run stands below the smallest value, and has no one-hot.
            lowest = 0 if choice.block is None else 1
            if len(choice) > 1:
                place = np.where(runs, gene + lowest, 0) / (len(choice) - 1 + lowest)
                columns.append(place[:, None])
            if len(choice) > 2:
                columns.append((gene[:, None] == np.arange(len(choice))) & runs[:, None])
        least, most = self._log_costs([self.space.smallest, self.space.biggest])
        differ = most > least
        columns.append(((self._log_costs(archs) - least) / np.where(differ, most - least, 1))[:, differ])
        return np.concatenate(columns, axis=1).astype(np.float64)

    def _log_costs(self, archs: Sequence[Architecture]) -> np.ndarray:
        # One class: how many the classifier has is the same for all and known elsewhere.
        costs = [count(self.space, arch, num_classes=1) for arch in archs]
        return np.log(np.array([(cost.macs, cost.params) for cost in costs], np.float64).reshape(len(costs), 2))


def _checked(archs: Sequence[Architecture], scores: Sequence[float]) -> np.ndarray:
    values = np.asarray(scores, np.float64)
    if values.shape != (len(archs),):
        raise ValueError(f"predictor: found {values.size} scores, expected {len(archs)}, one an architecture")
    if not np.isfinite(values).all():
        raise ValueError("predictor: found a score that is not finite, expected fractions of images")
    return values


def _fitted(features: np.ndarray, values: np.ndarray) -> VotingRegressor:
    # Lengths and noise are found by the likelihood, within bounds that keep it well posed with few evaluations.
    kernel = ConstantKernel(1.0, (1e-2, 1e2)) * Matern(2.0, (0.3, 30.0), nu=2.5) + WhiteKernel(0.3, (1e-3, 10.0))
    smooth = GaussianProcessRegressor(kernel, normalize_y=True)
    steps = GradientBoostingRegressor(subsample=0.8, random_state=0)
    with warnings.catch_warnings():
        # A length at its bound is an answer: the scores look linear, or like noise.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return VotingRegressor([("smooth", smooth), ("steps", steps)]).fit(features, values)
