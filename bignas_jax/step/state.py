"""What a run carries from step to step."""

import dataclasses
from typing import Any

import jax


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """All that a run carries from step to step.

    Attributes:
      params, ema: weights, and their exponential moving average (None if off).
      opt_state: of the optax chain.
      step: int32, steps made. skipped, skipped_in_row: int32, those whose update was left out because the loss or
        the gradient was not finite: in all, and without a good one since.
    """

    params: Any
    opt_state: Any
    ema: Any
    step: jax.Array
    skipped: jax.Array
    skipped_in_row: jax.Array

    @property
    def weights(self) -> Any:
        """What to evaluate: the moving average where there is one."""
        return self.params if self.ema is None else self.ema
