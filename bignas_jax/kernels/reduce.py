"""The mean over the devices of a mesh axis, with bits that do not depend on how processes share the devices."""

from functools import reduce
from operator import add
from typing import Any

import jax

from bignas_jax.kernels.target import current


def mean_over(tree: Any, axis_name: str) -> Any:
    """The mean of each array of a tree over a mesh axis, equal on all of its devices.

    Within a process, the all-reduce of CPU devices adds their arrays in the order of the axis. Between processes, it
    adds them in a ring, each part of an array in another order. There the arrays are gathered and added in order: each
    device then receives as many arrays as there are devices, in place of two. GPUs have their own order in either case.
    """
    if jax.process_count() == 1 or current().platform != "cpu":
        return jax.lax.pmean(tree, axis_name)
    return jax.tree.map(lambda array: _in_order(jax.lax.all_gather(array, axis_name)), tree)


def _in_order(parts: jax.Array) -> jax.Array:
    """The mean of an array's rows, added from the first to the last."""
    return reduce(add, (parts[n] for n in range(len(parts)))) / len(parts)
