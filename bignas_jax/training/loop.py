"""The training loop: from a config to a trained, evaluated supernet in a folder that can be continued at any time.

A single child is trained by the same loop, as the supernet of a space without choices.
"""

import contextlib
import functools
import math
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from bignas_jax.config.choices import OnCollapse
from bignas_jax.config.options import Data, Options
from bignas_jax.data import DataError, Loader, prefetch
from bignas_jax.data.fingerprint import fingerprint
from bignas_jax.data.prefetch import Prefetch
from bignas_jax.errors import Interrupted, Stopped, TrainingError
from bignas_jax.evaluation import placed
from bignas_jax.plugins import source
from bignas_jax.programs.kept import identity_of, use_compilation_cache
from bignas_jax.programs.processes import gather, together
from bignas_jax.programs.weights import draw_weights
from bignas_jax.runs import assess as reporting
from bignas_jax.runs import trackers
from bignas_jax.runs.agree import agreed, check_images, check_options
from bignas_jax.runs.checkpoint import Checkpoints
from bignas_jax.runs.folder import begun, located, trained
from bignas_jax.runs.hold import held
from bignas_jax.runs.identity import Use, claim
from bignas_jax.runs.logs import Logs
from bignas_jax.runs.session import Session
from bignas_jax.runs.signals import Signals, _agreed, _same_everywhere
from bignas_jax.spaces.naming import extremes
from bignas_jax.step import optimizer as optimizers
from bignas_jax.step.losses import loss_class
from bignas_jax.step.members.registry import members_class
from bignas_jax.step.recipe import Recipe
from bignas_jax.step.state import TrainState
from bignas_jax.step.teacher import Teacher
from bignas_jax.step.train_step import TrainStep
from bignas_jax.text import shown
from bignas_jax.training import origin as child_training
from bignas_jax.training.curves import curves
from bignas_jax.training.origin import Origin
from bignas_jax.training.phases import through
from bignas_jax.training.plan import Plan, Watch
from bignas_jax.training.prepared import keep as keep_prepared
from bignas_jax.training.prepared import prepared
from bignas_jax.training.teacher import keep as keep_teacher
from bignas_jax.training.teacher import open_teacher


@together
def train(options: Options, workdir: str | pathlib.Path, progress: bool = True) -> list[dict[str, Any]]:
    """Trains a supernet, or goes on where a run in `workdir` stopped, and evaluates its biggest and smallest child.

    With `config.arch` it is that child alone that is trained and evaluated. `config.init_from` gives the weights to
    begin with, `config.teacher` a network whose predictions are learnt from, and `config.phases` runs that are made
    before it. Writes config.json, classes.json, data.json, checkpoints/, metrics.jsonl, TensorBoard events and
    evaluation_val.json under `workdir`; teacher/ and evaluation_before.json, too, where there is a teacher, and where a
    child began as a slice.
    A run that was interrupted at any step and continued ends with the same bits as one that never was, on the same
    devices.

    Args:
      options: of the run, as `flags.parse` returns them.
    Returns:
      The rows of the final evaluation, as `reporting.assess` gives them, after that of the slice which a child was.
    Raises:
      ValueError: the data, the devices or the folder do not fit the config; one line.
      TrainingError: the loss was not finite in `config.max_nonfinite_steps` steps in a row.
      Stopped: by SIGTERM or SIGINT, after the state was saved.
    """
    use_compilation_cache()
    return through(options, pathlib.Path(workdir), lambda run, folder: _one_run(run, folder, progress))


def _one_run(options: Options, workdir: pathlib.Path, progress: bool) -> list[dict[str, Any]]:
    """`train` without regard to phases."""
    options = child_training.resolve(options, workdir)
    check_options(options)
    trackers.missing(options)
    loss_class(options.sandwich.loss)
    goes_on, run = trained(workdir), located(options, workdir)
    session = Session.open(run, training=True, run=workdir if goes_on else None, use=Use.GOING_ON)
    check_images(fingerprint(session.dataset))
    made = prepared(workdir, session.space, Recipe.of(options))
    loader = session.loader("train", options.batch_size, train=True)
    session.check_evaluation("val", watched_split(options.data))
    origin = None if begun(workdir) else Origin.open(session)
    teacher = open_teacher(session, workdir, goes_on)
    with held(workdir, "training"):
        finished = claim(workdir, options, Plan.of(options, loader.steps_per_epoch).stop)
        if finished is not None:
            return reporting.left(workdir, finished)
        if jax.process_index() == 0 and not goes_on:
            session.note_data(workdir)
            if teacher is not None:
                keep_teacher(teacher, workdir)
        keep_prepared(workdir, made)
        return _trained(session, loader, workdir, origin, teacher, progress, made)


def _trained(
    session: Session,
    loader: Loader,
    workdir: pathlib.Path,
    origin: Origin | None,
    teacher: Teacher | None,
    progress: bool,
    made: Any,
) -> list[dict[str, Any]]:
    """Trains to the end of the plan, and gives the rows of the final evaluation."""
    checkpoints = Checkpoints(workdir, session.options.checkpoint.keep, on_damage=session.options.checkpoint.on_damage)
    run = Run(session, loader, workdir, checkpoints, origin, progress, teacher, made)
    try:
        state = run.start()
        before = run.before(state)
        state = run.loop(state)
        checkpoints.wait()
        rows = reporting.assess(session, state.weights, _extremes(session), "val")
    finally:
        run.close()
    if run.first:
        reporting.write(rows, workdir, "val", run.plan.stop)
    return before + rows


class Run:
    """One training run: its parts, and the loop over them."""

    def __init__(
        self,
        session: Session,
        loader: Loader,
        workdir: pathlib.Path,
        checkpoints: Checkpoints,
        origin: Origin | None,
        progress: bool,
        teacher: Teacher | None = None,
        made: Any = None,
    ):
        options = session.options
        self.session, self.options, self.loader, self.workdir = session, options, loader, workdir
        self.checkpoints, self.origin, self.first = checkpoints, origin, jax.process_index() == 0
        self.progress = progress and self.first
        self.plan = Plan.of(options, loader.steps_per_epoch)
        schedule = optimizers.schedule(options.optimizer, loader.steps_per_epoch, options.epochs)
        recipe = Recipe.of(options, loader.steps_per_epoch)
        plugged = members_class(session.space, recipe.members), loss_class(recipe.loss)
        sizes = loader.steps_per_epoch, options.epochs, options.batch_size, options.data.image_size
        self.step = TrainStep(
            session.space,
            session.graphdef,
            recipe,
            optimizers.optimizer(options.optimizer, schedule),
            session.mesh,
            schedule,
            identity=identity_of(session.network, recipe, options.optimizer, sizes, *map(source, plugged)),
            prepared=made,
            teacher=teacher,
        )
        self.watch = Watch(options.max_nonfinite_steps, options.model.num_classes)
        self.corrupt = 0  # images replaced since this process began
        self.batches: Prefetch | None = None

    def close(self) -> None:
        """Ends what reads images ahead, and waits for the checkpoints."""
        if self.batches is not None:
            self.batches.close()
        self.checkpoints.close()

    def start(self) -> TrainState:
        """The state to go on from, with everything compiled that the rest of the run needs."""
        options, session = self.options, self.session
        identity, model = self.session.network, options.model
        params = draw_weights(
            session.space, model.num_classes, dtype=model.dtype, seed=options.seed, zero_gammas=model.zero_gammas,
            identity=identity,
        )  # fmt: skip
        newest = self.checkpoints.newest()
        if newest is None and self.origin is not None:
            params = self.origin.weights(session.space, params, session.mesh)
            if self.first:
                print(shown(f"starting from {self.origin}"))
        state = self.step.init(params)
        if newest is not None:
            state = self.checkpoints.restore(state, session.mesh)
            if self.first and self.checkpoints.is_imported(newest):
                workdir = shown(str(self.workdir))
                print(f"starting from the weights that were imported into {workdir}, with a fresh optimizer")
            elif self.first:
                print(shown(f"going on from step {newest} of {self.plan.stop} in {self.workdir}"))
        step, begin = int(state.step), self.step.recipe.student_start
        if self.first and self.step.waits and self.plan.stop <= begin:
            stop = self.plan.stop
            print(f"the run ends at step {stop}: no student trains before {begin} steps (sandwich.student_start)")
        if step < self.plan.stop:
            # Its workers need seconds until their first batch: meanwhile programs are compiled.
            self.batches = prefetch(self.loader.epochs(step, self.plan.stop), session.mesh)
            size, batch = options.data.image_size, options.batch_size
            self.step.compile(
                state,
                {
                    "image": jax.ShapeDtypeStruct((batch, size, size, 3), np.uint8),
                    "label": jax.ShapeDtypeStruct((batch,), np.int32),
                },
                self.progress,
            )
        session.compile_evaluation(_extremes(session).values(), self.progress)
        return state

    def before(self, state: TrainState) -> list[dict[str, Any]]:
        """The rows of the network that the run began with; none where it had no weights, or another classifier."""
        if not self.options.init_from:
            return []
        if int(state.step):
            return reporting.read(self.workdir, "before", 0)
        if self.origin is None or not self.origin.keeps_classifier:
            return []
        session = self.session
        found = extremes(session.space)
        names = {"SLICE" if name == "CHILD" else f"{name} BEFORE": arch for name, arch in found.items()}
        rows = reporting.assess(session, state.weights, _extremes(session), "val", names)
        if self.first:
            print("before training: val top-1", ", ".join(f"{100 * row['top1']:.2f}% ({row['name']})" for row in rows))
            reporting.write(rows, self.workdir, "val", 0, name="before")
        return rows

    def loop(self, state: TrainState) -> TrainState:
        """Steps until the plan's end. Raises TrainingError, Stopped or DataError; what was done is saved first."""
        plan, step = self.plan, int(state.step)
        track = functools.partial(trackers.start, self.options, self.workdir)
        logs = Logs(self.workdir, step, plan.stop, active=self.first, bar=self.progress, track=track)
        with contextlib.closing(logs):
            # A slice's curve begins before the first step. After it: a signal came between a step and its evaluation.
            if (step or self.origin) and plan.evaluates(step) and not _same_everywhere(logs.evaluated):
                top1 = self._evaluate(state, logs, step)
                if step:
                    self.checkpoints.score(step, top1)
            if step >= plan.stop:
                self.checkpoints.prune()
                return state
            for at, losses in gather(logs.losses(self.step.members.names))[0]:
                self.watch.collapse.add(at, losses)
            with self.batches, Signals() as signals:
                try:
                    for batch in agreed(self.batches):
                        if step == 0:
                            logs.images("images", _first_images(batch, self.options.log.images), step)
                        state, metrics = self.step(state, batch, step)
                        step += 1
                        self._after(state, step, batch, metrics, logs, signals)
                except DataError as error:
                    self.checkpoints.save(state, step)
                    self.checkpoints.wait()
                    raise DataError(f"{error} (step {step} is saved; the same command goes on from there)") from error
        return state

    def _after(self, state: TrainState, step: int, batch: dict, metrics: Any, logs: Logs, signals: "Signals") -> None:
        """What follows a step: logging, evaluation, a checkpoint, or the end of the run."""
        plan = self.plan
        logs.advance()
        self._note_corrupt(batch, logs)
        if step % plan.log_every == 0 or step == plan.stop:
            self._log(logs, step, metrics)
        failed = self.watch.add(step, metrics, drain=plan.saves(step))
        if failed:
            raise self._not_finite(failed)
        if self.watch.collapsed:
            self._tell_collapse(logs)
        stopped, top1 = _agreed(signals.received), None
        if plan.evaluates(step) and not stopped:
            try:
                top1 = self._evaluate(state, logs, step, signals.tick)
            except Interrupted as error:  # the state is saved, and the evaluation is made when the run goes on
                stopped = error.signum
        # Weights whose last loss was not finite are no ground to go on from, unless there is nothing else to keep.
        if stopped or step == plan.stop or (plan.saves(step) and not self.watch.in_row):
            self.checkpoints.save(state, step, top1)
        if stopped:
            self.checkpoints.wait()
            raise Stopped(stopped, f"at step {step}")

    def _not_finite(self, step: int) -> TrainingError:
        """The error of a run whose losses are not finite, after the weights that they came from are out of the way."""
        first_bad = step - self.watch.in_row + 1
        newest = self.checkpoints.delete_from(first_bad - 1)
        last = "there is no checkpoint from before them"
        if newest is not None:
            last = f"the last good checkpoint is that of step {newest} in {self.checkpoints.folder}"
        return TrainingError(
            f"the loss was not finite in {self.watch.in_row} steps in a row, from step {first_bad} on, and "
            f"their updates were left out; {last}: lower config.optimizer.learning_rate or set "
            "config.optimizer.clip_norm, and run the command again"
        )

    def _tell_collapse(self, logs: Logs) -> None:
        """Says that the network has forgotten what it knew, or ends the run before it does.

        Raises:
          TrainingError: `config.on_collapse` is stop. Checkpoints from then on are out of the way.
        """
        self.watch.collapsed, since = False, self.watch.collapse.since
        classes = self.options.model.num_classes
        found = (
            f"the losses of all members have been at ln({classes}) = {math.log(classes):.2f}, what guessing gives, "
            f"since step {since}"
        )
        advice = "lower config.optimizer.learning_rate or set config.optimizer.clip_norm"
        if self.options.on_collapse == OnCollapse.TELL:
            logs.say(f"{found}: {advice}; config.on_collapse=stop goes back to the last checkpoint before it")
            return
        newest = self.checkpoints.delete_from(since - 1)  # the loss of a step is that of the weights before it
        last = "there is no checkpoint from before that"
        if newest is not None:
            last = f"the last checkpoint from before that is step {newest} in {self.checkpoints.folder}"
        raise TrainingError(f"{found}; {last}: {advice}, and run the command again")

    def _log(self, logs: Logs, step: int, metrics: Any) -> None:
        metrics = jax.device_get(metrics)
        names = self.step.members.names
        rate = logs.images_per_second(step, self.options.batch_size)
        values = {
            **curves(self.step, metrics, self.options.model.num_classes),
            **{name: float(metrics[name]) for name in ("learning_rate", "gradient_norm")},
            "skipped_updates": int(metrics["skipped"]),
            "epoch": step / self.plan.steps_per_epoch,
            "images_per_second": rate,
        }
        if self.corrupt:
            values["corrupt_images"] = self.corrupt
        show = {
            **{name: f"{values[f'loss/{name}']:.3f}" for name in (names[0], names[-1]) if f"loss/{name}" in values},
            "lr": f"{values['learning_rate']:.2g}",
            "images/s": f"{rate:,.0f}",
        }
        if values["skipped_updates"]:
            show["skipped"] = str(values["skipped_updates"])
        logs.record(step, values, show)

    def _evaluate(
        self, state: TrainState, logs: Logs, step: int, tick: Callable[[], None] = lambda: None
    ) -> float:
        """Accuracies of MAX and MIN on the held-out images (on the validation split if none are held out)."""
        split = watched_split(self.options.data)
        found = self.session.evaluate(state.weights, _extremes(self.session), split, tick=tick)
        scores = {name: found[arch] for name, arch in extremes(self.session.space).items()}
        values = {"epoch": step / self.plan.steps_per_epoch}
        for name, score in scores.items():
            curve = name.lower()
            values |= {f"{split}_top1/{curve}": score.top1, f"{split}_top5/{curve}": score.top5}
            values |= {f"{split}_loss/{curve}": score.loss}
        logs.record(step, values)
        logs.say(
            f"step {step}, epoch {step / self.plan.steps_per_epoch:.1f}: {split} top-1 "
            + ", ".join(f"{name} {100 * score.top1:.2f}%" for name, score in scores.items())
        )
        logs.pause(step)
        return float(np.mean([score.top1 for score in scores.values()]))

    def _note_corrupt(self, batch: dict, logs: Logs) -> None:
        if batch["skipped"]:
            self.corrupt += batch["skipped"]
            logs.say(f"{self.corrupt} corrupt images replaced since the start (config.data.on_corrupt is skip)")


def watched_split(data: Data) -> str:
    """The images that MAX and MIN are scored on during training: the held-out ones, where there are some."""
    return "holdout" if data.holdout else "val"


def _extremes(session: Session) -> dict:
    return placed(session.space, extremes(session.space).values(), sliced=False)


def _first_images(batch: dict, count: int) -> np.ndarray:
    return np.asarray(batch["image"].addressable_shards[0].data)[:count]
