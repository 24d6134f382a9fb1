"""Squeeze-and-excitation (Hu et al., 2018) with the hard sigmoid of MobileNetV3 (Howard et al., 2019)."""

import jax
import jax.numpy as jnp
from flax import nnx

from bignas_jax.ops.rounding import Tape
from bignas_jax.ops.size import Size


@jax.custom_vjp
def gate(pooled: jax.Array, weights: tuple[jax.Array, ...]) -> jax.Array:
    """hard_sigmoid(expand(relu(reduce(pooled)))), where hard_sigmoid(x) = relu6(x + 3) / 6.

    It is computed in the dtype of the weights: it is a small part of the work, and a cast of the weights would cost
    more than it saves.

    Args:
      pooled: [B, C], means over the positions.
      weights: the result of `SqueezeExcite.weights`.
    Returns:
      [B, C], between 0 and 1, in the dtype of the weights.
    """
    return _forward(pooled, weights)[0]


def _forward(pooled, weights):
    reduce_kernel, reduce_bias, expand_kernel, expand_bias, used = weights
    hidden = jax.nn.relu(pooled.astype(reduce_kernel.dtype) @ reduce_kernel + reduce_bias)
    if used is not None:
        hidden = jnp.where(used, hidden, 0)
    shifted = hidden @ expand_kernel + expand_bias + 3
    return jnp.clip(shifted, 0, 6) / 6, (pooled, weights, hidden, shifted)


def _backward(saved, g):
    pooled, (reduce_kernel, _, expand_kernel, _, _), hidden, shifted = saved
    d_expanded = jnp.where((shifted > 0) & (shifted < 6), g / 6, 0)
    d_hidden = jnp.where(hidden > 0, _product(d_expanded, expand_kernel, (1, 1)), 0)
    d_weights = (
        _product(pooled.astype(reduce_kernel.dtype), d_hidden, (0, 0)),
        jnp.sum(d_hidden, 0),
        _product(hidden, d_expanded, (0, 0)),
        jnp.sum(d_expanded, 0),
        None,
    )
    return _product(d_hidden, reduce_kernel, (1, 1)).astype(pooled.dtype), d_weights


def _product(a: jax.Array, b: jax.Array, contracted: tuple[int, int]) -> jax.Array:
    """The product of two matrices over an axis of each. No operand or result is transposed in memory."""
    return jax.lax.dot_general(a, b, (((contracted[0],), (contracted[1],)), ((), ())))


gate.defvjp(_forward, _backward)


def rounded_gate(pooled: jax.Array, weights: tuple[jax.Array, ...], tape: Tape, channels: Size) -> jax.Array:
    """The gate in 8-bit integers, see `rounding`: both products round their inputs, weights and outputs.

    Args:
      pooled: as for `gate`.
      weights: as for `gate`.
      tape: of the layer.
      channels: the channels of `pooled`.
    """
    reduce_kernel, reduce_bias, expand_kernel, expand_bias, used = weights
    hidden = tape.values(pooled.astype(reduce_kernel.dtype)) @ tape.weights(reduce_kernel, channels) + reduce_bias
    if used is not None:
        hidden = jnp.where(used, hidden, 0)
        expand_kernel = jnp.where(used[:, None], expand_kernel, 0)
    hidden = tape.values(jax.nn.relu(tape.values(hidden)))
    expanded = hidden @ tape.weights(expand_kernel, Size(len(expand_kernel))) + expand_bias
    return jnp.clip(tape.values(channels.mask(expanded)) + 3, 0, 6) / 6


class SqueezeExcite(nnx.Module):
    """The weights of squeeze-and-excitation, which computes a gate for each channel from the means of all channels.

    The batch norm before it applies the gate in its own pass (`BatchNorm.__call__`, `normalize`).

    Args:
      features: channels of the widest architecture.
      reduced: squeezed channels of the widest architecture.
    """

    def __init__(self, features: int, reduced: int, *, rngs: nnx.Rngs):
        def kernel(rows, columns):
            return nnx.Param(jax.random.normal(rngs.params(), (rows, columns)) * (2.0 / columns) ** 0.5)

        self.reduce_kernel = kernel(features, reduced)
        self.reduce_bias = nnx.Param(jnp.zeros(reduced))
        self.expand_kernel = kernel(reduced, features)
        self.expand_bias = nnx.Param(jnp.zeros(features))

    def weights(self, features: int, reduced: Size) -> tuple[jax.Array, ...]:
        """The weights that `gate` takes.

        Only the squeezed channels need a mask: unused channels are zero, whatever their gate is. The mask acts on the
        values of the squeezed channels, which are fewer than their weights.

        Args:
          features: the number of channels that are computed.
          reduced: the squeezed channels.
        """
        weights = (
            self.reduce_kernel[...][:features, : reduced.computed],
            self.reduce_bias[...][: reduced.computed],
            self.expand_kernel[...][: reduced.computed, :features],
            self.expand_bias[...][:features],
        )
        used = None if reduced.sampled is None else jnp.arange(reduced.computed) < reduced.sampled
        return (*weights, used)
