"""The activations of the MobileNet family and their derivatives, which batch norm uses inside its own gradient.

All map 0 to 0, which keeps the masked channels of a bucket at zero.
"""

import jax
import jax.numpy as jnp


def _sigmoid_parts(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    s = jax.nn.sigmoid(x)
    return s, s * (1 + x * (1 - s))


def identity(x: jax.Array) -> jax.Array:
    """x itself."""
    return x


def swish(x: jax.Array) -> jax.Array:
    """x sigmoid(x) (Ramachandran et al., 2017)."""
    return x * jax.nn.sigmoid(x)


def h_swish(x: jax.Array) -> jax.Array:
    """x relu6(x + 3) / 6 (Howard et al., MobileNetV3, 2019, section 5.2)."""
    return x * (jnp.clip(x + 3, 0, 6) / 6)


def relu(x: jax.Array) -> jax.Array:
    """max(x, 0)."""
    return jnp.maximum(x, 0)


def relu6(x: jax.Array) -> jax.Array:
    """max(x, 0), at most 6."""
    return jnp.clip(x, 0, 6)


FUNCTIONS = {"identity": identity, "swish": swish, "h_swish": h_swish, "relu": relu, "relu6": relu6}

DERIVATIVES = {
    "identity": jnp.ones_like,
    "swish": lambda x: _sigmoid_parts(x)[1],
    "h_swish": lambda x: jnp.where(x <= -3, 0.0, jnp.where(x >= 3, 1.0, (2 * x + 3) / 6)),
    "relu": lambda x: (x > 0).astype(x.dtype),
    "relu6": lambda x: ((x > 0) & (x < 6)).astype(x.dtype),
}
