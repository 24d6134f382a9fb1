"""Who trains in a step: the protocol of member samplers."""

import dataclasses
import enum
from collections.abc import Callable, Sequence
from typing import Protocol

from bignas_jax.programs.buckets import Bucket
from bignas_jax.spaces.architecture import Architecture
from bignas_jax.spaces.space import Space


class Target(enum.StrEnum):
    """What a member learns from."""

    LABELS = "labels"
    TEACHER = "teacher"  # the predictions of the step's first member


@dataclasses.dataclass(frozen=True)
class Part:
    """What a program computes a member's gradient for.

    Attributes:
      bucket: of the member's architecture. target: what it learns from.
      regularised: whether dropout and drop-connect act.
      first: whether it is the step's first member, which gives its predictions to the others.
    """

    bucket: Bucket
    target: Target
    regularised: bool = False
    first: bool = False


@dataclasses.dataclass(frozen=True)
class Member:
    """An architecture that trains in a step, and the program that it trains in."""

    arch: Architecture
    part: Part


# Architectures to their losses on the present batch, which are equal on all devices and hosts.
Score = Callable[[Sequence[Architecture]], list[float]]


class Members(Protocol):
    """Chooses the members of each step. It is made as `Class(space, recipe)`, with the step's `Recipe`.

    Attributes:
      names: of the members, in order; as many in every step.
      scores: whether `choose` calls `score`. The programs of these scores are compiled only if it does.
    """

    names: tuple[str, ...]
    scores: bool

    def programs(self, space: Space) -> tuple[Part, ...]:
        """Everything that a member may be trained in; all of it is compiled before the first step."""

    def choose(self, step: int, score: Score) -> tuple[Member, ...]:
        """The members of a step, by its number and the seed alone, or by scores on its batch.

        The first has `Part.first`, and learns from the labels.
        """
