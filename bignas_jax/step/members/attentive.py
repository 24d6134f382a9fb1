"""Attentive sampling (Wang et al., 2021, AttentiveNAS): of some candidates at a drawn budget, the best or the worst."""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np

from bignas_jax.spaces.architecture import Architecture
from bignas_jax.spaces.space import Space
from bignas_jax.step.members import budgets
from bignas_jax.step.members.protocol import Member, Part, Score
from bignas_jax.step.members.sandwich import Sandwich
from bignas_jax.step.recipe import Recipe


class _Attentive:
    """A sandwich whose random members are chosen among candidates of a budget by their loss on the step's batch.

    For each such member a budget is drawn, then `recipe.candidates` architectures at this budget. The budgets and the
    candidates follow from (space, seed, step). The choice follows from the weights and the batch, too. All devices and
    hosts choose alike, because the loss is the mean over all devices.

    Args:
      space: the search space.
      recipe: `num_random`, `candidates`, `budget_macs`, `uniform_budgets` and `seed` matter.
      prepared: what `prepare` gives; None makes it.
    """

    name: ClassVar[str]
    pick: ClassVar[Callable[[np.ndarray], int]]  # the position of the candidate that is taken, by the losses
    unknown: ClassVar[float]  # the loss that stands for one that is not finite: it is taken last

    def __init__(self, space: Space, recipe: Recipe, prepared: Any = None):
        table = prepared or self.prepare(space, recipe)
        self._recipe, self._sandwich = recipe, Sandwich(space, recipe)
        self._budgets = budgets.Budgets(space, recipe.num_classes, table)
        self.names = ("biggest", *(f"{self.name}{n + 1}" for n in range(recipe.num_random)), "smallest")
        self.scores = recipe.num_random > 0 and recipe.candidates > 1

    @staticmethod
    def prepare(space: Space, recipe: Recipe, before: Any = None) -> Any:
        """The table of architectures by budget; see `Members`."""
        classes = recipe.num_classes
        arguments = space, classes, recipe.seed, budgets.width_of(space, classes, recipe.budget_macs)
        return before if budgets.made_for(before, *arguments) else budgets.make(*arguments)

    def programs(self, space: Space) -> tuple[Part, ...]:
        """See `Members.programs`."""
        return self._sandwich.programs(space)

    def choose(self, step: int, score: Score) -> tuple[Member, ...]:
        """See `Members.choose`."""
        drawn = self.candidates(step)
        if not self.scores:
            return self._sandwich.around([own[0] for own in drawn])
        losses = np.reshape(score([arch for own in drawn for arch in own]), (len(drawn), -1))
        return self._sandwich.around([own[self.best(row)] for own, row in zip(drawn, losses, strict=True)])

    def candidates(self, step: int) -> list[list[Architecture]]:
        """For each random member of a step, its candidates."""
        rng, recipe = np.random.default_rng((self._recipe.seed, step)), self._recipe
        found = []
        for _ in range(recipe.num_random):
            budget = self._budgets.draw(rng, recipe.uniform_budgets)
            found.append([self._budgets.candidate(budget, rng) for _ in range(recipe.candidates)])
        return found

    def best(self, losses: Sequence[float]) -> int:
        """The position of the candidate that trains; of equal ones the first."""
        losses = np.asarray(losses)
        return int(type(self).pick(np.where(np.isfinite(losses), losses, self.unknown)))


class BestUp(_Attentive):
    """BestUp-k: the candidate with the lowest loss trains, so that the front of the best gets better."""

    name, pick, unknown = "best", np.argmin, np.inf


class WorstUp(_Attentive):
    """WorstUp-k: the candidate with the highest loss trains, so that the worst catch up."""

    name, pick, unknown = "worst", np.argmax, -np.inf
