"""Squeeze-and-excitation (Hu et al., 2018) with the hard sigmoid of MobileNetV3 (Howard et al., 2019)."""

import jax
import jax.numpy as jnp
from flax import nnx

from bignas_jax.ops.size import Size


def gate(pooled: jax.Array, weights: tuple[jax.Array, ...]) -> jax.Array:
    """hard_sigmoid(expand(relu(reduce(pooled)))), hard_sigmoid(x) = relu6(x + 3) / 6; in the dtype of the weights.

    Args:
      pooled: [B, C], means over the positions. weights: as `SqueezeExcite.weights` gives them.
    Returns:
      [B, C], between 0 and 1.
    """
    reduce_kernel, reduce_bias, expand_kernel, expand_bias, used = weights
    hidden = jax.nn.relu(pooled.astype(reduce_kernel.dtype) @ reduce_kernel + reduce_bias)
    if used is not None:
        hidden = jnp.where(used, hidden, 0)
    return jnp.clip(hidden @ expand_kernel + expand_bias + 3, 0, 6) / 6


class SqueezeExcite(nnx.Module):
    """The weights of squeeze-and-excitation: a gate for each channel from the means of all channels.

    The batch norm in front applies the gate (`BatchNorm.__call__`, `normalize`), in the pass that it makes anyway.

    Args:
      features: channels of the widest architecture; reduced: its squeezed channels.
    """

    def __init__(self, features: int, reduced: int, *, rngs: nnx.Rngs):
        def kernel(rows, columns):
            return nnx.Param(jax.random.normal(rngs.params(), (rows, columns)) * (2.0 / columns) ** 0.5)

        self.reduce_kernel = kernel(features, reduced)
        self.reduce_bias = nnx.Param(jnp.zeros(reduced))
        self.expand_kernel = kernel(reduced, features)
        self.expand_bias = nnx.Param(jnp.zeros(features))

    def weights(self, features: int, reduced: Size, dtype: jnp.dtype) -> tuple[jax.Array, ...]:
        """What `gate` needs for the first `features` channels, squeezed to `reduced`, in `dtype`.

        Channels that arrive as zeros leave as zeros, whatever their gate: only the squeezed ones are masked, as
        values, which are fewer than their weights.
        """
        weights = (
            self.reduce_kernel[...][:features, : reduced.computed],
            self.reduce_bias[...][: reduced.computed],
            self.expand_kernel[...][: reduced.computed, :features],
            self.expand_bias[...][:features],
        )
        used = None if reduced.sampled is None else jnp.arange(reduced.computed) < reduced.sampled
        return (*(w.astype(dtype) for w in weights), used)
