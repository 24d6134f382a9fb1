"""Squeeze-and-excitation (Hu et al., 2018) with the hard sigmoid of MobileNetV3 (Howard et al., 2019)."""

import jax
import jax.numpy as jnp
from flax import nnx

from bignas_jax.ops.size import Size, at_least_float32


class SqueezeExcite(nnx.Module):
    """Scales each channel by a gate computed from the means of all channels.

    gate = hard_sigmoid(expand(relu(reduce(mean over H, W)))), hard_sigmoid(x) = relu6(x + 3) / 6.

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

    def __call__(self, x: jax.Array, reduced: Size) -> jax.Array:
        """[B, H, W, C] -> [B, H, W, C]; channels that arrive as zeros leave as zeros, whatever their gate."""
        features = x.shape[-1]
        mean = jnp.mean(at_least_float32(x), (1, 2)).astype(x.dtype)
        kernel = reduced.mask(self.reduce_kernel[...][:features, : reduced.bucket])
        bias = reduced.mask(self.reduce_bias[...][: reduced.bucket])
        hidden = jax.nn.relu(mean @ kernel.astype(x.dtype) + bias.astype(x.dtype))
        kernel = self.expand_kernel[...][: reduced.bucket, :features].astype(x.dtype)
        bias = self.expand_bias[...][:features].astype(x.dtype)
        gate = jnp.clip(hidden @ kernel + bias + 3, 0, 6) / 6
        return x * gate[:, None, None, :]
