"""How one forward pass treats batch norm and regularisation."""

import dataclasses
from typing import Any

import jax

NOTED = "noted"


@dataclasses.dataclass(frozen=True)
class Mode:
    """How one forward pass treats batch norm and regularisation.

    Attributes:
      statistics: batch-norm statistics to normalise with, as `Supernet.__call__` returns them; None means the batch's
        own.
      collect: whether the batch's statistics are returned too.
      ranges: for a network in 8-bit integers (`ops.rounding`), which has given statistics: NOTED returns the ranges of
        its tensors, and such ranges round to them; None rounds nothing.
      axis_name: mesh axis whose devices share the batch's statistics, or None.
      rng: random key for dropout and drop-connect; None switches both off.
      dropout: the rate of dropout before the classifier.
      drop_connect: the rate that drop-connect grows to from block to block (`supernet.drop_connect_rate`).
      remat: whether each block is recomputed in the backward pass, so that its inner values need no memory.
    """

    statistics: Any = None
    collect: bool = False
    ranges: Any = None
    axis_name: str | None = None
    rng: jax.Array | None = None
    dropout: float = 0.0
    drop_connect: float = 0.0
    remat: bool = False

    @property
    def moments(self) -> bool:
        """Whether batch norm needs the moments of its input."""
        return self.statistics is None

    def of(self, name: str) -> dict[str, Any]:
        """Arguments of the batch norm behind the convolution of this name."""
        stored = None if self.statistics is None else self.statistics[name]
        return {"statistics": stored, "axis_name": self.axis_name}


PLAIN = Mode()  # batch statistics, no regularisation
