"""The multiply-adds of many architectures at once.

To count one architecture takes about a millisecond. A table of budgets needs 100,000 of them.
"""

from collections.abc import Iterable

import numpy as np

from bignas_jax.spaces.cost import count, macs_by_layer
from bignas_jax.spaces.space import HEAD, RESOLUTION, STEM, Space

CHECKED = 32  # architectures that are counted in both ways

# The stage and the position of a block, both from 0. All layers outside the blocks are one place.
Place = tuple[int, int] | None


class ManyMacs:
    """Multiply-adds of architectures, added up from those of their blocks.

    The multiply-adds of a block follow from the resolution, the width before it, the width of its stage, and its own
    kernel size and expansion ratio. Each combination is counted once. A family in which they follow from more is
    counted one architecture at a time: some random architectures are counted in both ways to find this out.

    Args:
      space: the search space.
      num_classes: outputs of the classifier.
    Attributes:
      adds_up: whether the multiply-adds follow from these choices.
    """

    def __init__(self, space: Space, num_classes: int):
        self._space, self._num_classes = space, num_classes
        self._lengths = np.array([len(choice) for choice in space.choices])
        self._columns = _columns(space)
        depths = [n for n, choice in enumerate(space.choices) if choice.kind == "depth"]
        self._depths = {stage: (n, np.array(space.choices[n].values)) for stage, n in enumerate(depths)}
        self._known = {
            place: np.full(np.prod(self._lengths[columns]), -1, np.int64) for place, columns in self._columns.items()
        }
        self.adds_up = True
        drawn = self.draw(np.random.default_rng(0), CHECKED)
        self.adds_up = np.array_equal(self(drawn), self._one_by_one(drawn))

    def draw(self, rng: np.random.Generator, number: int) -> np.ndarray:
        """Genes int64 [number, choices], each drawn uniformly. Those of idle blocks are drawn, too."""
        return rng.integers(0, self._lengths, (number, len(self._lengths)))

    def __call__(self, genes: np.ndarray) -> np.ndarray:
        """The multiply-adds of one image's forward pass, int64 [N], as `cost.count` counts them.

        Args:
          genes: int [N, choices], as `Space.at` takes them.
        """
        if not self.adds_up:
            return self._one_by_one(genes)
        total, places = np.zeros(len(genes), np.int64), {}
        for place, columns in self._columns.items():
            rows = self._running(genes, place)
            places[place] = rows, np.ravel_multi_index(genes[rows][:, columns].T, self._lengths[columns])
        for place, (rows, keys) in reversed(places.items()):  # an architecture with a deep block has the others, too
            new = np.flatnonzero(self._known[place][keys] < 0)
            for key, first in zip(*np.unique(keys[new], return_index=True), strict=True):
                if self._known[place][key] < 0:
                    self._count(genes[rows[new[first]]])
        for place, (rows, keys) in places.items():
            total[rows] += self._known[place][keys]
        return total

    def _running(self, genes: np.ndarray, place: Place) -> np.ndarray:
        """The rows of the architectures that have this place."""
        if place is None:
            return np.arange(len(genes))
        column, depths = self._depths[place[0]]
        return np.flatnonzero(depths[genes[:, column]] > place[1])

    def _count(self, genes: np.ndarray) -> None:
        """Notes the multiply-adds of all places of an architecture."""
        found: dict[Place, int] = {}
        for layer, macs in macs_by_layer(self._space, self._space.at(genes), self._num_classes):
            place = None if layer.stage is None else (layer.stage, layer.index)
            found[place] = found.get(place, 0) + macs
        for place, columns in self._columns.items():
            if len(self._running(genes[None], place)):
                key = np.ravel_multi_index(genes[columns], self._lengths[columns])
                self._known[place][key] = found.get(place, 0)

    def _one_by_one(self, genes: Iterable[np.ndarray]) -> np.ndarray:
        archs = map(self._space.at, genes)
        return np.array([count(self._space, arch, self._num_classes).macs for arch in archs], np.int64)


def _columns(space: Space) -> dict[Place, list[int]]:
    """For each place, the positions of the choices that its multiply-adds follow from."""
    choices, groups = space.choices, space.groups
    width = {choice.part: n for n, choice in enumerate(choices) if choice.kind == "width"}
    stages = [part for part in groups if part not in (RESOLUTION, STEM, HEAD)]
    ends = (*groups[RESOLUTION], *groups.get(STEM, ()), *([width[stages[-1]]] if stages else []), *groups.get(HEAD, ()))
    found: dict[Place, list[int]] = {None: list(ends)}
    for number, (before, stage) in enumerate(zip([STEM, *stages], stages, strict=False)):
        depth = next(n for n in groups[stage] if choices[n].kind == "depth")
        outer = [*groups[RESOLUTION], *([width[before]] if before in width else [])]
        for index in range(choices[depth].values[-1]):
            own = [n for n in groups[stage] if n != depth and choices[n].block in (None, index)]
            found[number, index] = outer + own
    return found
