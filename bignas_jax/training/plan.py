"""When things happen in a run, and the watch over its losses."""

import collections
import dataclasses

import jax

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


class Watch:
    """Looks at the outcome of steps a little later, so that the host does not wait for the device after each step.

    Args:
      limit: so many steps in a row without a finite loss are too many.
    Attributes:
      in_row: such steps without a good one since, when it last looked.
    """

    def __init__(self, limit: int):
        self._limit, self._pending, self.in_row = limit, collections.deque(), 0

    def add(self, step: int, metrics: dict[str, jax.Array], drain: bool) -> int | None:
        """Takes the metrics of a step; looks at those of `LAG` steps ago, or at all with `drain`.

        Returns:
          The step at which the limit was reached, or None.
        """
        self._pending.append((step, metrics["skipped_in_row"]))
        while len(self._pending) > (0 if drain else LAG):
            step, in_row = self._pending.popleft()
            self.in_row = int(in_row)
            if self.in_row >= self._limit:
                return step
        return None
