"""A layer that a sampled architecture may not have: it is run, or skipped, as a number of the program says."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from bignas_jax.kernels import native


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def run_or_skip(run: Callable, skip: Callable, active: jax.Array, x: jax.Array, params: Any, rest: Any) -> Any:
    """run(x, params, rest) if `active`, otherwise skip(x): what `jax.lax.cond` computes, in fewer passes over memory.

    Automatic differentiation of a conditional keeps the values that the backward pass of `run` needs. Where `run` is
    skipped, it fills as many with zeros, which nothing reads. Here these are left as they are in memory.

    Args:
      run: what is run. Like `skip`, it takes all its arrays as arguments: the gradient may belong to an outer program.
      skip: function of x.
      active: bool scalar.
      x: the input.
      params: a tree of arrays.
      rest: a tree of further arrays, which get no gradient.
    """
    return jax.lax.cond(active, run, lambda x, params, rest: skip(x), x, params, rest)


class _Pull:
    """How the backward pass of `run` is put together; the program's own tracing fills it in.

    Attributes:
      tree: the structure of the function that `jax.vjp` gave.
      given: for each array in it, the position of the same array among the operands; None if `run` made it.
    """

    tree: Any
    given: list[int | None]


def _forward(run, skip, active, x, params, rest):
    pull_of = _Pull()

    def taken(x, params, rest):
        y, pull = jax.vjp(lambda x, params: run(x, params, rest), x, params)
        leaves, pull_of.tree = jax.tree.flatten(pull)
        places = {id(operand): place for place, operand in enumerate(jax.tree.leaves((x, params, rest)))}
        pull_of.given = [places.get(id(leaf)) for leaf in leaves]
        return y, [leaf for leaf, place in zip(leaves, pull_of.given, strict=True) if place is None]

    _, kept = jax.eval_shape(taken, x, params, rest)

    def skipped(x, params, rest):
        return skip(x), native.unwritten(kept)

    y, kept = jax.lax.cond(active, taken, skipped, x, params, rest)
    return y, (active, kept, (x, params, rest), pull_of)


def _backward(run, skip, saved, cotangent):
    active, kept, operands, pull_of = saved

    def taken(cotangent, kept, operands):
        own, operands = iter(kept), jax.tree.leaves(operands)
        leaves = [next(own) if place is None else operands[place] for place in pull_of.given]
        return jax.tree.unflatten(pull_of.tree, leaves)(cotangent)

    def skipped(cotangent, kept, operands):
        x, params, _ = operands
        (dx,) = jax.vjp(skip, x)[1](cotangent)
        return dx, jax.tree.map(jnp.zeros_like, params)

    return None, *jax.lax.cond(active, taken, skipped, cotangent, kept, operands), None


jax.tree_util.register_static(_Pull)
run_or_skip.defvjp(_forward, _backward)
