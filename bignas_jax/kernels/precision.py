"""The precision of sums."""

import jax
import jax.numpy as jnp


def at_least_float32(x: jax.Array) -> jax.Array:
    """x as float32 if its dtype is narrower. float64, which tests of the arithmetic use, stays as it is."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
