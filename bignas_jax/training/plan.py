"""When things happen in a run, and the watch over its losses."""

import collections
import dataclasses
import math
from collections.abc import Sequence

import jax
import numpy as np

from bignas_jax.config.options import Options

LAG = 2  # steps that may be under way before the host looks at their outcome


@dataclasses.dataclass(frozen=True)
class Plan:
    """When things happen, in steps."""

    stop: int
    steps_per_epoch: int
    evaluate_every: int
    save_every: int
    log_every: int

    @classmethod
    def of(cls, options: Options, steps_per_epoch: int) -> "Plan":
        steps = options.epochs * steps_per_epoch
        return cls(
            stop=min(steps, options.max_steps or steps),
            steps_per_epoch=steps_per_epoch,
            evaluate_every=max(1, round(options.evaluation.every_epochs * steps_per_epoch)),
            save_every=options.checkpoint.every_steps,
            log_every=options.log.every_steps,
        )

    def evaluates(self, step: int) -> bool:
        return step % self.evaluate_every == 0 or step == self.stop

    def saves(self, step: int) -> bool:
        return step % self.save_every == 0 or self.evaluates(step)


LEARNT, GUESSES, STAYS = 0.8, 0.98, 50  # parts of ln(classes), and steps in a row


class Collapse:
    """Notices that a network which had learnt something predicts nothing any more.

    The losses of all members jump to ln(classes), what guessing gives, and stay there. Users of AttentiveNAS and
    AlphaNet met it (issues 5 and 6 of theirs).

    Args:
      num_classes: of the data.
    Attributes:
      since: the step from which on all members guess; None while they do not.
    """

    def __init__(self, num_classes: int):
        self._guessing, self._learnt, self.since = math.log(num_classes), False, None

    def add(self, step: int, losses: Sequence[float]) -> bool:
        """Takes the losses of a step. True once the members have guessed for `STAYS` steps, and then never again."""
        if not self._learnt or min(losses) < GUESSES * self._guessing:
            self._learnt = self._learnt or max(losses) < LEARNT * self._guessing
            self.since = None
            return False
        self.since = self.since or step
        return step - self.since + 1 == STAYS


class Watch:
    """Looks at the outcome of steps a little later, so that the host does not wait for the device after each step.

    Args:
      limit: so many steps in a row without a finite loss are too many.
      num_classes: of the data.
    Attributes:
      in_row: such steps without a good one since, when it last looked.
      collapse: a look at the losses of all members.
      collapsed: whether they have all been at what guessing gives for a while, and nobody was told yet.
    """

    def __init__(self, limit: int, num_classes: int):
        self._limit, self._pending, self.in_row = limit, collections.deque(), 0
        self.collapse, self.collapsed = Collapse(num_classes), False

    def add(self, step: int, metrics: dict[str, jax.Array], drain: bool) -> int | None:
        """Takes the metrics of a step; looks at those of `LAG` steps ago, or at all with `drain`.

        Returns:
          The step at which the limit was reached, or None.
        """
        self._pending.append((step, metrics["skipped_in_row"], metrics["loss"]))
        while len(self._pending) > (0 if drain else LAG):
            step, in_row, losses = self._pending.popleft()
            self.in_row = int(in_row)
            self.collapsed |= self.collapse.add(step, np.asarray(losses).tolist())
            if self.in_row >= self._limit:
                return step
        return None
