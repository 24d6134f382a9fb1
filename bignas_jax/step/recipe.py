"""The settings of a step."""

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What a sandwich step needs of a config, as plain values."""

    num_random: int = 2
    label_smoothing: float = 0.0
    dropout: float = 0.0
    drop_connect: float = 0.0
    sync_batch_norm: bool = False
    ema_decay: float = 0.0
    remat: bool = False
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    seed: int = 0

    @classmethod
    def from_config(cls, config: Any) -> "Recipe":
        return cls(
            num_random=config.sandwich.num_random,
            label_smoothing=config.sandwich.label_smoothing,
            dropout=config.model.dropout,
            drop_connect=config.model.drop_connect,
            sync_batch_norm=config.model.sync_batch_norm,
            ema_decay=config.optimizer.ema_decay,
            remat=config.remat,
            mean=tuple(config.data.mean),
            std=tuple(config.data.std),
            seed=config.seed,
        )
