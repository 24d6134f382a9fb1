"""Adaptive stochastic natural gradient (Akimoto et al., 2019, ASNG-NAS): a distribution over each choice is learned.

Each budget has a distribution of its own. Architectures are drawn from it, and the probabilities of what the better
half of them chose rise. The length of a step adapts itself: it grows while steps point the same way, and shrinks while
they only follow noise.
"""

from collections.abc import Mapping

import numpy as np

from bignas_jax.search.problem import Budget, Problem
from bignas_jax.search.strategies.strategy import Proposal
from bignas_jax.spaces.architecture import Architecture

TRIES = 20  # draws to find an architecture that is new
ALPHA = 1.5  # how much of a signal steps must show before they grow (section 3.3)
PART = 0.25  # of the told architectures are good, and as many are bad; those between do not count
START = 1.0  # length of the first step, before it is divided by the number of free probabilities


class Distribution:
    """Independent categorical distributions, one for each choice, and the step with which they are learned.

    Args:
      counts: the number of values of each choice.
    """

    def __init__(self, counts: list[int]):
        self.probabilities = [np.full(count, 1 / count) for count in counts]
        self._free = max(1, sum(count - 1 for count in counts))
        self._least = [1 / (max(1, count - 1) * max(1, sum(c > 1 for c in counts))) for count in counts]
        self._first = START / np.sqrt(self._free)
        self._grown, self._gamma = 1.0, 0.0
        self._path = np.zeros(sum(count - 1 for count in counts))

    @property
    def step(self) -> float:
        """The length of the next step, measured in the metric of Fisher's information."""
        return self._first * self._grown

    def sample(self, rng: np.random.Generator) -> list[int]:
        """The position of a value for each choice."""
        return [int(rng.choice(len(p), p=p)) for p in self.probabilities]

    def learn(self, draws: list[list[int | None]], utilities: np.ndarray) -> None:
        """Moves along the natural gradient of the expected utility.

        Args:
          draws: for each architecture, the position of each choice's value; None where the choice does not matter.
          utilities: how good each architecture is, [draws], with mean 0.
        """
        gradient = []
        for choice, p in enumerate(self.probabilities):
            total = np.zeros_like(p)
            for drawn, utility in zip(draws, utilities, strict=True):
                if drawn[choice] is not None:
                    total += utility * (np.eye(len(p))[drawn[choice]] - p)
            gradient.append(total / len(draws))
        whitened = np.concatenate([_whitened(g, p) for g, p in zip(gradient, self.probabilities, strict=True)])
        length = np.linalg.norm(whitened)
        if length < 1e-12:
            return
        rate = self.step
        self.probabilities = [
            _kept_above(p + rate * g / length, least)
            for p, g, least in zip(self.probabilities, gradient, self._least, strict=True)
        ]
        # The path of normalised steps is as long as that of a random walk if they follow noise alone (section 3.3).
        decay = min(1.0, rate / np.sqrt(self._free))
        self._path = (1 - decay) * self._path + np.sqrt(decay * (2 - decay)) * whitened / length
        self._gamma = (1 - decay) ** 2 * self._gamma + decay * (2 - decay)
        self._grown *= np.exp(decay * (self._path @ self._path / ALPHA - self._gamma))
        self._grown = float(np.clip(self._grown, 1 / self._free, np.sqrt(self._free)))


def _whitened(gradient: np.ndarray, p: np.ndarray) -> np.ndarray:
    """The natural gradient of one choice times the square root of Fisher's information: [values - 1].

    Its square is sum_k gradient_k^2 / p_k, the squared length of the step in Fisher's metric.
    """
    head, last = np.sqrt(p[:-1]), np.sqrt(p[-1])
    return gradient[:-1] / head + head * np.sum(gradient[:-1]) / (p[-1] + last)


def _kept_above(p: np.ndarray, least: float) -> np.ndarray:
    """Probabilities that are at least `least` where there is a choice, and sum to 1."""
    if len(p) == 1:
        return np.ones(1)
    least = min(least, 0.5 / len(p))
    p = np.maximum(p, least)
    excess = p - least
    return least + excess * (1 - least * len(p)) / np.sum(excess) if np.sum(excess) > 0 else np.full(len(p), 1 / len(p))


class ASNG:
    """Draws from learned distributions, one for each budget.

    A draw beyond the budget is brought back into it, and learned from as what it became. Every other draw is also grown
    until it uses the budget up.

    Args:
      problem: the space, its costs and the budgets.
      seed: the seed of all draws.
    """

    front = False

    def __init__(self, problem: Problem, seed: int):
        self._problem = problem
        self._rng = np.random.default_rng(seed)
        counts = [len(choice) for choice in problem.space.choices]
        self._distributions = {budget: Distribution(counts) for budget in problem.budgets}
        self._told: set[Architecture] = set()

    def ask(self, count: int, pool: int = 1) -> list[Proposal]:
        """See `Strategy.ask`."""
        found: dict[Architecture, str] = {}
        budgets = self._problem.budgets
        for number in range(count * pool):
            budget = budgets[number % len(budgets)]
            draws = [lambda b=budget: self._draw(b)] * TRIES
            # If all that the distribution still gives is known, random architectures are drawn instead.
            draws += [lambda b=budget: self._problem.sample(b, self._rng)] * TRIES
            arch = next((a for a in (draw() for draw in draws) if a not in self._told and a not in found), None)
            if arch is not None:
                found[arch] = "natural gradient"
        return [Proposal(arch, phase) for arch, phase in found.items()]

    def _draw(self, budget: Budget) -> Architecture:
        arch = self._problem.space.at(self._distributions[budget].sample(self._rng))
        arch = self._problem.shrink(arch, budget, self._rng)
        return self._problem.grow(arch, budget, self._rng) if self._rng.random() < 0.5 else arch

    def tell(self, scores: Mapping[Architecture, float]) -> None:
        """See `Strategy.tell`. Each budget learns from all architectures that keep it."""
        space = self._problem.space
        new = {arch: score for arch, score in scores.items() if arch not in self._told}
        self._told.update(new)
        for budget, distribution in self._distributions.items():
            within = [arch for arch in new if self._problem.fits(arch, budget)]
            if len(within) < 2:
                continue
            draws = []
            for arch in within:
                genes = space.indices(arch)
                draws.append([g if on else None for g, on in zip(genes, space.active(genes), strict=True)])
            distribution.learn(draws, _utilities([new[arch] for arch in within]))


def _utilities(scores: list[float]) -> np.ndarray:
    """1 for the best quarter, -1 for the worst, 0 between. Equal scores share the utilities of their ranks."""
    scores = np.array(scores)
    count = max(1, round(PART * len(scores)))
    ranked = np.zeros(len(scores))
    ranked[:count], ranked[-count:] = -1, 1  # by ascending score
    order = np.sort(scores)
    shared = {value: ranked[order == value].mean() for value in np.unique(scores)}
    return np.array([shared[value] for value in scores])
