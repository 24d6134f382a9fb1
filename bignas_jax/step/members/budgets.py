"""Architectures by budget: how often each budget and each choice is met, and draws at a given budget.

It is the table that attentive sampling draws from (Wang et al., 2021, AttentiveNAS, section 3.2). A budget is a range
of multiply-adds, named by its middle. The table is counted over architectures that are drawn uniformly.
"""

from collections.abc import Mapping
from functools import cached_property, lru_cache
from typing import Any

import numpy as np

from bignas_jax.errors import ConfigError, FileError
from bignas_jax.forms import check_form
from bignas_jax.spaces.architecture import Architecture
from bignas_jax.spaces.cost import count
from bignas_jax.spaces.many import ManyMacs
from bignas_jax.spaces.space import Space

DRAWS = 100_000
SLOW_DRAWS = 5_000  # where architectures are counted one by one
BUDGETS = 64  # that the range of a space is divided into, unless their width is given
MOST = 1_000
TRIES = 101  # of a candidate, until its multiply-adds fit; the last one is taken as it is

FORM = {"made_for": {}, "choices": [{"label": str}], "budgets": [{"macs": float, "draws": int, "counts": [[int]]}]}


class Budgets:
    """A table of architectures by budget.

    Args:
      space: the search space.
      num_classes: outputs of the classifier.
      table: what `make` gives.
    Attributes:
      macs: [B] the middles of the budgets that were met, ascending.
      counts: for each choice int64 [B, values], how often each value was met. Choices of idle blocks do not count.
    """

    def __init__(self, space: Space, num_classes: int, table: Mapping[str, Any]):
        self._space, self._many = space, ManyMacs(space, num_classes)
        self._width = table["made_for"]["width"]
        rows = table["budgets"]
        self.macs = np.array([row["macs"] for row in rows])
        self._draws = np.array([row["draws"] for row in rows])
        self.counts = [np.array([row["counts"][n] for row in rows]) for n in range(len(space.choices))]

    @cached_property
    def share(self) -> np.ndarray:
        """[B] the share of each budget among uniform draws."""
        return self._draws / self._draws.sum()

    @cached_property
    def _below(self) -> list[np.ndarray]:
        """For each choice [B, values], the probability of this value or one before it. Unmet choices are uniform."""
        filled = [np.where(counts.sum(1, keepdims=True), counts, 1) for counts in self.counts]
        return [np.cumsum(counts, 1) / counts.sum(1, keepdims=True) for counts in filled]

    def draw(self, rng: np.random.Generator, uniform: bool = False) -> int:
        """The number of a budget, drawn by its share, or uniformly among the budgets that were met."""
        if uniform:
            return int(rng.integers(len(self.macs)))
        return int(np.searchsorted(np.cumsum(self.share), rng.random(), side="right").clip(0, len(self.macs) - 1))

    def candidate(self, budget: int, rng: np.random.Generator) -> Architecture:
        """An architecture of a budget. Each choice is drawn on its own, by how often its values are met in the budget.

        It is drawn again until its multiply-adds lie in the budget, `TRIES` times at most.

        Args:
          budget: the number of the budget.
          rng: NumPy's generator of random numbers.
        """
        drawn = rng.random((TRIES, len(self._below)))
        genes = np.stack(
            [np.searchsorted(below[budget], u, side="right") for below, u in zip(self._below, drawn.T, strict=True)], 1
        )
        genes = np.minimum(genes, [counts.shape[1] - 1 for counts in self.counts])
        fits = np.flatnonzero(nearest(self._many(genes), self._width) == self.macs[budget])
        return self._space.at(genes[fits[0] if len(fits) else -1])


def nearest(macs: Any, width: float) -> np.ndarray:
    """The middles of the budgets that these multiply-adds lie in."""
    return np.rint(np.asarray(macs) / width) * width


def width_of(space: Space, num_classes: int, width: float) -> float:
    """The width of budgets in multiply-adds. 0 stands for one of `BUDGETS` equal parts of the space's range.

    Raises:
      ConfigError: there would be more than `MOST` budgets.
    """
    least, most = (count(space, arch, num_classes).macs for arch in (space.smallest, space.biggest))
    if not width:
        return max(1.0, (most - least) / BUDGETS)
    if (most - least) / width > MOST:
        raise ConfigError(
            f"config.sandwich.budget_macs: found {width:.10g}, expected at least {(most - least) / MOST:.4g} multiply-"
            f"adds (the space goes from {least:,} to {most:,}), or 0 for {BUDGETS} budgets"
        )
    return float(width)


def purpose(space: Space, num_classes: int, seed: int, width: float) -> dict[str, Any]:
    """Everything that a table follows from, as JSON values; `width` is as `width_of` gives it."""
    return {"space": space.to_dict(), "num_classes": num_classes, "seed": seed, "width": width}


@lru_cache(maxsize=8)
def make(space: Space, num_classes: int, seed: int, width: float) -> dict[str, Any]:
    """The table, as JSON values. It is the same for the same arguments.

    Args:
      space: the search space.
      num_classes: outputs of the classifier.
      seed: the seed of the draws.
      width: multiply-adds from budget to budget.
    Returns:
      `made_for`: these arguments. `choices`: the labels and values of the space's choices. `budgets`: for each budget
      `macs`, how many of the `draws` were met there and, for each choice, the `counts` of its values.
    """
    many = ManyMacs(space, num_classes)
    genes = many.draw(np.random.default_rng((seed, 0xB)), DRAWS if many.adds_up else SLOW_DRAWS)
    runs = np.array(_running(space, genes))
    middles, budget, draws = np.unique(nearest(many(genes), width), return_inverse=True, return_counts=True)
    counts = []
    for own, active, choice in zip(genes.T, runs.T, space.choices, strict=True):
        found = np.zeros((len(middles), len(choice)), np.int64)
        np.add.at(found, (budget[active], own[active]), 1)
        counts.append(found.tolist())
    return {
        "made_for": purpose(space, num_classes, seed, width),
        "choices": [{"label": choice.label, "values": list(choice.values)} for choice in space.choices],
        "budgets": [
            {"macs": float(macs), "draws": int(number), "counts": [own[n] for own in counts]}
            for n, (macs, number) in enumerate(zip(middles, draws, strict=True))
        ],
    }


def _running(space: Space, genes: np.ndarray) -> np.ndarray:
    """bool [N, choices]: whether each choice matters, as `Space.active` says."""
    found = np.ones(genes.shape, bool)
    at = {choice.part: n for n, choice in enumerate(space.choices) if choice.kind == "depth"}
    for n, choice in enumerate(space.choices):
        if choice.block is not None:
            depth = at[choice.part]
            found[:, n] = np.array(space.choices[depth].values)[genes[:, depth]] > choice.block
    return found


def made_for(table: Any, space: Space, num_classes: int, seed: int, width: float) -> bool:
    """Whether a JSON value is a table that was made for these arguments."""
    try:
        check_form(table, FORM)
    except FileError:
        return False
    lengths, rows = [len(choice) for choice in space.choices], table["budgets"]
    return (
        table["made_for"] == purpose(space, num_classes, seed, width)
        and len(rows) > 0
        and all([len(counts) for counts in row["counts"]] == lengths and row["draws"] > 0 for row in rows)
        and all(number >= 0 for row in rows for counts in row["counts"] for number in counts)
    )
