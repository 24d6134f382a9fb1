"""One member: the biggest architecture, trained on the labels as an ordinary network."""

from bignas_jax.programs.buckets import Bucket
from bignas_jax.spaces.architecture import Architecture
from bignas_jax.spaces.space import Space
from bignas_jax.step.members.protocol import Member, Part, Score, Target
from bignas_jax.step.recipe import Recipe


class Single:
    """The biggest architecture alone, regularised. A child, whose space has no other one, is trained in this way."""

    scores = False

    def __init__(self, space: Space, recipe: Recipe):
        self._space = space
        self.names = ("child",) if space.size == 1 else ("biggest",)
        self._part = Part(Bucket(space.biggest, masked=False), Target.LABELS, regularised=True, first=True)

    def programs(self, space: Space) -> tuple[Part, ...]:
        """See `Members.programs`."""
        return (self._part,)

    def choose(self, step: int, score: Score) -> tuple[Member, ...]:
        """See `Members.choose`."""
        return (Member(self._space.biggest, self._part),)

    def architectures(self, step: int) -> tuple[Architecture, ...]:
        """The architectures of a step: the biggest."""
        return (self._space.biggest,)
