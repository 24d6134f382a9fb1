"""The sandwich rule (Yu et al., 2020, section 3.1): the biggest, some random and the smallest architecture."""

import numpy as np

from bignas_jax.spaces.architecture import Architecture
from bignas_jax.spaces.space import Space
from bignas_jax.step.recipe import Recipe


def members(space: Space, recipe: Recipe, step: int) -> tuple[Architecture, ...]:
    """The architectures of a step: biggest, `num_random` drawn from (seed, step) alone, smallest.

    In a space of one architecture that one alone: trained on the labels, as an ordinary network.
    """
    if space.size == 1:
        return (space.biggest,)
    rng = np.random.default_rng((recipe.seed, step))
    return (space.biggest, *(space.sample(rng) for _ in range(recipe.num_random)), space.smallest)


def member_names(space: Space, recipe: Recipe) -> tuple[str, ...]:
    if space.size == 1:
        return ("child",)
    return ("biggest", *(f"random{n + 1}" for n in range(recipe.num_random)), "smallest")
