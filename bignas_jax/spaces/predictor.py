"""A predictor of accuracies from choices, fitted to the evaluations of a search (Cai et al., 2020, section 3.3).

Once-for-All fits a small neural network to 16,000 evaluations. A search here has tens or hundreds. Their accuracies
have a standard error of about a percent. So the predictor is the mean of two models that need few evaluations: a
Gaussian process, which is smooth and models the noise, and gradient boosting, which finds thresholds.
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

LEAST = 8  # evaluations; with fewer, a rank correlation says nothing
FOLDS = 5


class Predictor:
    """Predicts scores of a space's architectures. The same evaluations in the same order give the same predictions.

    Args:
      space: the search space.
    """

    # The two models were chosen on a CIFAR-10 supernet (configs/cifar10.py). The figures are Kendall's tau on
    # evaluations that the model was not fitted to: the mean of 16 random splits of 181 evaluations (60 uniform, 121 of
    # a search), each on 1,251 held-out images.
    #   fitted to                           30     60     100    130
    #   this mean of two                    0.701  0.760  0.775  0.790
    #   Gaussian process alone              0.679  0.742  0.761  0.781
    #   gradient boosting alone             0.675  0.744  0.761  0.775
    # Other models were compared on 8 of these splits. There the mean of two had 0.699, 0.764, 0.776 and 0.797:
    #   ridge regression, pairwise terms    0.670  0.722  0.742  0.759
    #   extra trees                         0.608  0.689  0.707  0.729

    def __init__(self, space: Space):
        self.space = space
        self._model: VotingRegressor | None = None
        self._constant: float | None = None  # the mean score; None before a fit

    def fit(self, archs: Sequence[Architecture], scores: Sequence[float]) -> "Predictor":
        """Fits to evaluations and returns itself. An earlier fit is forgotten.

        Args:
          archs: architectures of the space.
          scores: one score for each architecture, the higher the better (top-1, 0..1).
        Raises:
          ValueError: there is no evaluation, their numbers differ, a score is not finite, or an architecture is not
            in the space.
        """
        values = _checked(archs, scores)
        if not len(values):
            raise ValueError("predictor: found no evaluation to fit to, expected at least one")
        self._constant = float(values.mean())
        features = self.features(archs)
        # If all scores or all features are equal, neither model has anything to learn.
        differ = np.ptp(values) > 0 and np.ptp(features, axis=0).any()
        self._model = _fitted(features, values) if differ else None
        return self

    def predict(self, archs: Sequence[Architecture]) -> np.ndarray:
        """Predicted scores, float64 [N].

        Raises:
          ValueError: an architecture is not in the space.
          RuntimeError: nothing was fitted before.
        """
        if self._constant is None:
            raise RuntimeError("predictor: found no fit, expected a call of fit before predict")
        features = self.features(archs)
        if self._model is None or not len(features):
            return np.full(len(features), self._constant)
        return self._model.predict(features)

    def tau(self, archs: Sequence[Architecture], scores: Sequence[float], seed: int = 0) -> float:
        """Kendall's rank correlation (tau-b) between scores and their predictions, by cross-validation.

        Each score is predicted by a fit that did not see it. The predictions of `predict` do not change.

        Args:
          archs: architectures of the space.
          scores: one score for each architecture.
          seed: the seed that the `FOLDS` folds are drawn with.
        Returns:
          -1..1; 0 if the evaluations cannot tell: fewer than `LEAST`, or all scores the same.
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
        """The features of architectures, float64 [N, F], each 0..1.

        Each choice is a feature by its place among its values. A choice with more than two values is also a one-hot.
        Two more features are the logarithms of multiply-adds and parameters, scaled to 0 at the smallest architecture
        and 1 at the biggest.

        Raises:
          ValueError: an architecture is not in the space.
        """
        genes = np.array([self.space.indices(arch) for arch in archs], np.int64)
        genes = genes.reshape(len(archs), len(self.space.choices))
        columns = []
        active = np.array([self.space.active(own) for own in genes], bool).reshape(genes.shape)
        for gene, runs, choice in zip(genes.T, active.T, self.space.choices, strict=True):
            # A block that does not run gets a place below the smallest value, and no one-hot.
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
        # One class: the number of classes is the same for all architectures, and is not known here.
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
    # Maximum likelihood finds lengths and noise, within bounds that keep the fit well posed with few evaluations.
    kernel = ConstantKernel(1.0, (1e-2, 1e2)) * Matern(2.0, (0.3, 30.0), nu=2.5) + WhiteKernel(0.3, (1e-3, 10.0))
    smooth = GaussianProcessRegressor(kernel, normalize_y=True)
    steps = GradientBoostingRegressor(subsample=0.8, random_state=0)
    with warnings.catch_warnings():
        # A length at its bound is a valid answer: the scores look linear, or like noise.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return VotingRegressor([("smooth", smooth), ("steps", steps)]).fit(features, values)
