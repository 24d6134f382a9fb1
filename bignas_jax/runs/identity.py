"""What a run is: which fields of its config, and which images, each use of it must have alike."""

import dataclasses
import enum
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax

from bignas_jax.config.files import differences, load_run_options, to_json
from bignas_jax.config.options import Options
from bignas_jax.errors import ConfigError, FileError
from bignas_jax.files import read_json, write_json, write_text
from bignas_jax.forms import check_form
from bignas_jax.runs.folder import begun, scored_step, steps
from bignas_jax.text import one_line, shown, tell

DATA = "data.json"
_SPLIT = {"images": int, "digest": str}  # what it says of a split


class Use(enum.Flag):
    """What is done with a run's folder."""

    GOING_ON = enum.auto()
    EVALUATION = enum.auto()
    HELD_OUT = enum.auto()  # an evaluation on the held-out images
    SEARCH = enum.auto()
    EXPORT = enum.auto()


NETWORK = Use.GOING_ON | Use.EVALUATION | Use.HELD_OUT | Use.SEARCH | Use.EXPORT
IMAGES = Use.GOING_ON | Use.HELD_OUT | Use.SEARCH


@dataclasses.dataclass(frozen=True)
class Binding:
    """A field, or a group of fields, of which a run's value binds its uses.

    Attributes:
      field: its name; with a dot at the end all fields of the group.
      uses: that it binds.
      to_zero: whether only a change from 0 or to 0 matters, which adds or removes a part of the train state.
      after_steps: whether it binds only once steps were made; imported weights have none.
    """

    field: str
    uses: Use
    to_zero: bool = False
    after_steps: bool = False

    def broken_by(self, line: str) -> bool:
        """Whether a line of `differences` is about this field, and matters."""
        name, _, change = line.removeprefix("config.").partition(": ")
        if not (name.startswith(self.field) if self.field.endswith(".") else name == self.field):
            return False
        return not self.to_zero or "0.0" in change.split(" -> ")


# Anything else may change when a run goes on.
BINDINGS = (
    # Other strides or another activation would leave all shapes as they are, and use a network that nobody trained.
    Binding("space.", NETWORK),
    Binding("model.num_classes", NETWORK),
    Binding("arch", Use.GOING_ON),
    Binding("init_from", Use.GOING_ON),
    Binding("init_checkpoint", Use.GOING_ON),
    Binding("phases.", Use.GOING_ON),
    Binding("teacher.", Use.GOING_ON, after_steps=True),
    Binding("optimizer.name", Use.GOING_ON),
    Binding("optimizer.ema_decay", Use.GOING_ON, to_zero=True),
    Binding("optimizer.momentum", Use.GOING_ON, to_zero=True),
    # Steps are counted: with another batch, as many of them are another part of the training.
    Binding("batch_size", Use.GOING_ON, after_steps=True),
    # Images that were trained on must not become held-out ones.
    Binding("data.source", IMAGES),
    Binding("data.train_split", IMAGES),
    Binding("data.holdout", IMAGES),
)

# What an accuracy rests on besides the weights and the architecture: the images, how they are prepared and how a child
# is calibrated on them. Where they lie, and how they are read, is no part of it.
_FIGURE = ("config.seed:", "config.data.", "config.calibration.", "config.model.dtype:")
_NO_FIGURE = ("config.data.root:", "config.data.num_workers:", "config.data.augment.")


# What shapes no weights of a phase that is over.
_NO_WEIGHTS = (
    "config.distributed.", "config.data.root:", "config.data.num_workers:", "config.data.val_split:",
    "config.num_devices:", "config.log.", "config.checkpoint.", "config.evaluation.", "config.search.",
    "config.max_nonfinite_steps:", "config.on_collapse:", "config.remat:",
)  # fmt: skip


def broken(changes: list[str], use: Use, steps_made: bool = True) -> list[str]:
    """The lines of `differences` that this use does not allow."""
    bindings = [b for b in BINDINGS if use in b.uses and (steps_made or not b.after_steps)]
    return [line for line in changes if any(binding.broken_by(line) for binding in bindings)]


def claim(workdir: pathlib.Path, options: Options, stop: int) -> int | None:
    """Writes the config into the run's folder, after a comparison with the one that is there.

    A run that has made its `stop` steps keeps its config.

    Args:
      workdir: the run's folder.
      options: resolved, see `training.origin.resolve`.
      stop: the steps that the config asks for.
    Returns:
      The last step of a finished run whose config is another than this; None where this config is the run's.
    Raises:
      ConfigError: the folder holds a run that this config cannot go on with (the message shows the differences), or
        cannot be written to.
    """
    path, first = workdir / "config.json", jax.process_index() == 0
    if begun(workdir):
        last = steps(workdir)[-1]
        # Which process this is, and where the others are, is no part of a run.
        changes = differences(load_run_options(path), options)
        changes = [line for line in changes if not line.startswith("config.distributed.")]
        fatal = broken(changes, Use.GOING_ON, steps_made=last > 0)
        if fatal:
            raise ConfigError(
                f"{workdir} holds a run of another config ({'; '.join(fatal)}): "
                "give another --workdir, or the config that the run was started with"
            )
        if last > stop and scored_step(workdir) != last:
            raise ConfigError(
                f"config.max_steps, config.epochs: found {stop} steps, but the run in {workdir} has made {last}, "
                "expected at least as many; eval.py evaluates it as it is"
            )
        finished = last >= stop
        if changes and first:
            verb = "the run is finished and is not changed by" if finished else "continuing with a changed config:"
            print(one_line(f"{verb} {'; '.join(changes)}"))
        if finished:
            return last if changes else None
    elif steps(workdir):
        raise ConfigError(
            f"{workdir} holds checkpoints, but no config.json that says what they are of: put it back, or give another "
            "--workdir"
        )
    if first:
        try:
            workdir.mkdir(parents=True, exist_ok=True)
            if not path.is_file() or path.read_bytes() != to_json(options).encode():
                write_text(path, to_json(options))
        except OSError as error:
            raise ConfigError(
                f"--workdir: cannot write to {workdir} ({error.strerror}): make room, or give another folder"
            ) from error
    return None


def check_run(options: Options, workdir: str | pathlib.Path, use: Use) -> None:
    """Refuses options that differ from the run's own in fields that bind this use.

    Raises:
      ConfigError: with the differences.
    """
    path = pathlib.Path(workdir) / "config.json"
    if not os.path.lexists(path):
        return
    fatal = broken(differences(load_run_options(path), options), use)
    if fatal:
        raise ConfigError(f"{workdir} was trained with another config ({'; '.join(fatal)}): leave these as they were")


def check_finished(workdir: pathlib.Path, options: Options) -> None:
    """Refuses options other than those that a phase which is over was trained with, as far as they shape its weights.

    Raises:
      ConfigError: with the differences.
    """
    changes = differences(load_run_options(workdir / "config.json"), options)
    fatal = [line for line in changes if not line.startswith(_NO_WEIGHTS)]
    if fatal:
        raise ConfigError(
            f"{workdir} is over, and was trained with another config ({'; '.join(fatal)}): phases that have not begun "
            "can be changed; give another --workdir for the others"
        )


def other_results(then: Options, now: Options) -> list[str]:
    """What makes the weights that a training ends with, or their accuracies, others; a line for each, or nothing.

    Args:
      then: of the training, resolved (see `training.origin.resolve`).
      now: of the one that it is compared with.
    """
    return [line for line in differences(then, now) if not line.startswith(_NO_WEIGHTS) or _is_figure(line)]


def other_figures(workdir: str | pathlib.Path, options: Options, found: Mapping[str, Any]) -> list[str]:
    """What makes accuracies with these options, on these data, others than the run's own; a line for each, or nothing.

    Args:
      found: the fingerprint of the data, as `data.fingerprint` gives it.
    """
    folder = pathlib.Path(workdir)
    lines = []
    if os.path.lexists(folder / "config.json"):
        lines = differences(load_run_options(folder / "config.json"), options)
    lines = list(filter(_is_figure, lines))
    if os.path.lexists(folder / DATA):
        then = read_json(folder / DATA)
        lines += [f"{split}: {_images(then[split], found[split])}" for split in ("train", "val")
                  if then[split] != found[split]]  # fmt: skip
    return lines


def _is_figure(line: str) -> bool:
    return line.startswith(_FIGURE) and not line.startswith(_NO_FIGURE)


def note_data(workdir: str | pathlib.Path, found: Mapping[str, Any]) -> None:
    """Writes the fingerprint of a run's data, as `data.fingerprint` gives it, into its folder."""
    write_json(pathlib.Path(workdir) / DATA, found, indent=2)


def check_data(workdir: str | pathlib.Path, found: Mapping[str, Any], use: Use) -> None:
    """Refuses data that are not those of the run, as far as that matters to this use.

    The names of the classes bind every use, in order. The training images bind those that draw held-out images from
    them. Other validation images are said, in one line. A run from before fingerprints has none, and binds nothing.

    Raises:
      ConfigError: with what differs.
    """
    path = pathlib.Path(workdir) / DATA
    if not os.path.lexists(path):
        return
    try:
        then = read_json(path)
        check_form(then, {"classes": [str], "train": _SPLIT, "val": _SPLIT})
        classes, train, val = (then[name] for name in ("classes", "train", "val"))
    except FileError as error:
        raise ConfigError(f"{path}: found something that training did not write ({error}): remove the file") from error
    if classes != found["classes"]:
        gone, new = ([name for name in a if name not in b] for a, b in ((classes, found["classes"]),
                                                                      (found["classes"], classes)))  # fmt: skip
        raise ConfigError(
            f"{workdir} was trained on other classes (only there: {_some(gone)}; only here: {_some(new)}), expected "
            "the same in the same order: set config.data.root to the images of the run, or rename the class folders"
        )
    if use & IMAGES and train != found["train"]:
        raise ConfigError(
            f"{workdir} was trained on {_images(train, found['train'])}: images that it was trained on would be held "
            "out; restore the training images, or start anew with another --workdir"
        )
    if val != found["val"] and jax.process_index() == 0:
        tell(f"{workdir}: at its start there were {_images(val, found['val'])} for validation")


def _images(then: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    if then["images"] != now["images"]:
        return f"{then['images']:,} images, found {now['images']:,}"
    return f"{then['images']:,} images, found others of that number"


def _some(names: list[str]) -> str:
    return ", ".join(map(shown, names[:5])) + (f" and {len(names) - 5} more" if len(names) > 5 else "") or "none"
