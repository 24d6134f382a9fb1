"""A single child's run: its config, and the slice of a supernet that it starts from.

The run is that of a supernet whose space has the one architecture `config.arch` (`slicing.single`): the loop, the
data, the checkpoints and the evaluation know no difference.
"""

import contextlib
import dataclasses
import pathlib
from collections.abc import Iterator

import jax
import numpy as np
from jax.sharding import Mesh

from bignas_jax.config import fields as configs
from bignas_jax.config.files import load_run_options
from bignas_jax.config.options import Options, plain
from bignas_jax.errors import CheckpointError, ConfigError
from bignas_jax.nets.slicing import param_shapes, single, slice_params
from bignas_jax.runs.checkpoint import Checkpoints
from bignas_jax.runs.folder import begun, supernet_options
from bignas_jax.runs.session import Session, class_names
from bignas_jax.spaces.architecture import Architecture
from bignas_jax.spaces.naming import read_architectures
from bignas_jax.spaces.registry import space_of
from bignas_jax.spaces.space import Space


def resolve(options: Options, workdir: str | pathlib.Path) -> Options:
    """The options of the run that `config.arch` asks for; without an architecture the options themselves.

    In it `arch` is the architecture's JSON, for a file may go, and `space` leaves no choice but it. The space that the
    architecture is taken from is that of the run in `config.init_from`, where one is given, else `config.space`.

    Raises:
      ConfigError: the architecture cannot be read or is not in the space, or `init_from` is no run's folder.
    """
    if not options.arch:
        return options
    space = space_of(_options_of_space(options, pathlib.Path(workdir)).space)
    (arch,) = read_architectures(space, [options.arch], "config.arch").values()
    resolved = dataclasses.replace(options, arch=arch.to_json(), space=plain(single(space, arch).to_dict()))
    configs.validate(resolved.to_dict())
    return resolved


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
    """Where a child's first weights come from.

    Attributes:
      folder, step: the supernet's run and its checkpoint. space: the supernet's.
      num_classes: of its classifier. keeps_classifier: whether the child's classes are the same.
    """

    folder: pathlib.Path
    step: int
    space: Space
    num_classes: int
    keeps_classifier: bool

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
        return cls(folder, step, space_of(supernet.space), supernet.model.num_classes, same)

    def weights(self, fresh: dict, arch: Architecture, mesh: Mesh) -> dict:
        """The slice of the supernet's weights (their moving average, where there is one).

        Args:
          fresh: the child's parameters as they are initialised; their classifier is kept where the classes differ.
        """
        with _checkpoints(self.folder) as checkpoints:
            whole, _ = checkpoints.weights(param_shapes(self.space, self.num_classes), mesh, self.step)
        cut = slice_params(self.space, jax.tree.map(np.asarray, whole), arch)
        kept = {} if self.keeps_classifier else {"classifier": fresh["classifier"]}
        return jax.tree.map(np.ascontiguousarray, cut | kept)

    def __str__(self) -> str:
        head = "its classifier is kept" if self.keeps_classifier else "the classifier is new, for the classes differ"
        return f"the slice of step {self.step} of {self.folder}; {head}"


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
