"""Checkpoints of a run, by orbax: written in the background, the newest few and the best one kept.

Each holds a manifest: the items that it consists of, and shape, dtype and checksum of each of their arrays. What is
read is held against it, so that a damaged or incomplete checkpoint is told from one of another model.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import Mesh, NamedSharding

from bignas_jax.config.choices import OnDamage
from bignas_jax.errors import CheckpointError, DamagedCheckpoint
from bignas_jax.files import write_json
from bignas_jax.programs.devices import REPLICATED, shapes
from bignas_jax.programs.processes import gather
from bignas_jax.runs.damage import clear_what_orbax_cannot_open, move_aside
from bignas_jax.runs.manifest import manifest_of
from bignas_jax.runs.orbax_manager import open_manager, writing
from bignas_jax.runs.state_names import named, state_names, unnamed
from bignas_jax.runs.stored import MANIFEST, Stored, score_of
from bignas_jax.step.state import TrainState
from bignas_jax.text import tell

_MOMENTS = ("mean", "variance")
Read = TypeVar("Read")


class Checkpoints:
    """The checkpoints of a run's folder.

    A checkpoint has the items `params`, `ema` (where there is a moving average) and `training` (optimizer state and
    counters), so that evaluation and search read the weights alone. One that was imported (step 0) has no `training`
    but the `statistics` that the biggest architecture's batch norms came with; it is never deleted.

    Where the newest is damaged or incomplete, the one before it is taken, and a line says so. A run that goes on moves
    the damaged one to `damaged/` in its folder, for it makes that step anew.

    Args:
      workdir: the run's folder; checkpoints lie in `checkpoints/` under it.
      keep: how many of the newest to keep, besides the best.
      read_only: refuse to save, create nothing.
      on_damage: 'fall_back', or 'refuse' to take another one than the newest.
    """

    def __init__(
        self,
        workdir: str | pathlib.Path,
        keep: int = 1,
        read_only: bool = False,
        on_damage: str = OnDamage.FALL_BACK,
    ):
        self.folder = pathlib.Path(workdir).absolute() / "checkpoints"
        self._keep, self._read_only, self._on_damage = keep, read_only, on_damage
        if read_only and not self.folder.is_dir():
            raise CheckpointError(f"no checkpoint under {self.folder}: train first, or give the run's --workdir")
        if jax.process_index() == 0:
            clear_what_orbax_cannot_open(self.folder, read_only)
        _meet("cleared")
        self._manager = open_manager(self.folder, keep, read_only, self.is_imported(0))

    def save(self, state: TrainState, step: int, top1: float | None = None) -> None:
        """Starts to save in the background; the arrays are copied before this returns.

        Args:
          state: the train state.
          step: its number.
          top1: mean accuracy of the biggest and the smallest architecture, by which the best is chosen; None where
            they were not evaluated.
        Raises:
          SaveError: this one, or the one before it, cannot be written.
        """
        if step in self._manager.all_steps():
            return
        items = {"params": named(state.params), "training": _training(state)}
        if state.ema is not None:
            items["ema"] = named(state.ema)
        self._save(step, items, None if top1 is None else {"top1": top1})

    def _save(self, step: int, items: Mapping[str, Any], metrics: Mapping[str, float] | None = None) -> None:
        args = {name: ocp.args.StandardSave(item) for name, item in items.items()}
        args[MANIFEST] = ocp.args.JsonSave({name: manifest_of(item) for name, item in items.items()})
        with writing(self.folder):
            self._manager.save(step, args=ocp.args.Composite(**args), metrics=metrics)

    def score(self, step: int, top1: float) -> None:
        """Gives a checkpoint the score that it was saved without, because a signal came before its evaluation."""
        if step not in self._manager.all_steps() or self._manager.metrics(step) is not None:
            return
        self.wait()
        with writing(self.folder):
            if jax.process_index() == 0:
                folder = self.folder / str(step) / "metrics"
                folder.mkdir(exist_ok=True)
                write_json(folder / "metrics", {"top1": top1})
            _meet("score")
            self._manager.reload()

    def save_imported(self, params: Any, statistics: dict[str, tuple[Any, Any]]) -> None:
        """Saves weights that were trained elsewhere, as step 0, and waits until they are on disk.

        Args:
          statistics: of the biggest architecture, as `Supernet.__call__` takes them: layer name to (mean, variance).
        """
        parts = {f"{name}.{kind}": value for name, pair in statistics.items()
                 for kind, value in zip(_MOMENTS, pair, strict=True)}  # fmt: skip
        self._save(0, {"params": named(params), "statistics": parts})
        self.wait()

    def is_imported(self, step: int) -> bool:
        """Whether a checkpoint holds weights from elsewhere: there is no optimizer state to go on with."""
        return (self.folder / str(step) / "statistics").is_dir()

    def find(self, which: str | int = "newest") -> int:
        """The step of the 'newest' or the 'best' checkpoint, or of the given one.

        Raises:
          CheckpointError: there is none.
        """
        steps = sorted(self._manager.all_steps())
        if not steps:
            raise CheckpointError(f"no checkpoint under {self.folder}: train first, or give the run's --workdir")
        if which == "newest":
            return steps[-1]
        if which == "best":
            scores = {step: score for step in steps if (score := score_of(self.folder / str(step))) is not None}
            return max(scores, key=lambda step: (scores[step], step)) if scores else steps[-1]
        if not str(which).isdecimal() or int(which) not in steps:
            raise CheckpointError(
                f"--checkpoint: found {which}, expected newest, best or one of {', '.join(map(str, steps))}"
            )
        return int(which)

    def newest(self) -> int | None:
        """The step of the newest checkpoint, or None."""
        return self._manager.latest_step()

    def restore(self, state: TrainState, mesh: Mesh) -> TrainState:
        """The newest whole checkpoint, in the form of `state`, on the mesh.

        Of an imported one the weights, which begin the moving average, too; the rest of `state` stays.

        Raises:
          CheckpointError: there is none, or its arrays have other shapes or names.
        """

        def read(step: int) -> TrainState:
            if self.is_imported(step):
                params = self._weights(state.params, mesh, step)
                ema = None if state.ema is None else jax.tree.map(jnp.copy, params)
                return dataclasses.replace(state, params=params, ema=ema)
            return self._state(state, mesh, step)

        return self._whole(read)[0]

    def _state(self, state: TrainState, mesh: Mesh, step: int) -> TrainState:
        names = state_names(state.opt_state)
        if self._stored(step).is_old():  # numbered, as they come
            names = [f"{number:05d}" for number in range(len(names))]
        items = {"params": named(state.params), "training": _training(state, names)}
        if state.ema is not None:
            items["ema"] = named(state.ema)
        everywhere = NamedSharding(mesh, REPLICATED)
        read = self._stored(step).read({name: shapes(item, everywhere) for name, item in items.items()})
        training = read["training"]
        return dataclasses.replace(
            state,
            params=unnamed(read["params"], state.params),
            ema=None if state.ema is None else unnamed(read["ema"], state.ema),
            opt_state=jax.tree.unflatten(
                jax.tree.structure(state.opt_state), [training["optimizer"][name] for name in names]
            ),
            **{name: training[name] for name in ("step", "skipped", "skipped_in_row")},
        )

    def _whole(self, read: Callable[[int], Read]) -> tuple[Read, int]:
        """What `read` gives of the newest step that is whole, and that step.

        Raises:
          CheckpointError: there is none, or the newest is damaged and that is to be refused.
        """
        self.find()  # at least one
        steps = sorted(self._manager.all_steps(), reverse=True)
        for step, before in zip(steps, [*steps[1:], None], strict=True):
            found = error = None
            try:
                found = read(step)
            except DamagedCheckpoint as damage:
                error = damage
            # What one process alone cannot read would leave it with the weights of another step.
            told = next((line for line in gather(error and str(error)) if line is not None), None)
            if told is None:
                return found, step
            if before is None:
                raise CheckpointError(f"{told}; no whole checkpoint is left in {self.folder}") from error
            if self._on_damage == OnDamage.REFUSE:
                raise CheckpointError(
                    f"{told}; config.checkpoint.on_damage=fall_back takes that of step {before}"
                ) from error
            if jax.process_index() == 0:
                tell(f"{told}; that of step {before} is taken")
            self._set_aside(step)
        raise AssertionError("unreachable")

    def _set_aside(self, step: int) -> None:
        """Moves a damaged checkpoint out of the way of the one that will be made anew."""
        if self._read_only:
            return
        if jax.process_index() == 0:
            move_aside(self.folder / str(step), self.folder)
        _meet("damaged")
        self._manager.reload()

    def weights(self, params: Any, mesh: Mesh, which: str | int = "newest") -> tuple[Any, int]:
        """The weights to evaluate (the moving average where the checkpoint has one), and their step.

        Args:
          params: parameters, or their shapes, in the form of `supernet.build`.
        Raises:
          CheckpointError: there is no such checkpoint, or it does not fit.
        """
        if which == "newest":
            return self._whole(lambda step: self._weights(params, mesh, step))
        step = self.find(which)
        return self._weights(params, mesh, step), step

    def _weights(self, params: Any, mesh: Mesh, step: int) -> Any:
        item = "ema" if "ema" in self._stored(step).items() else "params"
        form = shapes(named(params), NamedSharding(mesh, REPLICATED))
        return unnamed(self._stored(step).read({item: form})[item], params)

    def statistics(
        self, widths: Mapping[str, int], mesh: Mesh, which: str | int = "newest"
    ) -> dict[str, tuple[Any, Any]]:
        """The batch-norm statistics that an imported checkpoint keeps for the biggest architecture.

        Args:
          widths: name to channels of the statistics, as `layers.statistics` gives them.
        Returns:
          What `Supernet.__call__` takes as `Mode.statistics`.
        Raises:
          CheckpointError: there is no such checkpoint, or it keeps none.
        """
        step = self.find(which)
        if not (self.folder / str(step) / "statistics").is_dir():
            raise CheckpointError(
                f"checkpoint {self.folder / str(step)} keeps no batch-norm statistics, as only imported ones do: "
                "let them be calibrated"
            )
        form = {f"{name}.{kind}": jax.ShapeDtypeStruct((width,), np.float32)
                for name, width in widths.items() for kind in _MOMENTS}  # fmt: skip
        form = shapes(form, NamedSharding(mesh, REPLICATED))
        read = self._stored(step).read({"statistics": form})["statistics"]
        return {name: tuple(read[f"{name}.{kind}"] for kind in _MOMENTS) for name in widths}

    def _stored(self, step: int) -> Stored:
        return Stored(self._manager, self.folder, step)

    def delete_from(self, step: int) -> int | None:
        """Deletes the checkpoints of `step` and later ones, but none that was imported.

        Returns:
          The newest that is left, or None.
        """
        self.wait()
        for later in [s for s in self._manager.all_steps() if s >= step and not self.is_imported(s)]:
            self._manager.delete(later)
        return self.newest()

    def prune(self) -> None:
        """Deletes what the run does not keep. A process that was killed behind a save left it, and no save followed."""
        self.wait()
        steps = sorted(self._manager.all_steps())
        kept = {*steps[-self._keep :], *([self.find("best")] if steps else [])}
        for step in steps:
            if step not in kept and not self.is_imported(step):
                self._manager.delete(step)

    def wait(self) -> None:
        """Until what was started to save is on disk."""
        with writing(self.folder):
            self._manager.wait_until_finished()

    def close(self) -> None:
        with writing(self.folder):
            self._manager.close()


def _meet(purpose: str) -> None:
    """Waits until all processes are here."""
    gather(purpose)


def _training(state: TrainState, names: list[str] | None = None) -> dict:
    leaves = jax.tree.leaves(state.opt_state)
    return {
        "optimizer": dict(zip(names or state_names(state.opt_state), leaves, strict=True)),
        "step": state.step,
        "skipped": state.skipped,
        "skipped_in_row": state.skipped_in_row,
    }
