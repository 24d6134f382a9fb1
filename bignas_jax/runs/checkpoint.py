"""Checkpoints of a run, by orbax: written in the background, the newest few and the best one kept."""

import dataclasses
import logging
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import Mesh, NamedSharding
from orbax.checkpoint import checkpoint_managers

from bignas_jax.errors import CheckpointError
from bignas_jax.programs.devices import REPLICATED, shapes
from bignas_jax.programs.processes import fail
from bignas_jax.spaces.layers import weight_name
from bignas_jax.step.state import TrainState

_MOMENTS = ("mean", "variance")


class _Manager(ocp.CheckpointManager):
    """orbax's, whose thread waits for the other processes before it says that a save failed: they would all hang."""

    def _wait_for_checkpointers(self, *arguments: Any) -> None:
        try:
            super()._wait_for_checkpointers(*arguments)
        except Exception as error:
            fail(_of_the_system(error, self.directory))
            raise


def _of_the_system(error: Exception, folder: pathlib.Path) -> Exception:
    """The error of the system, such as that of a full disk, that tensorstore tells of in a ValueError."""
    found = re.search(r"os_error_code='(\d+)'", str(error))
    return OSError(int(found[1]), os.strerror(int(found[1])), str(folder)) if found else error


class Checkpoints:
    """The checkpoints of a run's folder.

    A checkpoint has the items `params`, `ema` (where there is a moving average) and `training` (optimizer state and
    counters), so that evaluation and search read the weights alone. One that was imported (step 0) has no `training`
    but the `statistics` that the biggest architecture's batch norms came with; it is never deleted.

    Args:
      workdir: the run's folder; checkpoints lie in `checkpoints/` under it.
      keep: how many of the newest to keep, besides the best.
      read_only: refuse to save, create nothing.
    """

    def __init__(self, workdir: str | pathlib.Path, keep: int = 1, read_only: bool = False):
        # orbax reports every save and directory scan as a running commentary; its errors are raised, too.
        logging.getLogger("absl").setLevel(logging.CRITICAL)
        self.folder = pathlib.Path(workdir).absolute() / "checkpoints"
        if read_only and not self.folder.is_dir():
            raise CheckpointError(f"no checkpoint under {self.folder}: train first, or give the run's --workdir")
        policy = checkpoint_managers.AnyPreservationPolicy(
            [
                checkpoint_managers.LatestN(keep),
                checkpoint_managers.BestN(
                    get_metric_fn=lambda metrics: metrics["top1"], n=1, keep_checkpoints_without_metrics=False
                ),
                checkpoint_managers.CustomSteps([0] if self.is_imported(0) else []),
            ]
        )
        self._manager = _Manager(
            self.folder,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=policy,
                best_fn=lambda metrics: metrics["top1"],
                create=not read_only,
                read_only=read_only,
                enable_async_checkpointing=not read_only,
            ),
        )

    def save(self, state: TrainState, step: int, top1: float | None = None) -> None:
        """Starts to save in the background; the arrays are copied before this returns.

        Args:
          top1: mean accuracy of the biggest and the smallest architecture, by which the best is chosen; None where
            they were not evaluated.
        """
        if step in self._manager.all_steps():
            return
        items = {"params": ocp.args.StandardSave(_named(state.params))}
        if state.ema is not None:
            items["ema"] = ocp.args.StandardSave(_named(state.ema))
        items["training"] = ocp.args.StandardSave(_training(state))
        metrics = None if top1 is None else {"top1": top1}
        self._manager.save(step, args=ocp.args.Composite(**items), metrics=metrics)

    def save_imported(self, params: Any, statistics: dict[str, tuple[Any, Any]]) -> None:
        """Saves weights that were trained elsewhere, as step 0, and waits until they are on disk.

        Args:
          statistics: of the biggest architecture, as `Supernet.__call__` takes them: layer name to (mean, variance).
        """
        parts = {f"{name}.{kind}": value for name, pair in statistics.items()
                 for kind, value in zip(_MOMENTS, pair, strict=True)}  # fmt: skip
        items = {"params": ocp.args.StandardSave(_named(params)), "statistics": ocp.args.StandardSave(parts)}
        self._manager.save(0, args=ocp.args.Composite(**items))
        self.wait()

    def is_imported(self, step: int) -> bool:
        """Whether a checkpoint holds weights from elsewhere: there is no optimizer state to go on with."""
        folder = self.folder / str(step)
        return (folder / "params").is_dir() and not (folder / "training").is_dir()

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
            return self._manager.best_step() or steps[-1]
        if not str(which).isdigit() or int(which) not in steps:
            raise CheckpointError(
                f"--checkpoint: found {which}, expected newest, best or one of {', '.join(map(str, steps))}"
            )
        return int(which)

    def newest(self) -> int | None:
        """The step of the newest checkpoint, or None."""
        return self._manager.latest_step()

    def restore(self, state: TrainState, mesh: Mesh) -> TrainState:
        """The newest checkpoint, in the form of `state`, on the mesh.

        Of an imported one the weights, which begin the moving average, too; the rest of `state` stays.

        Raises:
          CheckpointError: there is none, or its arrays have other shapes or names.
        """
        step, sharding = self.find(), NamedSharding(mesh, REPLICATED)
        if self.is_imported(step):
            params, _ = self.weights(state.params, mesh, step)
            ema = None if state.ema is None else jax.tree.map(jnp.copy, params)
            return dataclasses.replace(state, params=params, ema=ema)
        items = {"params": _named(state.params), "training": _training(state)}
        if state.ema is not None:
            items["ema"] = _named(state.ema)
        read = self._read(step, {name: shapes(item, sharding) for name, item in items.items()})
        _, form = jax.tree.flatten(state.opt_state)
        training = read["training"]
        leaves = [training["optimizer"][name] for name in sorted(training["optimizer"])]
        return dataclasses.replace(
            state,
            params=_unnamed(read["params"], state.params),
            ema=None if state.ema is None else _unnamed(read["ema"], state.ema),
            opt_state=jax.tree.unflatten(form, leaves),
            **{name: training[name] for name in ("step", "skipped", "skipped_in_row")},
        )

    def weights(self, params: Any, mesh: Mesh, which: str | int = "newest") -> tuple[Any, int]:
        """The weights to evaluate (the moving average where the checkpoint has one), and their step.

        Args:
          params: parameters, or their shapes, in the form of `supernet.build`.
        Raises:
          CheckpointError: there is no such checkpoint, or it does not fit.
        """
        step = self.find(which)
        item = "ema" if (self.folder / str(step) / "ema").is_dir() else "params"
        form = shapes(_named(params), NamedSharding(mesh, REPLICATED))
        return _unnamed(self._read(step, {item: form})[item], params), step

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
        read = self._read(step, {"statistics": form})["statistics"]
        return {name: tuple(read[f"{name}.{kind}"] for kind in _MOMENTS) for name in widths}

    def _read(self, step: int, items: dict[str, Any]) -> Any:
        args = {name: ocp.args.StandardRestore(item) for name, item in items.items()}
        try:
            return self._manager.restore(step, args=ocp.args.Composite(**args))
        except (ValueError, KeyError) as error:
            reason = str(error).strip().split("\n")[0]
            raise CheckpointError(
                f"checkpoint {self.folder / str(step)} does not fit this config's space and model: {reason}"
            ) from error

    def delete_from(self, step: int) -> int | None:
        """Deletes the checkpoints of `step` and later ones, but none that was imported.

        Returns:
          The newest that is left, or None.
        """
        self.wait()
        for later in [s for s in self._manager.all_steps() if s >= step and not self.is_imported(s)]:
            self._manager.delete(later)
        return self.newest()

    def wait(self) -> None:
        """Until what was started to save is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        self._manager.close()


def _training(state: TrainState) -> dict:
    leaves = jax.tree.leaves(state.opt_state)
    return {
        "optimizer": {f"{number:05d}": leaf for number, leaf in enumerate(leaves)},
        "step": state.step,
        "skipped": state.skipped,
        "skipped_in_row": state.skipped_in_row,
    }


def _named(tree: Any) -> dict[str, Any]:
    """The arrays by `weight_name` (`blocks.3.expand.kernel`): a form that does not depend on orbax or flax."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {weight_name(tuple(key.key for key in path)): leaf for path, leaf in leaves}


def _unnamed(named: dict[str, Any], like: Any) -> Any:
    names = _named(like)
    return jax.tree.unflatten(jax.tree.structure(like), [named[name] for name in names])
