"""Elastic 1x1 convolution: a matrix product over the channels.

Where there are kernels for it (`kernels.product`), the product is told the sampled channels, and computes no others.
Elsewhere a program that architectures share usually computes the product of its full shape. If channels have
`Size.ends`, it computes the smallest of several products that holds the sampled channels (`product_of_corner`).
"""

from types import ModuleType

import jax
import jax.numpy as jnp
from flax import nnx

from bignas_jax.kernels.precision import at_least_float32
from bignas_jax.kernels.product import told
from bignas_jax.kernels.product.corner import product, product_of_corner
from bignas_jax.kernels.product.used import Used
from bignas_jax.kernels.target import current
from bignas_jax.ops import rounding
from bignas_jax.ops.size import Size


def fan_out_normal(rngs: nnx.Rngs, shape: tuple[int, ...], fan_out: int) -> jax.Array:
    """Normal with variance 2 / fan_out (He et al., 2015, equation 14)."""
    return jax.random.normal(rngs.params(), shape) * (2.0 / fan_out) ** 0.5


class PointwiseConv(nnx.Module):
    """1x1 convolution without bias. All architectures share its first input and output channels.

    Unused input channels need no mask: they are zero in the input, or not loaded. Unused output channels may hold
    anything, NaN included, where `before_norm` gives them to a batch norm that is told the sampled channels; otherwise
    finite numbers, which the batch norm behind it switches off.

    Args:
      in_features: input channels of the widest architecture.
      out_features: output channels of the widest architecture.
      mask_out: whether unused output channels are zeros.
    """

    def __init__(self, in_features: int, out_features: int, *, rngs: nnx.Rngs, mask_out: bool = False):
        self.kernel = nnx.Param(fan_out_normal(rngs, (in_features, out_features), out_features))
        self.mask_out = mask_out

    def __call__(self, x: jax.Array, out: Size, into: Size | None = None) -> jax.Array:
        """[B, H, W, I] -> [B, H, W, out.computed].

        Args:
          x: [B, H, W, I] input; I is the number of input channels that are computed.
          out: the output channels.
          into: the channels of x, or None. If they have `ends` to choose from, the `ends` of `out` are not used.
        """
        return self._multiplied(x, self.kernel[...], out, into)

    def _multiplied(self, x: jax.Array, kernel: jax.Array, out: Size, into: Size | None) -> jax.Array:
        """`__call__` with this kernel, of the widest architecture."""
        kernels = _kernels(x, out)
        if kernels is not None:
            return _product_told(x, kernel, out, into, kernels, whole=True, moments=False)[0]
        tape, kernel = rounding.tape(), kernel[: x.shape[-1], : out.computed]
        if tape is not None:
            x, kernel = tape.values(x), tape.weights(kernel, into)
        flat = x.reshape(-1, x.shape[-1])
        if self.mask_out:
            kernel = out.mask(kernel)
        if into is not None and into.stops:
            y = product_of_corner(flat, kernel, into.end, tuple((end, out.computed) for end in into.ends))
        elif out.stops:
            y = product_of_corner(flat, kernel, out.end, tuple((x.shape[-1], end) for end in out.ends))
        else:
            y = product(flat, kernel)
        y = y.reshape(*x.shape[:-1], out.computed)
        return tape.values(y) if tape is not None and self.mask_out else y  # otherwise the norm behind it rounds

    def or_identity(self, x: jax.Array, same: jax.Array, out: Size, into: Size) -> jax.Array:
        """x itself where `same`, a bool scalar, is true, and otherwise the same as `__call__`.

        Channels beyond those of x are zero in it. The product is with the kernel or with the identity wherever that
        gives x back: a choice between two results takes one more pass over memory, forward and backward.
        """
        if not _exact(x.dtype):
            return jnp.where(same, _resized(x, out.computed), self(x, out, into))
        kernel = self.kernel[...]
        return self._multiplied(x, jnp.where(same, jnp.eye(*kernel.shape, dtype=kernel.dtype), kernel), out, into)

    def before_norm(
        self, x: jax.Array, out: Size, into: Size | None = None, moments: bool = True
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array] | None]:
        """The same where nothing but an elastic batch norm takes the result, and gave x: unused channels, those of the
        gradient of x too, may hold anything.

        Args:
          x: as for `__call__`.
          out: as for `__call__`.
          into: as for `__call__`.
          moments: whether batch norm needs the moments.
        Returns:
          The result, and its moments (mean, biased variance), if the same kernel gives them; otherwise None.
        """
        kernels = _kernels(x, out)
        if kernels is not None:
            return _product_told(x, self.kernel[...], out, into, kernels, whole=False, moments=moments)
        return self(x, out, into), None


def _exact(dtype: jnp.dtype) -> bool:
    """Whether the product with an identity gives every finite value of this dtype back, but for the sign of a zero.

    GPUs round float32 to TF32 before they multiply. On a tape the product rounds its input itself.
    """
    return rounding.tape() is None and (current().platform == "cpu" or jnp.finfo(dtype).bits <= 16)


def _resized(x: jax.Array, features: int) -> jax.Array:
    if x.shape[-1] >= features:
        return x[..., :features]
    return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, features - x.shape[-1])))


def _product_told(
    x: jax.Array, kernel: jax.Array, out: Size, into: Size | None, by: ModuleType, whole: bool, moments: bool
) -> tuple[jax.Array, tuple[jax.Array, jax.Array] | None]:
    kernel = kernel[: x.shape[-1], : out.computed]
    used = Used(None if into is None else into.sampled, out.sampled)
    y, found = told.product(x.reshape(-1, x.shape[-1]), kernel, used, by, whole, moments)
    return y.reshape(*x.shape[:-1], out.computed), found


def _kernels(x: jax.Array, out: Size) -> ModuleType | None:
    """What computes the product of the sampled channels alone, as batch norm's passes do; None if nothing does."""
    return None if rounding.tape() is not None else told.kernels(x.shape, out.computed, x.dtype)


class Linear(nnx.Module):
    """The classifier: elastic in its input, fixed in its output; computed in float32.

    Its kernel starts as normal(0, 0.01) and its bias as zero (Goyal et al., 2017, section 5.1).

    Args:
      in_features: input channels of the widest architecture.
      out_features: classes.
    """

    def __init__(self, in_features: int, out_features: int, *, rngs: nnx.Rngs):
        self.kernel = nnx.Param(0.01 * jax.random.normal(rngs.params(), (in_features, out_features)))
        self.bias = nnx.Param(jnp.zeros(out_features))

    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, I] -> [B, out_features], float32; unused input channels are zero."""
        x, kernel, tape = at_least_float32(x), self.kernel[...][: x.shape[-1]], rounding.tape()
        if tape is not None:
            x, kernel = tape.values(x), tape.weights(kernel)
        return x @ kernel + self.bias[...]
