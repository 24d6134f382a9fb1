"""The size of an elastic dimension, which all elastic ops take."""

import dataclasses

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Size:
    """A channel count inside an executable.

    Attributes:
      computed: the number of channels that the executable computes; weights are sliced to it at trace time.
      sampled: int32 scalar, at most `computed`: the channels that the sampled architecture uses. None means that it
        uses all of them ("sliced"), and no mask is traced.
      ends: channel counts at which a product over these channels can stop, ascending; the last one is `computed`. The
        product stops at the first one that holds the sampled channels. () means (computed,).
    """

    computed: int
    sampled: jax.Array | None = None
    ends: tuple[int, ...] = ()

    @property
    def stops(self) -> bool:
        """Whether there is a choice of `ends`."""
        return self.sampled is not None and len(self.ends) > 1

    @property
    def end(self) -> jax.Array:
        """int32 scalar: the position in `ends` of the first count that holds the sampled channels."""
        return jnp.sum(jnp.array(self.ends[:-1], jnp.int32) < self.sampled)

    def mask(self, x: jax.Array, axis: int = -1) -> jax.Array:
        """`x` with zeros beyond the sampled channels along `axis`. The length of x along this axis is `computed`."""
        if self.sampled is None:
            return x
        used = jnp.arange(self.computed) < self.sampled
        return jnp.where(jnp.expand_dims(used, [a for a in range(x.ndim) if a != axis % x.ndim]), x, 0)
