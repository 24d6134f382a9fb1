"""Elastic operations: weights sliced to a bucket at trace time, masked to the sampled sizes at run time."""

from bignas_jax.ops.batch_norm import BatchNorm
from bignas_jax.ops.dense_conv import DenseConv
from bignas_jax.ops.depthwise_conv import DepthwiseConv
from bignas_jax.ops.image import bicubic_resize, prepare
from bignas_jax.ops.pointwise import Linear, PointwiseConv
from bignas_jax.ops.shortcut import Shortcut
from bignas_jax.ops.size import Size
from bignas_jax.ops.squeeze_excite import SqueezeExcite

__all__ = [
    "BatchNorm",
    "DenseConv",
    "DepthwiseConv",
    "Linear",
    "PointwiseConv",
    "Shortcut",
    "Size",
    "SqueezeExcite",
    "bicubic_resize",
    "prepare",
]
