"""The member samplers by name."""

from bignas_jax.config.options import MemberSamplers
from bignas_jax.plugins import find
from bignas_jax.spaces.space import Space
from bignas_jax.step.members.protocol import Members
from bignas_jax.step.members.sandwich import Sandwich
from bignas_jax.step.members.single import Single
from bignas_jax.step.members.slices import Slices
from bignas_jax.step.recipe import Recipe

MEMBERS: dict[str, type[Members]] = {
    MemberSamplers.SANDWICH: Sandwich,
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


def make_members(space: Space, recipe: Recipe) -> Members:
    """The sampler that the recipe names."""
    return members_class(space, recipe.members)(space, recipe)
