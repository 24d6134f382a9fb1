"""The precision of sums."""

import jax
import jax.numpy as jnp


def at_least_float32(x: jax.Array) -> jax.Array:
    """bfloat16 as float32; float32 and float64 (in tests of the arithmetic) as they are."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
