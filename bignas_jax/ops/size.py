"""What elastic ops share: the size of an elastic dimension, and the precision of sums."""

import dataclasses

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Size:
    """A channel count inside an executable.

    Attributes:
      computed: the number of channels that the executable computes; weights are sliced to it at trace time.
      sampled: int32 scalar, at most `computed`: the channels that the sampled architecture uses. None says that
        it uses all of them ("sliced"): no mask is traced.
      ends: counts, ascending, the last one `computed`, of which products over these channels compute the first that
        holds the sampled ones; () is (computed,).
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
        """int32 scalar: which of `ends` is the first that holds the sampled channels."""
        return jnp.sum(jnp.array(self.ends[:-1], jnp.int32) < self.sampled)

    def mask(self, x: jax.Array, axis: int = -1) -> jax.Array:
        """Zeroes what lies beyond the sampled channels along `axis` of `x`, whose length there is `computed`."""
        if self.sampled is None:
            return x
        used = jnp.arange(self.computed) < self.sampled
        return jnp.where(jnp.expand_dims(used, [a for a in range(x.ndim) if a != axis % x.ndim]), x, 0)
