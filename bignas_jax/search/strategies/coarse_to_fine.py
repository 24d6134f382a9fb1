"""Coarse-to-fine selection (Yu et al., 2020, section 3.3).

First a grid of skeletons is scored. A skeleton has a resolution, and one level each of depth, width, kernel size and
expansion for the whole network. Then, for each budget, the best architecture so far is mutated one part at a time: the
stem, every stage, the head, the resolution. Each part starts from the best architecture after the part before it.
"""

import itertools
from collections.abc import Mapping

import numpy as np

from bignas_jax.search.problem import Budget, Problem
from bignas_jax.search.strategies.strategy import Proposal, best_first
from bignas_jax.spaces.architecture import Architecture

GRID_SHARE = 0.4  # of all evaluations
LEVELS = (0.0, 0.5, 1.0)
LEAST = 2  # the fewest mutations of a part, for each budget
TRIES = 20  # draws to find a mutation that is new


class CoarseToFine:
    """A grid over skeletons, then mutation part by part of the best within each budget.

    Args:
      problem: the space, its costs and the budgets.
      seed: the seed of all draws.
      num_evaluations: how many evaluations the search may spend. It decides the size of the grid and the number of
        mutations of a part. `ask` may limit these mutations further.
    """

    front = False

    def __init__(self, problem: Problem, seed: int, num_evaluations: int):
        self._problem = problem
        self._rng = np.random.default_rng(seed)
        self._scores: dict[Architecture, float] = {}
        self._grid = _thinned(problem, skeletons(problem), max(1, round(GRID_SHARE * num_evaluations)))
        space = problem.space
        self._parts = [
            (name, genes)
            for name, genes in space.groups.items()
            if any(len(space.choices[gene]) > 1 for gene in genes)
        ]
        left = max(0, num_evaluations - len(self._grid))
        # Two rounds over the parts, if there are enough evaluations.
        self._mutations = max(LEAST, left // (2 * max(1, len(self._parts)) * len(problem.budgets)))
        self._turn = 0

    def ask(self, count: int, pool: int = 1) -> list[Proposal]:
        """See `Strategy.ask`."""
        if self._grid:
            asked, self._grid = self._grid[:count], self._grid[count:]
            return [Proposal(arch, "grid", screen=False) for arch in asked]
        for _ in self._parts:  # a part whose mutations are all known is skipped
            turn, self._turn = self._turn, self._turn + 1
            name, genes = self._parts[turn % len(self._parts)]
            number = min(self._mutations, max(1, count // len(self._problem.budgets)))
            found = self._mutations_of(genes, number * pool)
            if found:
                phase = f"{name}, round {turn // len(self._parts) + 1}"
                return [Proposal(arch, phase) for arch in found]
        return []

    def _mutations_of(self, genes: tuple[int, ...], number: int) -> list[Architecture]:
        """At most `number` new mutations in one part for each budget."""
        found: dict[Architecture, None] = {}
        for budget in self._problem.budgets:
            for best in best_first(self._scores, self._problem, budget)[:1]:
                for _ in range(number):
                    draws = (self._mutate(best, genes, budget) for _ in range(TRIES))
                    new = next((arch for arch in draws if arch not in self._scores and arch not in found), None)
                    if new is not None:
                        found[new] = None
        return list(found)

    def _mutate(self, arch: Architecture, genes: tuple[int, ...], budget: Budget) -> Architecture:
        """`arch` with choices of a part drawn anew. Small changes elsewhere bring it back within the budget.

        Every other time, other parts also grow to use up the budget: the best architectures use most of it.
        """
        space = self._problem.space
        values = list(space.indices(arch))
        active = space.active(values)
        open_genes = [gene for gene in genes if len(space.choices[gene]) > 1 and active[gene]]
        moved = self._rng.permutation(open_genes)[: self._rng.integers(1, len(open_genes) + 1)]
        for gene in moved:
            others = [i for i in range(len(space.choices[gene])) if i != values[gene]]
            values[gene] = others[self._rng.integers(len(others))]
        mutant = self._problem.shrink(space.at(values), budget, self._rng, keep=genes)
        if self._rng.random() < 0.5:
            mutant = self._problem.grow(mutant, budget, self._rng, keep=genes)
        return mutant

    def tell(self, scores: Mapping[Architecture, float]) -> None:
        """See `Strategy.tell`."""
        self._scores.update(scores)


def skeletons(problem: Problem) -> list[Architecture]:
    """The grid: every resolution with each level of depth, width, kernel size and expansion, equal in all stages."""
    space = problem.space
    found: dict[Architecture, None] = {}
    names = ("width", "depth", "kernel_size", "expand_ratio")
    for resolution in range(len(space.resolutions)):
        for levels in itertools.product(LEVELS, repeat=len(names)):
            level = dict(zip(names, levels, strict=True))
            indices = [
                resolution if choice.kind == "resolution" else round(level[choice.kind] * (len(choice) - 1))
                for choice in space.choices
            ]
            found[space.at(indices)] = None
    return list(found)


def _thinned(problem: Problem, grid: list[Architecture], count: int) -> list[Architecture]:
    """At most `count` skeletons of the grid: from each budget in turn, the most costly one that is left.

    Between narrow limits there may be none. Then those that small changes bring there take their place.
    """
    queues, rng = [], np.random.default_rng(0)
    for budget in problem.budgets:
        within = [arch for arch in grid if problem.fits(arch, budget)]
        if not within:
            brought = dict.fromkeys(problem.shrink(arch, budget, rng) for arch in grid)
            within = [arch for arch in brought if problem.fits(arch, budget)]
        queues.append(sorted(within, key=lambda arch: (-problem.use(arch, budget), arch.to_json())))
    chosen: dict[Architecture, None] = {}
    for arch in itertools.chain.from_iterable(itertools.zip_longest(*queues)):
        if arch is not None and len(chosen) < count:
            chosen[arch] = None
    return list(chosen)
