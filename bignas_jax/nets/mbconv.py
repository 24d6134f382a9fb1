"""The inverted residual block of the MobileNet family."""

import jax
import jax.numpy as jnp
from flax import nnx

from bignas_jax import ops
from bignas_jax.nets.mode import Mode
from bignas_jax.ops import Size
from bignas_jax.ops.squeeze_excite import gate as squeeze_excite_gate
from bignas_jax.spaces.layers import Layer


class MBConv(nnx.Module):
    """Inverted residual block (Sandler et al., 2018).

    Its convolutions are `expand` (left out at an expansion ratio of 1), `depthwise` and `project`. It has
    squeeze-and-excitation and a shortcut if the layer has them.

    Args:
      layer: the block in the biggest architecture.
    """

    def __init__(self, layer: Layer, *, rngs: nnx.Rngs):
        convs = {conv.name: conv for conv in layer.convs}
        depthwise, project, shortcut = convs["depthwise"], convs["project"], layer.shortcut
        mid = depthwise.out_width
        self.expand = ops.PointwiseConv(layer.in_width, mid, rngs=rngs) if "expand" in convs else None
        epsilon = project.epsilon
        self.expand_norm = ops.BatchNorm(mid, epsilon=epsilon) if "expand" in convs else None
        self.depthwise = ops.DepthwiseConv(
            mid, depthwise.kernel_size, depthwise.stride, depthwise.transforms, rngs=rngs
        )
        self.depthwise_norm = ops.BatchNorm(mid, epsilon=epsilon)
        self.squeeze_excite = ops.SqueezeExcite(mid, depthwise.squeeze, rngs=rngs) if depthwise.squeeze else None
        self.project = ops.PointwiseConv(mid, project.out_width, rngs=rngs)
        self.project_norm = ops.BatchNorm(project.out_width, zero_scale=project.zero_scale, epsilon=epsilon)
        elastic = shortcut is not None and shortcut.elastic
        widths = (shortcut.in_width, shortcut.out_width, shortcut.stride) if elastic else ()
        self.shortcut = ops.Shortcut(*widths, rngs=rngs) if elastic else None

    def __call__(self, x, layer: Layer, size: dict[str, Size], mode: Mode, drop_rate: float = 0.0, rng=None):
        """[B, H, W, in] -> [B, ceil(H / stride), ceil(W / stride), out]. See `nets.kinds`.

        Args:
          x: [B, H, W, in] input.
          layer: the block in the architecture that is compiled.
          size: the sizes `in`, `mid`, `out`, `se` and `kernel`.
          mode: how batch norm and regularisation act.
          drop_rate: the rate of drop-connect.
          rng: the block's own random key, or None.
        """
        statistics = {}
        activation = layer.convs[0].activation
        y = x
        if self.expand is not None:
            y, moments = self.expand.before_norm(y, size["mid"], size["in"], mode.moments)
            y, statistics["expand"] = self.expand_norm(
                y, size["mid"], activation=activation, moments=moments, **mode.of("expand")
            )
        elif size["mid"].computed != x.shape[-1]:
            raise ValueError(f"expansion ratio 1 with {x.shape[-1]} channels in and {size['mid'].computed} inside")
        y = self.depthwise(y, size["kernel"], size["mid"])
        gate, weights = None, ()
        if self.squeeze_excite is not None:
            gate, weights = squeeze_excite_gate, self.squeeze_excite.weights(y.shape[-1], size["se"])
        y, statistics["depthwise"] = self.depthwise_norm(
            y, size["mid"], activation=activation, gate=gate, weights=weights, **mode.of("depthwise")
        )
        shortcut = None
        if layer.shortcut is not None:
            shortcut = x if self.shortcut is None else self.shortcut(x, size["in"], size["out"])
        keep = drop_images(len(x), drop_rate, rng) if drop_rate and rng is not None else None
        y, moments = self.project.before_norm(y, size["out"], size["mid"], mode.moments)
        y, statistics["project"] = self.project_norm(
            y, size["out"], keep=keep, residual=shortcut, moments=moments, **mode.of("project")
        )
        return y, statistics


def drop_images(count: int, rate: float, rng: jax.Array) -> jax.Array:
    """Drop-connect: float32 [count], zero for some images and 1 / (1 - rate) for the others (Huang et al., 2016)."""
    keep = jax.random.bernoulli(rng, 1 - rate, (count, 1, 1, 1))
    return jnp.where(keep.reshape(count), 1 / (1 - rate), 0.0)
