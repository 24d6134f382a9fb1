"""The layers at the two ends of a network: the stem, the head and the classifier."""

import jax
import jax.numpy as jnp
from flax import nnx

from bignas_jax import ops
from bignas_jax.kernels.activation import FUNCTIONS
from bignas_jax.kernels.precision import at_least_float32
from bignas_jax.nets.mode import Mode
from bignas_jax.ops import Size
from bignas_jax.spaces.layers import Layer


class Stem(nnx.Module):
    """A dense convolution, batch norm and an activation; then the identity shortcut and a max pooling, if it has them.
    """

    def __init__(self, layer: Layer, *, rngs: nnx.Rngs):
        (conv,) = layer.convs
        self.conv = ops.DenseConv(conv.in_width, conv.out_width, conv.kernel_size, conv.stride, rngs=rngs)
        self.conv_norm = ops.BatchNorm(conv.out_width, epsilon=conv.epsilon)

    def __call__(self, x, layer: Layer, size: dict[str, Size], mode: Mode, drop_rate: float = 0.0, rng=None):
        """[B, H, W, in] -> [B, ceil(H / stride), ceil(W / stride), out]. See `nets.kinds`."""
        (conv,), out = layer.convs, size["out"]
        residual = None if layer.shortcut is None else x
        x, moments = self.conv.before_norm(x, out)
        x, statistics = self.conv_norm(
            x, out, activation=conv.activation, residual=residual, moments=moments, **mode.of("conv")
        )
        return (max_pool(x) if layer.halves else x), {"conv": statistics}


def max_pool(x: jax.Array) -> jax.Array:
    """3x3 max pooling of stride 2 with padding 1, [B, H, W, C] -> [B, ceil(H / 2), ceil(W / 2), C]."""
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, 2, 2, 1), ((0, 0), (1, 1), (1, 1), (0, 0)))


class Head(nnx.Module):
    """A 1x1 convolution, batch norm, an activation, and the mean over all positions."""

    def __init__(self, layer: Layer, *, rngs: nnx.Rngs):
        (conv,) = layer.convs
        self.conv = ops.PointwiseConv(conv.in_width, conv.out_width, rngs=rngs)
        self.conv_norm = ops.BatchNorm(conv.out_width, epsilon=conv.epsilon)

    def __call__(self, x, layer: Layer, size: dict[str, Size], mode: Mode, drop_rate: float = 0.0, rng=None):
        """[B, H, W, in] -> [B, 1, 1, out]. See `nets.kinds`."""
        (conv,), out, dtype = layer.convs, size["out"], x.dtype
        x, moments = self.conv.before_norm(x, out, moments=mode.moments)
        x, statistics = self.conv_norm(x, out, activation=conv.activation, moments=moments, **mode.of("conv"))
        return jnp.mean(at_least_float32(x), (1, 2), keepdims=True).astype(dtype), {"conv": statistics}


class Mix(nnx.Module):
    """A 1x1 convolution and an activation on the means (Howard et al., 2019, MobileNetV3, section 5.1)."""

    def __init__(self, layer: Layer, *, rngs: nnx.Rngs):
        (conv,) = layer.convs
        self.conv = ops.PointwiseConv(conv.in_width, conv.out_width, rngs=rngs, mask_out=True)

    def __call__(self, x, layer: Layer, size: dict[str, Size], mode: Mode, drop_rate: float = 0.0, rng=None):
        """[B, 1, 1, in] -> [B, 1, 1, out]. See `nets.kinds`."""
        return FUNCTIONS[layer.convs[0].activation](self.conv(x, size["out"])), {}


class Classifier(nnx.Module):
    """Dropout and a linear layer, in float32; before them the mean over all positions, if the layer pools."""

    def __init__(self, layer: Layer, *, rngs: nnx.Rngs):
        (conv,) = layer.convs
        self.conv = ops.Linear(conv.in_width, conv.out_width, rngs=rngs)

    def __call__(self, x, layer: Layer, size: dict[str, Size], mode: Mode, drop_rate: float = 0.0, rng=None):
        """[B, 1, 1, in], or [B, H, W, in] if it pools, -> float32 [B, classes]. See `nets.kinds`."""
        x = jnp.mean(at_least_float32(x), (1, 2)) if layer.pools else at_least_float32(x[:, 0, 0])
        if mode.dropout and rng is not None:
            keep = jax.random.bernoulli(rng, 1 - mode.dropout, x.shape)
            x = jnp.where(keep, x / (1 - mode.dropout), 0)
        return self.conv(x), {}
