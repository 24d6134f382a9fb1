"""Conflict-aware gradients (Gong et al., 2022, NASViT, section 3.2).

The gradient of the biggest architecture and those of the smaller ones can point against each other in a tensor. The
part of the biggest's gradient that does so is then taken away.
"""

from typing import Any

import jax
import jax.numpy as jnp

MOST = 2.0  # times the smaller ones' gradient that is added for it, at most
TINY = 1e-6  # is added to its squared norm


def combined(biggest: Any, smaller: Any, resolve: jax.Array | bool = True) -> Any:
    """The sum of two gradients, without what conflicts.

    In each tensor, let s be the biggest's gradient and g the smaller ones' sum. The result is s + (1 + c) g with
    c = -<g, s> / (|g|^2 + 1e-6), held between 0 and 2. Inside these limits,
    what is left of s is orthogonal to g.

    Args:
      biggest: the gradient of the biggest architecture, a tree of arrays.
      smaller: the sum of the others' gradients, a tree of the same form.
      resolve: whether conflicts are resolved; a scalar, possibly traced. Otherwise the result is the sum.
    """

    def tensor(s: jax.Array, g: jax.Array) -> jax.Array:
        against = -jnp.vdot(g, s) / (jnp.vdot(g, g) + TINY)
        factor = jnp.where(resolve, jnp.clip(against, 0, MOST), 0)
        # A product with 0 would turn a gradient that is not finite into NaN; both end the same way, without an update.
        return s + (1 + factor).astype(g.dtype) * g

    return jax.tree.map(tensor, biggest, smaller)
