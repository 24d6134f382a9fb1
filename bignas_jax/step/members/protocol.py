"""The protocol of member samplers, which choose the architectures that train in a step."""

import dataclasses
import enum
from collections.abc import Callable, Sequence
from typing import Protocol

from bignas_jax.programs.buckets import Bucket
from bignas_jax.spaces.architecture import Architecture
from bignas_jax.spaces.space import Space


class Target(enum.StrEnum):
    """What a member learns from."""

    LABELS = "labels"  # and the predictions of the teacher from outside the run, where there is one
    TEACHER = "teacher"  # the predictions of the step's first member


@dataclasses.dataclass(frozen=True)
class Part:
    """The role of a member in a step. The gradients of each part are computed by a program of its own.

    Attributes:
      bucket: the bucket of the member's architecture.
      target: what the member learns from.
      regularised: whether dropout and drop-connect act.
      first: whether it is the step's first member, whose predictions the others can learn from.
    """

    bucket: Bucket
    target: Target
    regularised: bool = False
    first: bool = False


@dataclasses.dataclass(frozen=True)
class Member:
    """An architecture that trains in a step, and its part, which names the program that it trains in."""

    arch: Architecture
    part: Part


# A function from architectures to their losses on the batch of the step. The losses are equal on all devices and hosts.
Score = Callable[[Sequence[Architecture]], list[float]]


class Members(Protocol):
    """Chooses the members of each step. It is made as `Class(space, recipe)`, with the step's `Recipe`.

    A class may have a function `prepare(space, recipe, before)`. It gives what takes long to make, as a value that JSON
    can hold. `before` is what it gave at an earlier start of the run, as far as that can be read, otherwise None. The
    run keeps the value in its folder, tells it to all hosts, and makes the sampler as `Class(space, recipe, prepared)`.

    Attributes:
      names: the names of the members, in order. Every step has as many members.
      scores: whether `choose` calls `score`. The programs that compute scores are compiled only if it does.
    """

    names: tuple[str, ...]
    scores: bool

    def programs(self, space: Space) -> tuple[Part, ...]:
        """All parts that members can have. Their programs are compiled before the first step."""

    def choose(self, step: int, score: Score) -> tuple[Member, ...]:
        """The members of a step. They depend on its number and the seed alone, or also on scores on its batch.

        Args:
          step: the number of the step, from 0.
          score: gives the losses of architectures on the batch.
        Returns:
          The members, in the order of `names`. The first one has `Part.first` and learns from the labels. If any others
          can learn from it, all but the first are left out before `recipe.student_start`, and scores are 0 there.
        """
