"""The inverted residual block of the MobileNet family."""

import jax
import jax.numpy as jnp
from flax import nnx

from bignas_jax import ops
from bignas_jax.nets.mode import Mode
from bignas_jax.ops import Size
from bignas_jax.ops.squeeze_excite import gate as squeeze_excite_gate
from bignas_jax.spaces.mobilenet import Block


class MBConv(nnx.Module):
    """Inverted residual block (Sandler et al., 2018) with squeeze-and-excitation and a shortcut, always residual.

    Args:
      block: the block in the biggest architecture. activation: a name in `ops.activation.FUNCTIONS`.
    """

    def __init__(self, block: Block, activation: str, *, rngs: nnx.Rngs):
        mid = block.mid_width
        self.activation = activation
        self.expand = ops.PointwiseConv(block.in_width, mid, rngs=rngs) if block.expand_ratio != 1 else None
        self.expand_norm = ops.BatchNorm(mid) if block.expand_ratio != 1 else None
        self.depthwise = ops.DepthwiseConv(mid, block.kernel_size, block.stride, rngs=rngs)
        self.depthwise_norm = ops.BatchNorm(mid)
        self.squeeze_excite = ops.SqueezeExcite(mid, block.se_width, rngs=rngs) if block.se_width else None
        self.project = ops.PointwiseConv(mid, block.out_width, rngs=rngs)
        self.project_norm = ops.BatchNorm(block.out_width, zero_scale=True)
        first = block.index == 0
        self.shortcut = ops.Shortcut(block.in_width, block.out_width, block.stride, rngs=rngs) if first else None

    def __call__(self, x, size: dict[str, Size], mode: Mode, drop_rate: float = 0.0, rng=None):
        """[B, H, W, in] -> [B, ceil(H / stride), ceil(W / stride), out], and its batch norms' statistics by name.

        Args:
          size: `in`, `mid`, `out`, `se` and `kernel`. mode: its `statistics` are this block's own, by name.
          drop_rate: of drop-connect, with the key `rng`.
        """
        statistics = {}
        y = x
        if self.expand is not None:
            y, statistics["expand"] = self.expand_norm(
                self.expand(y, size["mid"]), size["mid"], activation=self.activation, **mode.of("expand")
            )
        elif size["mid"].bucket != x.shape[-1]:
            raise ValueError(f"expansion ratio 1 with {x.shape[-1]} channels in and {size['mid'].bucket} inside")
        y = self.depthwise(y, size["kernel"], size["mid"])
        gate, weights = None, ()
        if self.squeeze_excite is not None:
            gate, weights = squeeze_excite_gate, self.squeeze_excite.weights(y.shape[-1], size["se"], y.dtype)
        y, statistics["depthwise"] = self.depthwise_norm(
            y, size["mid"], activation=self.activation, gate=gate, weights=weights, **mode.of("depthwise")
        )
        y, statistics["project"] = self.project_norm(
            self.project(y, size["out"], size["mid"]), size["out"], **mode.of("project")
        )
        if drop_rate and rng is not None:
            y = _drop_images(y, drop_rate, rng)
        shortcut = x if self.shortcut is None else self.shortcut(x, size["in"], size["out"])
        return y + shortcut, statistics


def _drop_images(x: jax.Array, rate: float, rng: jax.Array) -> jax.Array:
    """Drop-connect: zeroes the branch for some images, scales it for the others (Huang et al., 2016)."""
    keep = jax.random.bernoulli(rng, 1 - rate, (x.shape[0], 1, 1, 1))
    return jnp.where(keep, x / (1 - rate), 0).astype(x.dtype)
