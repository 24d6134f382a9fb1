"""The bottleneck of ResNet50D."""

from flax import nnx

from bignas_jax import ops
from bignas_jax.kernels.activation import FUNCTIONS
from bignas_jax.nets.mbconv import drop_images
from bignas_jax.nets.mode import Mode
from bignas_jax.ops import Size
from bignas_jax.ops.shortcut import average_pool_whole
from bignas_jax.spaces.layers import Layer


class Bottleneck(nnx.Module):
    """Bottleneck (He et al., 2016) with the shortcut of ResNet-D (He et al., 2019, section 4).

    Its convolutions are `reduce` (1x1), `middle` (which has the stride) and `expand` (1x1). In the first block of a
    stage, `downsample` (1x1) projects the shortcut, after an average pooling if the stride is 2. Batch norm follows
    each; an activation follows the first two, and the sum.

    Args:
      layer: the block in the biggest architecture.
    """

    def __init__(self, layer: Layer, *, rngs: nnx.Rngs):
        reduce, middle, expand, *downsample = layer.convs
        epsilon = expand.epsilon
        self.reduce = ops.PointwiseConv(reduce.in_width, reduce.out_width, rngs=rngs)
        self.reduce_norm = ops.BatchNorm(reduce.out_width, epsilon=epsilon)
        self.middle = ops.DenseConv(middle.in_width, middle.out_width, middle.kernel_size, middle.stride, rngs=rngs)
        self.middle_norm = ops.BatchNorm(middle.out_width, epsilon=epsilon)
        self.expand = ops.PointwiseConv(expand.in_width, expand.out_width, rngs=rngs)
        self.expand_norm = ops.BatchNorm(expand.out_width, zero_scale=expand.zero_scale, epsilon=epsilon)
        self.downsample = ops.PointwiseConv(layer.in_width, layer.out_width, rngs=rngs) if downsample else None
        self.downsample_norm = ops.BatchNorm(layer.out_width, epsilon=epsilon) if downsample else None

    def __call__(self, x, layer: Layer, size: dict[str, Size], mode: Mode, drop_rate: float = 0.0, rng=None):
        """[B, H, W, in] -> [B, ceil(H / stride), ceil(W / stride), out]. See `nets.kinds`.

        Args:
          x: [B, H, W, in] input.
          layer: the block in the architecture that is compiled.
          size: the sizes `in`, `mid` and `out`.
          mode: how batch norm and regularisation act.
          drop_rate: the rate of drop-connect.
          rng: the block's own random key, or None.
        """
        statistics, mid, out = {}, size["mid"], size["out"]
        activation = layer.convs[0].activation
        y, statistics["reduce"] = self.reduce_norm(
            self.reduce(x, mid), mid, activation=activation, **mode.of("reduce")
        )
        y, statistics["middle"] = self.middle_norm(
            self.middle(y, mid, mid), mid, activation=activation, **mode.of("middle")
        )
        if self.downsample is not None:
            x = average_pool_whole(x) if layer.stride == 2 else x
            x, statistics["downsample"] = self.downsample_norm(
                self.downsample(x, out), out, **mode.of("downsample")
            )
        keep = drop_images(len(x), drop_rate, rng) if drop_rate and rng is not None else None
        y, statistics["expand"] = self.expand_norm(
            self.expand(y, out, mid), out, keep=keep, residual=x, **mode.of("expand")
        )
        return FUNCTIONS[activation](y), statistics
