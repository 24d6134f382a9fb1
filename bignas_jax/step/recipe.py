"""The settings of a step."""

import dataclasses

from bignas_jax.config.options import Options


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What a step needs of the options, as plain values.

    Attributes:
      members, loss: names, or `package.module:Class`. mean, std: of images scaled to 0..1, three numbers each.
    """

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
    members: str = "sandwich"
    loss: str = "soft_cross_entropy"

    @classmethod
    def of(cls, options: Options) -> "Recipe":
        return cls(
            members=options.sandwich.members,
            loss=options.sandwich.loss,
            num_random=options.sandwich.num_random,
            label_smoothing=options.sandwich.label_smoothing,
            dropout=options.model.dropout,
            drop_connect=options.model.drop_connect,
            sync_batch_norm=options.model.sync_batch_norm,
            ema_decay=options.optimizer.ema_decay,
            remat=options.remat,
            mean=options.data.mean,
            std=options.data.std,
            seed=options.seed,
        )
