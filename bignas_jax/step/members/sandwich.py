"""The sandwich rule (Yu et al., 2020, section 3.1): the biggest, some random and the smallest architecture."""

from collections.abc import Sequence

import numpy as np

from bignas_jax.programs.buckets import Bucket, shared
from bignas_jax.spaces.architecture import Architecture
from bignas_jax.spaces.space import Space
from bignas_jax.step.members.protocol import Member, Part, Score, Target
from bignas_jax.step.recipe import Recipe


class Sandwich:
    """The biggest architecture learns from the labels, and all others learn from its predictions.

    Only the biggest is regularised, unless `recipe.all_regularised`. The random ones depend on (seed, step) alone.
    """

    scores = False

    def __init__(self, space: Space, recipe: Recipe):
        self._space, self._recipe = space, recipe
        self.names = ("biggest", *(f"random{n + 1}" for n in range(recipe.num_random)), "smallest")
        self._biggest = Part(Bucket(space.biggest, masked=False), Target.LABELS, regularised=True, first=True)
        self._smallest = self._student(Bucket(space.smallest, masked=False))

    def programs(self, space: Space) -> tuple[Part, ...]:
        """See `Members.programs`."""
        drawn = tuple(map(self._shared, space.resolutions)) if self._recipe.num_random else ()
        return (self._biggest, self._smallest, *drawn)

    def choose(self, step: int, score: Score) -> tuple[Member, ...]:
        """See `Members.choose`."""
        return self.around(self.architectures(step)[1:-1])

    def around(self, drawn: Sequence[Architecture]) -> tuple[Member, ...]:
        """The members of a step between whose biggest and smallest these architectures train."""
        return (
            Member(self._space.biggest, self._biggest),
            *(Member(arch, self._shared(arch.resolution)) for arch in drawn),
            Member(self._space.smallest, self._smallest),
        )

    def architectures(self, step: int) -> tuple[Architecture, ...]:
        """The architectures of a step: the biggest, the random ones, the smallest."""
        rng = np.random.default_rng((self._recipe.seed, step))
        drawn = (self._space.sample(rng) for _ in range(self._recipe.num_random))
        return (self._space.biggest, *drawn, self._space.smallest)

    def _shared(self, resolution: int) -> Part:
        return self._student(shared(self._space, resolution))

    def _student(self, bucket: Bucket) -> Part:
        return Part(bucket, Target.TEACHER, regularised=self._recipe.all_regularised)
