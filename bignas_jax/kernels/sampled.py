"""How a kernel on a GPU is told the number of sampled channels."""

import jax
import jax.numpy as jnp
import numpy as np


def as_array(used: jax.Array | None, channels: int) -> jax.Array:
    """int32 [3], the last operand of a kernel: the number of sampled channels, and of all channels.

    The third entry is 0. XLA computes a constant whose entries are all equal with a kernel, and loads other constants.
    """
    if used is None:
        return jnp.asarray(np.array([channels, channels, 0], np.int32))
    return jnp.stack([jnp.asarray(used, jnp.int32), jnp.int32(channels), jnp.int32(0)])
