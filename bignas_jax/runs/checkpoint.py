"""Checkpoints of a run, by orbax: written in the background, the newest few and the best one kept.

Each holds a manifest: the items that it consists of, and shape, dtype and checksum of each of their arrays. What is
read is held against it, so that a damaged or incomplete checkpoint is told from one of another model.
"""

import collections
import contextlib
import dataclasses
import itertools
import logging
import os
import pathlib
import re
import shutil
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import Mesh, NamedSharding
from orbax.checkpoint import checkpoint_managers

from bignas_jax.config.options import OnDamage
from bignas_jax.errors import CheckpointError, DamagedCheckpoint, FileError, SaveError
from bignas_jax.files import read_json, write_json
from bignas_jax.forms import check_form
from bignas_jax.programs.devices import REPLICATED, shapes
from bignas_jax.programs.processes import fail, gather
from bignas_jax.spaces.layers import weight_name
from bignas_jax.step.state import TrainState
from bignas_jax.text import tell

_MOMENTS = ("mean", "variance")
_MANIFEST = "manifest"
_ARRAY = {"shape": [int], "dtype": str, "crc32": int}  # what it says of an array
_ORBAX = "_CHECKPOINT_METADATA"  # orbax's list of a checkpoint's items
_ORBAX_FORM = {
    "item_handlers": ({}, str, None),
    **dict.fromkeys(("metrics", "performance_metrics", "custom_metadata"), ({}, None)),
    **dict.fromkeys(("init_timestamp_nsecs", "commit_timestamp_nsecs"), (int, None)),
}
_NO_ROOM = re.compile(r"No space left|ENOSPC|quota|EDQUOT|Read-only file system|EROFS|Permission denied|EACCES", re.I)
Read = TypeVar("Read")


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
        _hush()
        self.folder = pathlib.Path(workdir).absolute() / "checkpoints"
        self._read_only, self._on_damage = read_only, on_damage
        if read_only and not self.folder.is_dir():
            raise CheckpointError(f"no checkpoint under {self.folder}: train first, or give the run's --workdir")
        if jax.process_index() == 0:
            self._clear_what_orbax_cannot_open()
        _meet("cleared")
        best = checkpoint_managers.BestN(
            get_metric_fn=lambda metrics: metrics["top1"], n=1, keep_checkpoints_without_metrics=False
        )
        imported = checkpoint_managers.CustomSteps([0] if self.is_imported(0) else [])
        writing = dict(
            preservation_policy=checkpoint_managers.AnyPreservationPolicy(
                [checkpoint_managers.LatestN(keep), best, imported]
            ),
            best_fn=lambda metrics: metrics["top1"],
        )
        options = ocp.CheckpointManagerOptions(
            create=not read_only,
            read_only=read_only,
            enable_async_checkpointing=not read_only,
            **({} if read_only else writing),
        )
        try:
            self._manager = _Manager(self.folder, options=options)
        except (ValueError, TypeError, KeyError) as error:  # what its own files hold has a form that it does not know
            raise CheckpointError(
                f"{self.folder} cannot be opened ({_reason(error)}): move its newest checkpoint out of the way"
            ) from error

    def _clear_what_orbax_cannot_open(self) -> None:
        """Removes what a killed save left, and moves files away whose damage would keep orbax from opening the folder.

        Raises:
          CheckpointError: there are such files, and nothing may be moved.
        """
        for path in [] if self._read_only else self.folder.glob("*.orbax-checkpoint-tmp*"):
            shutil.rmtree(path)
        for step in sorted(int(path.name) for path in self.folder.glob("[0-9]*") if path.name.isdecimal()):
            folder = self.folder / str(step)
            metrics, unreadable = folder / "metrics", _stops_orbax(folder / _ORBAX)
            damaged = folder if unreadable else metrics
            if not unreadable and (self._score(step) is not None or not (metrics / "metrics").exists()):
                continue
            if self._read_only:
                raise CheckpointError(f"{damaged} is damaged, and nothing may be changed here: move it out of the way")
            tell(f"{damaged} is damaged, and was moved to {self.folder.parent / 'damaged'}")
            self._move_aside(damaged)

    def _score(self, step: int) -> float | None:
        """The accuracy that a checkpoint was saved with; None if there is none that can be read."""
        try:
            return float(read_json(self.folder / str(step) / "metrics" / "metrics")["top1"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

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
        items = {"params": _named(state.params), "training": _training(state)}
        if state.ema is not None:
            items["ema"] = _named(state.ema)
        self._save(step, items, None if top1 is None else {"top1": top1})

    def _save(self, step: int, items: Mapping[str, Any], metrics: Mapping[str, float] | None = None) -> None:
        args = {name: ocp.args.StandardSave(item) for name, item in items.items()}
        args[_MANIFEST] = ocp.args.JsonSave({name: _manifest(item) for name, item in items.items()})
        with self._writing():
            self._manager.save(step, args=ocp.args.Composite(**args), metrics=metrics)

    def score(self, step: int, top1: float) -> None:
        """Gives a checkpoint the score that it was saved without, because a signal came before its evaluation."""
        if step not in self._manager.all_steps() or self._manager.metrics(step) is not None:
            return
        self.wait()
        with self._writing():
            if jax.process_index() == 0:
                folder = self.folder / str(step) / "metrics"
                folder.mkdir(exist_ok=True)
                write_json(folder / "metrics", {"top1": top1})
            _meet("score")
            self._manager.reload()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Turns what orbax raises for a disk that takes no more into one line."""
        try:
            yield
        except (OSError, ValueError, RuntimeError) as error:
            found = _NO_ROOM.search(str(error))
            if not found:
                raise
            raise SaveError(
                f"a checkpoint cannot be written to {self.folder} ({found[0]}); the steps in it are whole: make room, "
                "and the same command goes on from the newest"
            ) from error

    def save_imported(self, params: Any, statistics: dict[str, tuple[Any, Any]]) -> None:
        """Saves weights that were trained elsewhere, as step 0, and waits until they are on disk.

        Args:
          statistics: of the biggest architecture, as `Supernet.__call__` takes them: layer name to (mean, variance).
        """
        parts = {f"{name}.{kind}": value for name, pair in statistics.items()
                 for kind, value in zip(_MOMENTS, pair, strict=True)}  # fmt: skip
        self._save(0, {"params": _named(params), "statistics": parts})
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
            scores = {step: score for step in steps if (score := self._score(step)) is not None}
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
        if self._is_old(step):  # numbered, as they come
            names = [f"{number:05d}" for number in range(len(names))]
        items = {"params": _named(state.params), "training": _training(state, names)}
        if state.ema is not None:
            items["ema"] = _named(state.ema)
        read = self._read(step, {name: shapes(item, NamedSharding(mesh, REPLICATED)) for name, item in items.items()})
        training = read["training"]
        return dataclasses.replace(
            state,
            params=_unnamed(read["params"], state.params),
            ema=None if state.ema is None else _unnamed(read["ema"], state.ema),
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
            try:
                return read(step), step
            except DamagedCheckpoint as error:
                if before is None:
                    raise CheckpointError(f"{error}; no whole checkpoint is left in {self.folder}") from error
                if self._on_damage == OnDamage.REFUSE:
                    raise CheckpointError(
                        f"{error}; config.checkpoint.on_damage=fall_back takes that of step {before}"
                    ) from error
                if jax.process_index() == 0:
                    tell(f"{error}; that of step {before} is taken")
                self._set_aside(step)
        raise AssertionError("unreachable")

    def _set_aside(self, step: int) -> None:
        """Moves a damaged checkpoint out of the way of the one that will be made anew."""
        if self._read_only:
            return
        if jax.process_index() == 0:
            self._move_aside(self.folder / str(step))
        _meet("damaged")
        self._manager.reload()

    def _move_aside(self, path: pathlib.Path) -> None:
        """Moves a folder to `damaged/`, under a name that is free there."""
        aside = self.folder.parent / "damaged"
        aside.mkdir(exist_ok=True)
        name = "-".join(path.relative_to(self.folder).parts)
        names = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
        path.rename(next(aside / free for free in names if not (aside / free).exists()))

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
        item = "ema" if "ema" in self._items(step) else "params"
        form = shapes(_named(params), NamedSharding(mesh, REPLICATED))
        return _unnamed(self._read(step, {item: form})[item], params)

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

    def _is_old(self, step: int) -> bool:
        """Whether it comes from a version that wrote no manifest."""
        return _MANIFEST not in self._items(step)

    def _items(self, step: int) -> tuple[str, ...]:
        """The items that a checkpoint must hold.

        Raises:
          DamagedCheckpoint: it lacks one, or its manifest cannot be read.
        """
        folder = self.folder / str(step)
        try:
            written = read_json(folder / _ORBAX)["item_handlers"]
            items = tuple(item for item in written if item != "metrics")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DamagedCheckpoint(f"checkpoint {folder} is damaged: {_ORBAX}: {_reason(error)}") from error
        missing = [item for item in dict.fromkeys(["params", *items]) if not (folder / item).is_dir()]
        if missing:
            raise DamagedCheckpoint(f"checkpoint {folder} is incomplete: found no {', '.join(missing)} in it")
        if odd := [path for path in folder.rglob("*") if not path.is_file() and not path.is_dir()]:
            where = odd[0].relative_to(folder)
            raise DamagedCheckpoint(f"checkpoint {folder} is damaged: {where} is neither a file nor a folder")
        return items

    def _manifest(self, step: int) -> dict[str, dict[str, Any]]:
        folder = self.folder / str(step)
        try:
            found = read_json(folder / _MANIFEST / "metadata")
            check_form(found, {item: {} for item in self._items(step) if item != _MANIFEST}, "manifest")
            for item, arrays in found.items():
                check_form(arrays, dict.fromkeys(arrays, _ARRAY), f"manifest.{item}")
            return found
        except (OSError, FileError) as error:
            raise DamagedCheckpoint(f"checkpoint {folder} is damaged: {_reason(error)}") from error

    def _read(self, step: int, items: dict[str, Any]) -> Any:
        """Items of a checkpoint in the form given, held against its manifest.

        Raises:
          CheckpointError: its arrays have other names or shapes.
          DamagedCheckpoint: it lacks an item, or cannot be read, or its bytes are not the ones that were written.
        """
        folder, old = self.folder / str(step), self._is_old(step)
        manifest = {} if old else self._manifest(step)
        misfit = f"checkpoint {folder} does not fit this config's space and model"
        for item, form in items.items():
            if manifest:
                _check_form(f"{misfit}: {item}", _manifest(form, checksum=False), manifest.get(item, {}))
        args = {name: ocp.args.StandardRestore(item) for name, item in items.items()}
        for item in items:  # orbax can do without, but where one file is damaged others may be
            try:
                read_json(folder / item / "_METADATA")
            except (OSError, ValueError) as error:
                where = f"{item}/_METADATA: {_reason(error)}"
                raise DamagedCheckpoint(f"checkpoint {folder} is damaged: {where}") from error
        try:
            read = self._manager.restore(step, args=ocp.args.Composite(**args))
        except (ValueError, KeyError) as error:
            if old:
                raise CheckpointError(f"{misfit}, or is damaged: {_reason(error)}") from error
            raise DamagedCheckpoint(f"checkpoint {folder} is damaged: {_reason(error)}") from error
        except Exception as error:  # orbax and what it reads with raise what they like
            raise DamagedCheckpoint(f"checkpoint {folder} is damaged: {_reason(error)}") from error
        for item in items if manifest else ():
            for name, now in _manifest(read[item]).items():
                if now["crc32"] != manifest[item][name]["crc32"]:
                    raise DamagedCheckpoint(
                        f"checkpoint {folder} is damaged: {item} {name} has other bytes than were written"
                    )
        return read

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
        with self._writing():
            self._manager.wait_until_finished()

    def close(self) -> None:
        with self._writing():
            self._manager.close()


def _stops_orbax(path: pathlib.Path) -> bool:
    """Whether orbax would not open a folder of checkpoints because of this list of a checkpoint's items.

    One that is missing or no JSON does not matter to it.
    """
    if os.path.lexists(path) and not path.is_file():
        return True
    with contextlib.suppress(OSError, FileError):
        found = read_json(path)
        try:
            check_form(found, {})
            check_form(found, {name: form for name, form in _ORBAX_FORM.items() if name in found})
        except FileError:
            return True
    return False


def _hush() -> None:
    """Keeps orbax from telling on stderr what it raises as well.

    It reports every save and every scan of a folder, and a write that failed with tracebacks from each of its threads.
    """
    for commentator in ("absl", "asyncio"):
        logging.getLogger(commentator).setLevel(logging.CRITICAL)
    if getattr(sys.excepthook, "__name__", "") != _but_closed_loops.__name__:
        _hooks.append(sys.excepthook)
        sys.excepthook = _but_closed_loops


_hooks: list[Callable] = []


def _but_closed_loops(kind: type[BaseException], error: BaseException, traceback: Any) -> None:
    """What tensorstore's threads meet when the writes that they report to have failed is no news."""
    if not (kind is RuntimeError and str(error) == "Event loop is closed"):
        _hooks[-1](kind, error, traceback)


def _meet(purpose: str) -> None:
    """Waits until all processes are here."""
    gather(purpose)


def _reason(error: Exception) -> str:
    """The first line of an error, cut where it grows long."""
    text = (str(error).strip() or type(error).__name__).split("\n")[0]
    return text if len(text) <= 200 else f"{text[:200]} ..."


def _manifest(item: Any, checksum: bool = True) -> dict[str, dict[str, Any]]:
    """Shape, dtype and CRC-32 of each array of an item, by name."""
    named = {".".join(str(key.key) for key in path): leaf
             for path, leaf in jax.tree_util.tree_leaves_with_path(item)}  # fmt: skip
    about = {name: {"shape": list(np.shape(leaf)), "dtype": str(leaf.dtype)} for name, leaf in named.items()}
    if checksum:
        for name, leaf in named.items():
            about[name]["crc32"] = zlib.crc32(np.ascontiguousarray(leaf).data)
    return about


def _check_form(where: str, expected: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    """Raises CheckpointError where arrays are missing, left over, or of another shape or dtype."""

    def form(about: Mapping[str, Any]) -> str:
        return f"{about['dtype']} {list(about['shape'])}"

    for name in dict.fromkeys([*expected, *found]):
        here, there = (form(side[name]) if name in side else "nothing" for side in (expected, found))
        if here != there:
            raise CheckpointError(f"{where} {name}: found {there}, expected {here}")


def state_names(tree: Any) -> list[str]:
    """Names of an optimizer state's arrays, in the order of its leaves, such as 'trace.blocks.3.expand.kernel'.

    They do not tell where in a chain a transformation stands: clipping may come and go. An array whose name would not
    be its own has the class of its state in front, then a number.
    """
    found = list(_state_paths(tree, ()))
    names = _told_apart([".".join(path) for _, path in found], [owner for owner, _ in found])
    number = {name: iter(range(1, len(names) + 1)) for name in names}
    return [f"{name}#{next(number[name])}" if names.count(name) > 1 else name for name in names]


def _told_apart(names: list[str], owners: list[str]) -> list[str]:
    """The names, with their owners in front where a name occurs more than once."""
    times = collections.Counter(names)
    return [f"{owner}.{name}" if times[name] > 1 else name for name, owner in zip(names, owners, strict=True)]


def _state_paths(node: Any, path: tuple[str, ...], owner: str = "") -> Iterable[tuple[str, tuple[str, ...]]]:
    """The innermost class of a state and the path inside it, of each array."""
    if isinstance(node, tuple) and hasattr(node, "_fields"):
        for field in node._fields:
            yield from _state_paths(getattr(node, field), (field,), type(node).__name__)
    elif isinstance(node, tuple | list):
        for part in node:
            yield from _state_paths(part, path, owner)
    elif isinstance(node, dict):
        for key in sorted(node):
            yield from _state_paths(node[key], (*path, str(key)), owner)
    elif node is not None:
        yield owner, path


def _training(state: TrainState, names: list[str] | None = None) -> dict:
    leaves = jax.tree.leaves(state.opt_state)
    return {
        "optimizer": dict(zip(names or state_names(state.opt_state), leaves, strict=True)),
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
