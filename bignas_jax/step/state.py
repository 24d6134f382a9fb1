"""The state that a run carries from step to step."""

import dataclasses
from typing import Any

import jax


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """All that a run carries from step to step.

    Attributes:
      params: the weights.
      opt_state: the state of the optax chain.
      ema: the exponential moving average of the weights; None if it is off.
      step: int32, the number of steps made.
      skipped: int32, the number of steps without an update, because the loss or the gradient was not finite.
      skipped_in_row: int32, the number of such steps since the last update.
    """

    params: Any
    opt_state: Any
    ema: Any
    step: jax.Array
    skipped: jax.Array
    skipped_in_row: jax.Array

    @property
    def weights(self) -> Any:
        """The weights to evaluate: the moving average if there is one, otherwise `params`."""
        return self.params if self.ema is None else self.ema
