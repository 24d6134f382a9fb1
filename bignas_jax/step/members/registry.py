"""The member samplers by name."""

from typing import Any

from bignas_jax.config.choices import MemberSamplers
from bignas_jax.plugins import find
from bignas_jax.spaces.space import Space
from bignas_jax.step.members.attentive import BestUp, WorstUp
from bignas_jax.step.members.protocol import Members
from bignas_jax.step.members.sandwich import Sandwich
from bignas_jax.step.members.single import Single
from bignas_jax.step.members.slices import Slices
from bignas_jax.step.recipe import Recipe

MEMBERS: dict[str, type[Members]] = {
    MemberSamplers.SANDWICH: Sandwich,
    MemberSamplers.BEST_UP: BestUp,
    MemberSamplers.WORST_UP: WorstUp,
    MemberSamplers.SINGLE: Single,
    MemberSamplers.SLICES: Slices,
}


def members_class(space: Space, name: str) -> type[Members]:
    """The sampler class of this name. If the space has one architecture, the class is Single, whatever the name.

    Args:
      space: the search space.
      name: a name in MEMBERS, or `package.module:Class`.
    Raises:
      ConfigError: there is no such class.
    """
    found = find(name, MEMBERS, "config.sandwich.members")
    return Single if space.size == 1 else found


def make_members(space: Space, recipe: Recipe, prepared: Any = None) -> Members:
    """The sampler that the recipe names.

    Args:
      space: the search space.
      recipe: the settings of the step.
      prepared: what `prepare` of its class gave; None if it has no such function, or shall call it itself.
    """
    made = members_class(space, recipe.members)
    return made(space, recipe) if prepared is None else made(space, recipe, prepared)
