"""The settings of a step."""

import dataclasses

from bignas_jax.config.choices import Regularised
from bignas_jax.config.options import Options


@dataclasses.dataclass(frozen=True)
class Recipe:
    """The options that a step needs, as plain values.

    Attributes:
      num_random: random architectures of a sandwich.
      label_smoothing: the part of a label that is spread over all classes.
      dropout: the rate of dropout.
      drop_connect: the rate of drop-connect.
      sync_batch_norm: whether all devices share batch statistics.
      ema_decay: decay of the weights' exponential moving average; 0 switches it off.
      remat: whether blocks are recomputed in the backward pass.
      mean: three numbers, one a channel, of images scaled to 0..1.
      std: three numbers, one a channel, of images scaled to 0..1.
      seed: the seed of everything that is random.
      candidates: architectures of which attentive sampling takes one.
      budget_macs: multiply-adds from budget to budget in attentive sampling; 0 means equal parts of the space's range.
      uniform_budgets: whether attentive sampling draws budgets uniformly, and not as often as uniform draws meet them.
      predictor: the folder of a searched run, to whose evaluations attentive sampling fits a predictor of accuracies;
        '' means that candidates are scored by their loss on the batch.
      num_classes: outputs of the classifier.
      members: name of the sampler, or `package.module:Class`.
      loss: name of the loss, or `package.module:Class`.
      student_weight: how much each member that learns from the first one counts, which counts 1.
      student_start: the first step in which they train; before it the first one trains alone.
      student_ramp: steps from there on over which that weight rises linearly from 0; 0 means that it does not rise.
      all_regularised: whether dropout and drop-connect act on all members of a sandwich, and not on its biggest alone.
      resolve_conflicts_from: the step from which the biggest member's gradient gives way to the others'; None means
        never.
      mixup: alpha of mixup's distribution; 0 switches it off.
      cutmix: alpha of CutMix's distribution; 0 switches it off.
      teacher_weight: the weight of what a teacher from outside the run teaches, where there is one.
      label_weight: the weight of the labels beside it.
      micro_batches: the parts of a batch whose gradients are computed one after another and summed.
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
    student_weight: float = 1.0
    student_start: int = 0
    student_ramp: int = 0
    all_regularised: bool = False
    resolve_conflicts_from: int | None = None
    mixup: float = 0.0
    cutmix: float = 0.0
    candidates: int = 3
    budget_macs: float = 0.0
    uniform_budgets: bool = False
    predictor: str = ""
    num_classes: int = 1
    micro_batches: int = 1
    teacher_weight: float = 1.0
    label_weight: float = 1.0

    @classmethod
    def of(cls, options: Options, steps_per_epoch: int = 1) -> "Recipe":
        """The recipe of a run's options.

        Args:
          options: the options.
          steps_per_epoch: steps of one epoch.
        """
        sandwich = options.sandwich
        conflicts_from = round(sandwich.resolve_conflicts_after * steps_per_epoch)
        return cls(
            members=sandwich.members,
            loss=sandwich.loss,
            student_weight=sandwich.student_weight,
            student_start=round(sandwich.student_start * options.epochs * steps_per_epoch),
            student_ramp=round(sandwich.student_ramp * options.epochs * steps_per_epoch),
            all_regularised=sandwich.regularised == Regularised.ALL,
            resolve_conflicts_from=conflicts_from if sandwich.resolve_conflicts else None,
            num_random=sandwich.num_random,
            candidates=sandwich.candidates,
            budget_macs=sandwich.budget_macs,
            uniform_budgets=sandwich.uniform_budgets,
            predictor=sandwich.predictor,
            num_classes=options.model.num_classes,
            label_smoothing=sandwich.label_smoothing,
            dropout=options.model.dropout,
            drop_connect=options.model.drop_connect,
            sync_batch_norm=options.model.sync_batch_norm,
            ema_decay=options.optimizer.ema_decay,
            remat=options.remat,
            mean=options.data.mean,
            std=options.data.std,
            seed=options.seed,
            mixup=options.data.augment.mixup,
            cutmix=options.data.augment.cutmix,
            micro_batches=options.micro_batches,
            teacher_weight=options.teacher.weight,
            label_weight=options.teacher.label_weight,
        )

    @property
    def weighs_students(self) -> bool:
        """Whether there are steps in which a student does not count 1."""
        return self.student_weight != 1 or self.student_ramp > 0

    def student_weight_at(self, step: int) -> float:
        """How much each member that learns from the first one counts in a step, from `student_start` on."""
        return self.student_weight * min(1.0, (step + 1 - self.student_start) / max(1, self.student_ramp))
