"""A layer that a sampled architecture may not have: it is run, or skipped, as a number of the program says."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from bignas_jax.kernels import native


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def run_or_skip(run: Callable, skip: Callable, active: jax.Array, x: jax.Array, params: Any) -> Any:
    """run(x, params) if `active`, otherwise skip(x), as `jax.lax.cond` computes it, and with fewer passes over memory.

    Automatic differentiation of a conditional keeps the values that the backward pass of `run` needs. Where `run` is
    skipped, it fills as many with zeros, which nothing reads. Here these are left as they are in memory.

    Args:
      run: what is run; it may use arrays from outside that get no gradient.
      skip: function of x.
      active: bool scalar.
      x: the input.
      params: a tree of arrays.
    """
    return jax.lax.cond(active, run, lambda x, params: skip(x), x, params)


class _Pull:
    """How the backward pass of `run` is put together; the program's own tracing fills it in.

    Attributes:
      tree: the structure of the function that `jax.vjp` gave.
      given: for each array in it, the position of the same array among x and the parameters; None if `run` made it.
    """

    tree: Any
    given: list[int | None]


def _forward(run, skip, active, x, params):
    pull_of = _Pull()

    def taken(x, params):
        y, pull = jax.vjp(run, x, params)
        leaves, pull_of.tree = jax.tree.flatten(pull)
        places = {id(operand): place for place, operand in enumerate(jax.tree.leaves((x, params)))}
        pull_of.given = [places.get(id(leaf)) for leaf in leaves]
        return y, [leaf for leaf, place in zip(leaves, pull_of.given, strict=True) if place is None]

    _, kept = jax.eval_shape(taken, x, params)

    def skipped(x, params):
        return skip(x), native.unwritten(kept)

    y, kept = jax.lax.cond(active, taken, skipped, x, params)
    return y, (active, kept, x, params, pull_of)


def _backward(run, skip, saved, cotangent):
    active, kept, x, params, pull_of = saved

    def taken(cotangent, kept, x, params):
        own, operands = iter(kept), jax.tree.leaves((x, params))
        leaves = [next(own) if place is None else operands[place] for place in pull_of.given]
        return jax.tree.unflatten(pull_of.tree, leaves)(cotangent)

    def skipped(cotangent, kept, x, params):
        (dx,) = jax.vjp(skip, x)[1](cotangent)
        return dx, jax.tree.map(jnp.zeros_like, params)

    return None, *jax.lax.cond(active, taken, skipped, cotangent, kept, x, params)


jax.tree_util.register_static(_Pull)
run_or_skip.defvjp(_forward, _backward)
