"""Networks in 8-bit integers, computed in floating point: values are rounded to those that the integers stand for.

The rounding is that of an exported child (`interop.exports.integers`; Jacob et al., 2018, section 2). The weights of a
convolution or a product have a scale for each output channel, and no offset. Activations have a scale and an offset for
each tensor: the input of a convolution, and its output, with the batch norm behind it, before the activation function.
They follow from the least and the greatest value over training images, which a first pass finds.

Convolutions and norms ask for the tape of the layer that is being traced. It notes the ranges, or rounds to them, in
the order in which the layer asks. Without a tape they compute as always.
"""

import contextlib
import threading
from collections.abc import Iterator

import jax
import jax.numpy as jnp

from bignas_jax.ops.size import Size

_LEAST, _GREATEST = -128, 127  # of signed 8-bit integers

_traced = threading.local()


class Tape:
    """The tensors of one layer in the order of its computation.

    Args:
      ranges: float32 [tensors, 2], as `noted` gives them, to round to; None notes them.
      into: the input channels of the layer; None means that all are sampled.
    """

    def __init__(self, ranges: jax.Array | None, into: Size | None = None):
        self.into, self._ranges = into, ranges
        self._rows: list[jax.Array] = []
        self._came = 0

    @property
    def noted(self) -> jax.Array:
        """float32 [tensors, 2]: minus the least value, and the greatest, both at least 0."""
        return jnp.stack(self._rows) if self._rows else jnp.zeros((0, 2), jnp.float32)

    def values(self, x: jax.Array) -> jax.Array:
        """x, noted or rounded; channels that the sampled architecture does not use must be zero in it."""
        if self._ranges is None:
            self._rows.append(jnp.maximum(jnp.stack([jnp.max(-x), jnp.max(x)]).astype(jnp.float32), 0))
            return x
        row, self._came = self._ranges[self._came], self._came + 1
        return rounded(x, row)

    def weights(self, kernel: jax.Array, into: Size | None = None, axis: int = -2) -> jax.Array:
        """A kernel [..., inputs, outputs], rounded for each output channel.

        Args:
          kernel: the kernel, zero at the taps that the sampled architecture does not use.
          into: the input channels; None means those of the layer, if there are as many.
          axis: the axis of the input channels.
        """
        if self._ranges is None:
            return kernel
        into = self.into if into is None else into
        if into is not None and into.computed == kernel.shape[axis]:
            kernel = into.mask(kernel, axis)
        return rounded_weights(kernel)

    def depthwise_weights(self, kernel: jax.Array) -> jax.Array:
        """A kernel [k, k, channels], rounded for each channel; zero at the taps that are not used."""
        return kernel if self._ranges is None else rounded_weights(kernel)


def rounded(x: jax.Array, ends: jax.Array) -> jax.Array:
    """x, rounded to 256 values between the ends of a range, one of which is 0.

    Args:
      x: any shape.
      ends: float32 [2], minus the least value and the greatest.
    """
    scale = jnp.sum(ends) / (_GREATEST - _LEAST)
    scale = jnp.where(scale > 0, scale, 1.0)
    zero = jnp.round(_LEAST + ends[0] / scale)
    whole = jnp.clip(jnp.round(x.astype(jnp.float32) / scale) + zero, _LEAST, _GREATEST)
    return ((whole - zero) * scale).astype(x.dtype)


def rounded_weights(kernel: jax.Array) -> jax.Array:
    """A kernel [..., outputs], rounded to -127..127 times the largest weight of each output channel over 127."""
    scale = jnp.max(jnp.abs(kernel), tuple(range(kernel.ndim - 1))) / _GREATEST
    scale = jnp.where(scale > 0, scale, 1.0)
    return jnp.clip(jnp.round(kernel / scale), -_GREATEST, _GREATEST) * scale


def tape() -> Tape | None:
    """The tape of the layer that is being traced; None where nothing is rounded."""
    return getattr(_traced, "tape", None)


@contextlib.contextmanager
def on(own: Tape) -> Iterator[Tape]:
    """Makes `own` the tape of what is traced inside."""
    before, _traced.tape = tape(), own
    try:
        yield own
    finally:
        _traced.tape = before
