"""How one forward pass treats batch norm and regularisation."""

import dataclasses
from typing import Any

import jax


@dataclasses.dataclass(frozen=True)
class Mode:
    """How one forward pass treats batch norm and regularisation.

    Attributes:
      statistics: a child's batch-norm statistics to normalise with, as `Supernet.__call__` returns them; None:
        those of the batch itself.
      collect: also return the batch's statistics.
      axis_name: mesh axis over which batch statistics are shared, or None.
      rng: key for dropout and drop-connect; None switches both off.
      dropout, drop_connect: their rates.
      remat: recompute each block in the backward pass instead of keeping its insides.
    """

    statistics: Any = None
    collect: bool = False
    axis_name: str | None = None
    rng: jax.Array | None = None
    dropout: float = 0.0
    drop_connect: float = 0.0
    remat: bool = False

    def of(self, name: str) -> dict[str, Any]:
        """Arguments of the batch norm of this name."""
        stored = None if self.statistics is None else self.statistics[name]
        return {"statistics": stored, "axis_name": self.axis_name}


PLAIN = Mode()  # batch statistics, no regularisation
