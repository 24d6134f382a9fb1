"""Drawn slices without forced extremes, as Once-for-All's progressive shrinking trains them (Cai et al., 2020, 3.3)."""

import dataclasses

import numpy as np

from bignas_jax.programs.buckets import shared
from bignas_jax.spaces.architecture import Architecture
from bignas_jax.spaces.space import RESOLUTION, Space
from bignas_jax.step.members.protocol import Member, Part, Score, Target
from bignas_jax.step.recipe import Recipe


class Slices:
    """`num_random` drawn architectures, and neither the biggest nor the smallest beside them.

    All learn from the labels, and from the teacher from outside the run where there is one. All are regularised. The
    members of a step have one resolution, which is drawn for the batch. All draws depend on (seed, step) alone. Where
    nothing but the resolution is open, as in a phase that trains the full network, no mask is computed.
    """

    scores = False

    def __init__(self, space: Space, recipe: Recipe):
        self._space, self._recipe = space, recipe
        self._one_network = all(len(choice) == 1 for choice in space.choices if choice.part != RESOLUTION)
        self.names = tuple(f"slice{n + 1}" for n in range(max(recipe.num_random, 1)))

    def programs(self, space: Space) -> tuple[Part, ...]:
        """See `Members.programs`."""
        kinds = (True, False) if len(self.names) > 1 else (True,)
        return tuple(self._part(resolution, first) for first in kinds for resolution in space.resolutions)

    def choose(self, step: int, score: Score) -> tuple[Member, ...]:
        """See `Members.choose`."""
        drawn = self.architectures(step)
        return tuple(Member(arch, self._part(arch.resolution, first=not n)) for n, arch in enumerate(drawn))

    def architectures(self, step: int) -> tuple[Architecture, ...]:
        """The architectures of a step."""
        rng = np.random.default_rng((self._recipe.seed, step))
        resolution = int(rng.choice(self._space.resolutions))
        drawn = (self._space.sample(rng) for _ in self.names)
        return tuple(dataclasses.replace(arch, resolution=resolution) for arch in drawn)

    def _part(self, resolution: int, first: bool) -> Part:
        bucket = dataclasses.replace(shared(self._space, resolution), masked=not self._one_network)
        return Part(bucket, Target.LABELS, regularised=True, first=first)
