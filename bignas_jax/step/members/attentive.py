"""Attentive sampling (Wang et al., 2021, AttentiveNAS): of some candidates at a drawn budget, the best or the worst."""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np

from bignas_jax.programs.processes import gather
from bignas_jax.spaces.architecture import Architecture
from bignas_jax.spaces.space import Space
from bignas_jax.step.members import budgets, evaluations
from bignas_jax.step.members.protocol import Member, Part, Score
from bignas_jax.step.members.sandwich import Sandwich
from bignas_jax.step.recipe import Recipe


class _Attentive:
    """A sandwich whose random members are chosen among candidates of a budget.

    For each such member a budget is drawn, then `recipe.candidates` architectures at this budget. They follow from
    (space, seed, step). They are scored by their loss on the step's batch, or by a predictor of accuracies if
    `recipe.predictor` names a run with a search to fit it to. All devices and hosts choose alike: the loss is the mean
    over all devices, and the first process predicts for all.

    Args:
      space: the search space.
      recipe: `num_random`, `candidates`, `budget_macs`, `uniform_budgets`, `predictor` and `seed` matter.
      prepared: what `prepare` gives; None makes it.
    """

    name: ClassVar[str]
    pick: ClassVar[Callable[[np.ndarray], int]]  # the position of the candidate that is taken, by the losses
    unknown: ClassVar[float]  # the loss that stands for one that is not finite: it is taken last

    def __init__(self, space: Space, recipe: Recipe, prepared: Any = None):
        table = prepared or self.prepare(space, recipe)
        self._predictor = evaluations.fitted(space, table["evaluations"]) if recipe.predictor else None
        self._recipe, self._sandwich = recipe, Sandwich(space, recipe)
        self._budgets = budgets.Budgets(space, recipe.num_classes, table)
        self.names = ("biggest", *(f"{self.name}{n + 1}" for n in range(recipe.num_random)), "smallest")
        self._chooses = recipe.num_random > 0 and recipe.candidates > 1
        self.scores = self._chooses and self._predictor is None

    @staticmethod
    def prepare(space: Space, recipe: Recipe, before: Any = None) -> Any:
        """The table of architectures by budget, and the evaluations that the predictor is fitted to; see `Members`."""
        classes = recipe.num_classes
        arguments = space, classes, recipe.seed, budgets.width_of(space, classes, recipe.budget_macs)
        kept = budgets.made_for(before, *arguments)
        table = {name: value for name, value in (before if kept else budgets.make(*arguments)).items()
                 if name != "evaluations"}  # fmt: skip
        if not recipe.predictor:
            return table
        found = before.get("evaluations") if kept else None
        if not evaluations.are_of(found, space, recipe.predictor):
            found = evaluations.read(space, recipe.predictor)
        return table | {"evaluations": found}

    def programs(self, space: Space) -> tuple[Part, ...]:
        """See `Members.programs`."""
        return self._sandwich.programs(space)

    def choose(self, step: int, score: Score) -> tuple[Member, ...]:
        """See `Members.choose`."""
        drawn = self.candidates(step)
        if not self._chooses:
            return self._sandwich.around([own[0] for own in drawn])
        archs = [arch for own in drawn for arch in own]
        losses = np.reshape(self._predicted(archs) if self._predictor else score(archs), (len(drawn), -1))
        return self._sandwich.around([own[self.best(row)] for own, row in zip(drawn, losses, strict=True)])

    def candidates(self, step: int) -> list[list[Architecture]]:
        """For each random member of a step, its candidates."""
        rng, recipe = np.random.default_rng((self._recipe.seed, step)), self._recipe
        found = []
        for _ in range(recipe.num_random):
            budget = self._budgets.draw(rng, recipe.uniform_budgets)
            found.append([self._budgets.candidate(budget, rng) for _ in range(recipe.candidates)])
        return found

    def _predicted(self, archs: Sequence[Architecture]) -> list[float]:
        """Predicted errors. The first process tells its own to the others: their last bits may differ."""
        return gather((-self._predictor.predict(archs)).tolist())[0]

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
