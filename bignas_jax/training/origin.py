"""Runs that start from another run's weights: a single child from its slice, or a supernet from a supernet.

A single child's run is that of a supernet whose space has the one architecture `config.arch` (`slicing.single`): the
loop, the data, the checkpoints and the evaluation know no difference. Without `config.arch`, the whole supernet in
`config.init_from` is the start. Its space may be a part of the run's (`spaces.nesting`). Weights that it lacks are then
fresh: matrices of kernel transforms are the identity. Channels are sorted by importance where blocks can be narrower
than before. Neither changes the function of an architecture of the smaller space.
"""

import contextlib
import dataclasses
import pathlib
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from bignas_jax.config import fields as configs
from bignas_jax.config.declare import plain
from bignas_jax.config.files import load_run_options
from bignas_jax.config.options import Options
from bignas_jax.errors import CheckpointError, ConfigError
from bignas_jax.nets.slicing import param_shapes, single, slice_params
from bignas_jax.nets.sorting import sort_for
from bignas_jax.runs.checkpoint import Checkpoints
from bignas_jax.runs.folder import begun, located, supernet_options
from bignas_jax.runs.session import Session, class_names
from bignas_jax.spaces.naming import read_architectures
from bignas_jax.spaces.nesting import why_not_within
from bignas_jax.spaces.registry import space_of
from bignas_jax.spaces.space import Space


def resolve(options: Options, workdir: str | pathlib.Path) -> Options:
    """The options of the run that `config.arch` asks for; without an architecture the options themselves, checked.

    In it `arch` is the architecture's JSON, for a file may go, and `space` leaves no choice but it. The space that the
    architecture is taken from is that of the run in `config.init_from`, where one is given, else `config.space`.

    Raises:
      ConfigError: the architecture cannot be read or is not in the space, `init_from` is no run's folder, or the
        supernet in it has another space (resolutions apart).
    """
    if not options.arch:
        if options.init_from and not begun(pathlib.Path(workdir)):  # a run that has begun needs the other no more
            found = located(options, pathlib.Path(workdir))
            _check_same_network(found, supernet_options(found.init_from))
        return options
    space = space_of(_options_of_space(options, pathlib.Path(workdir)).space)
    (arch,) = read_architectures(space, [options.arch], "config.arch").values()
    resolved = dataclasses.replace(options, arch=arch.to_json(), space=plain(single(space, arch).to_dict()))
    configs.validate(resolved.to_dict())
    return resolved


def _check_same_network(options: Options, supernet: Options) -> None:
    """Refuses a space whose weights would be others than the supernet's, or that leaves some of its choices out."""
    reason = why_not_within(space_of(supernet.space), space_of(options.space))
    if reason is not None:
        raise ConfigError(
            f"config.space: found another network than in {options.init_from} ({reason}), expected the same choices "
            "or more below the largest ones, resolutions apart: begin with that run's recipe, or give config.arch to "
            "take a child"
        )


def _options_of_space(options: Options, workdir: pathlib.Path) -> Options:
    """The options whose space `config.arch` is read in."""
    if not options.init_from:
        return options
    try:
        return supernet_options(options.init_from)
    except ConfigError:
        # A run that has begun needs the supernet no more.
        own = load_run_options(workdir / "config.json") if begun(workdir) else None
        if own is None or options.arch in ("max", "min") or own.init_from != options.init_from:
            raise
        return own


@dataclasses.dataclass(frozen=True)
class Origin:
    """Where a run's first weights come from.

    Attributes:
      folder, step: the supernet's run and its checkpoint. space: the supernet's.
      num_classes: of its classifier. keeps_classifier: whether the run's classes are the same.
      slices: whether the run is a single child's, which takes its slice.
    """

    folder: pathlib.Path
    step: int
    space: Space
    num_classes: int
    keeps_classifier: bool
    slices: bool

    @classmethod
    def open(cls, session: Session) -> "Origin | None":
        """The origin that the session's options name, or None where training starts from scratch.

        Raises:
          ConfigError: there is no such run or checkpoint.
        """
        options = session.options
        if not options.init_from or options.init_checkpoint == "none":
            return None
        folder = pathlib.Path(options.init_from)
        supernet = supernet_options(options.init_from)
        if not begun(folder):
            raise ConfigError(f"config.init_from: found no checkpoint under {folder}, expected those of a trained run")
        with _checkpoints(folder) as checkpoints:
            step = checkpoints.find(options.init_checkpoint)
        same = _same_classes(session, folder, supernet)
        return cls(folder, step, space_of(supernet.space), supernet.model.num_classes, same, bool(options.arch))

    def weights(self, space: Space, fresh: dict, mesh: Mesh) -> dict:
        """The supernet's weights (their moving average, where there is one), or the slice of them.

        Args:
          space: of this run; for a child its one architecture.
          fresh: the run's parameters as they are initialised. Those that the supernet lacks are kept, and the
            classifier where the classes differ.
          mesh: of this run.
        """
        with _checkpoints(self.folder) as checkpoints:
            whole, _ = checkpoints.weights(param_shapes(self.space, self.num_classes), mesh, self.step)
        whole = jax.tree.map(np.asarray, whole)
        if self.slices:
            found = slice_params(self.space, whole, space.biggest)
        else:
            found = sort_for(space, _overlaid(fresh, whole), self.space)
        kept = {} if self.keeps_classifier else {"classifier": fresh["classifier"]}
        return jax.tree.map(np.ascontiguousarray, found | kept)

    def __str__(self) -> str:
        head = "its classifier is kept" if self.keeps_classifier else "the classifier is new, for the classes differ"
        what = "slice" if self.slices else "supernet"
        return f"the {what} of step {self.step} of {self.folder}; {head}"


def _overlaid(under: Any, over: Any) -> Any:
    """Nested arrays, with those of `over` in the place of those of `under`."""
    if not isinstance(under, dict):
        return over
    return {key: _overlaid(value, over[key]) if key in over else value for key, value in under.items()}


@contextlib.contextmanager
def _checkpoints(folder: pathlib.Path) -> Iterator[Checkpoints]:
    """The checkpoints of another run; what is wrong with them is said in the words of this run's config."""
    checkpoints = Checkpoints(folder, read_only=True)
    try:
        yield checkpoints
    except CheckpointError as error:
        raise ConfigError(f"config.init_checkpoint: {str(error).removeprefix('--checkpoint: ')}") from error
    finally:
        checkpoints.close()


def _same_classes(session: Session, folder: pathlib.Path, supernet: Options) -> bool:
    """Whether the supernet's classes are the child's: as many, and of the same names where these are known."""
    if supernet.model.num_classes != session.options.model.num_classes:
        return False
    names = class_names(folder, supernet.data, like=session)
    return names in (None, session.dataset.class_names)
