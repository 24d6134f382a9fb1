"""What training, evaluation and search build alike from options: space, data, devices, supernet, evaluator."""

import dataclasses
import os
import pathlib
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
from flax import nnx
from jax.sharding import Mesh

from bignas_jax.config.options import Data, Options
from bignas_jax.data import DataError, Dataset, Loader, open_dataset, open_images, prefetch
from bignas_jax.data.dataset import Images
from bignas_jax.data.fingerprint import fingerprint
from bignas_jax.errors import ConfigError, FileError
from bignas_jax.evaluation import Evaluator, Score
from bignas_jax.files import read_json, write_json
from bignas_jax.forms import check_form
from bignas_jax.nets.kinds import module_of
from bignas_jax.nets.supernet import Supernet
from bignas_jax.plugins import source
from bignas_jax.programs import deterministic
from bignas_jax.programs.buckets import Bucket
from bignas_jax.programs.devices import make_mesh
from bignas_jax.programs.kept import identity_of
from bignas_jax.runs.agree import agreed
from bignas_jax.runs.identity import Use, check_data, note_data
from bignas_jax.runs.sizes import check_sizes
from bignas_jax.spaces.architecture import Architecture
from bignas_jax.spaces.registry import space_of
from bignas_jax.spaces.space import Space

CLASSES = "classes.json"


@dataclasses.dataclass(frozen=True)
class Session:
    """The parts of a run that follow from its options alone."""

    options: Options
    space: Space
    dataset: Dataset
    mesh: Mesh
    graphdef: nnx.GraphDef
    shapes: Any  # of the parameters
    evaluator: Evaluator
    network: str  # what the programs of the supernet depend on, see `network_identity`

    @classmethod
    def open(
        cls,
        options: Options,
        training: bool = False,
        run: str | pathlib.Path | None = None,
        use: Use = Use.EVALUATION,
        rounded: bool = False,
    ) -> "Session":
        """Checks the data and the devices against the options, and builds what is static.

        Args:
          options: of the run.
          training: whether `batch_size` matters.
          run: the folder of a run whose data these must be; None: of a run that begins.
          use: what is done with that run.
          rounded: whether architectures are scored in 8-bit integers.
        Raises:
          ValueError: the data cannot be used, are not those of the run, numbers in the options do not fit them, or a
            batch does not divide over the devices; one line.
        """
        space, mesh = _placed(options, training)
        images = open_images(options.data, tell=jax.process_index() == 0)
        if run is not None:
            check_data(run, fingerprint(images), use)
        check_sizes(options, images, mesh.size, training, use)
        dataset = open_dataset(options.data, options.seed, images)

        def make():
            return Supernet(space, options.model.num_classes, dtype=options.model.dtype, rngs=nnx.Rngs(0))

        graphdef, state = nnx.split(nnx.eval_shape(make))
        network = network_identity(space, options, mesh)
        mean, std = options.data.mean, options.data.std
        biased = options.calibration.biased_variance
        identity = identity_of(network, mean, std, biased)
        evaluator = Evaluator(space, graphdef, mesh, mean, std, identity, biased, rounded)
        return cls(options, space, dataset, mesh, graphdef, nnx.to_pure_dict(state), evaluator, network)

    def note_class_names(self, workdir: str | pathlib.Path) -> None:
        """Writes the names of the classes, in the order of the logits, into the run's folder."""
        write_json(pathlib.Path(workdir) / CLASSES, self.dataset.class_names)

    def note_data(self, workdir: str | pathlib.Path) -> None:
        """Writes what the data are, for later uses of the run to be held against, into its folder."""
        self.note_class_names(workdir)
        note_data(workdir, fingerprint(self.dataset))

    def loader(self, split: str, batch_size: int, whole: bool = False, **arguments: Any) -> Loader:
        """This process's part of a split, or all of it."""
        index, count = (0, 1) if whole else (jax.process_index(), jax.process_count())
        return Loader(
            self.dataset, split, batch_size=batch_size, process_index=index, process_count=count, **arguments
        )

    def check_evaluation(self, *splits: str) -> None:
        """Refuses, before work starts, splits with too few images to calibrate with or to evaluate on."""
        self._calibration_loader()
        for split in splits:
            self.loader(split, self.options.evaluation.batch_size)

    def _calibration_loader(self) -> Loader:
        options = self.options.calibration
        return self.loader("calibration", options.batch_size, limit=options.num_images)

    def compile_evaluation(self, buckets: Iterable[Bucket], progress: bool = True, calibrate: bool = True) -> None:
        options = self.options
        self.evaluator.compile(
            self.shapes,
            buckets,
            options.data.image_size,
            options.calibration.batch_size if calibrate else 0,
            options.evaluation.batch_size,
            progress,
        )

    def evaluate(
        self,
        weights: Any,
        archs: dict[Architecture, Bucket],
        split: str,
        statistics: dict[Architecture, Any] | None = None,
        tick: Callable[[], None] = lambda: None,
    ) -> dict[Architecture, Score]:
        """Calibrates the architectures on training images and scores them on a split ('val', 'holdout', 'train').

        Args:
          weights: of the supernet.
          archs: with the bucket that each runs in.
          split: the images to score on.
          statistics: of the batch norms, where they are known: nothing is calibrated then.
          tick: called before each batch; what it raises ends the evaluation.
        Raises:
          ValueError: too few training images for the calibration batches, or an empty split; one line.
        """
        if statistics is None:
            statistics = self.calibrate(weights, archs, tick)
        with prefetch(self.loader(split, self.options.evaluation.batch_size).once(), self.mesh) as batches:
            scored = _tell_skipped(_ticked(agreed(batches), tick), split)
            return self.evaluator.score(weights, archs, statistics, scored)

    def calibrate(
        self, weights: Any, archs: dict[Architecture, Bucket], tick: Callable[[], None] = lambda: None
    ) -> dict[Architecture, Any]:
        """Batch-norm statistics of the architectures, from training images. Arguments as those of `evaluate`."""
        calibration = self._calibration_loader()
        with prefetch(calibration.once(), self.mesh) as batches:
            return self.evaluator.calibrate(weights, archs, _ticked(agreed(batches), tick), calibration.steps_per_epoch)


def check_fit(options: Options, images: Images) -> None:
    """Refuses options of a training that do not fit the devices or the number of images, as `Session.open` does.

    Raises:
      ValueError: with what does not fit; one line.
    """
    _, mesh = _placed(options, training=True)
    check_sizes(options, images, mesh.size, True, Use.GOING_ON)


def _placed(options: Options, training: bool) -> tuple[Space, Mesh]:
    """The space, and the devices that the batches divide over."""
    space = space_of(options.space)
    batches = {
        "calibration.batch_size": options.calibration.batch_size,
        "evaluation.batch_size": options.evaluation.batch_size,
    }
    if options.deterministic:
        deterministic.check(os.environ, jax.default_backend())
    mesh = make_mesh(options.num_devices, batches | ({"batch_size": options.batch_size} if training else {}))
    _check_moments(space, options, mesh.size, training)
    return space, mesh


def _check_moments(space: Space, options: Options, devices: int, training: bool) -> None:
    """Refuses batches in which a batch norm sees one value a channel: its output is its bias, whatever the image is.

    Calibration takes the moments over all devices, training over each device's own images of a micro-batch.
    Micro-batches that do not divide a batch are refused, too.
    """
    sizes = {"calibration.batch_size": options.calibration.batch_size}
    if training:
        own = options.batch_size // devices
        if own % options.micro_batches:
            raise ConfigError(
                f"config.micro_batches: found {options.micro_batches}, expected a divisor of {own}, the images of a "
                "step on each device"
            )
        sizes["batch_size"] = own // options.micro_batches * (devices if options.model.sync_batch_norm else 1)
    smallest = dataclasses.replace(space.smallest, resolution=min(space.resolutions))
    sides = [conv.side for layer in space.layout(smallest) for conv in layer.convs if conv.norm]
    for field, images in sizes.items():
        if images * min(sides, default=2) ** 2 < 2:
            where = " on each device" if field == "batch_size" and devices > 1 else ""
            where += " in each micro-batch" if field == "batch_size" and options.micro_batches > 1 else ""
            raise ConfigError(
                f"config.{field}: found 1 image{where}, expected at least 2: at resolution {smallest.resolution} the "
                "last map has one pixel, and batch norm cannot tell the values of one image and one pixel apart"
            )


def network_identity(space: Space, options: Options, mesh: Mesh) -> str:
    """What every program of a supernet depends on: its space, classes, dtype, devices, and the user's own modules."""
    layout = space.layout(space.biggest, options.model.num_classes)
    plugged = dict.fromkeys([type(space), *map(module_of, layout)])
    return identity_of(
        space.to_dict(), options.model.num_classes, options.model.dtype, mesh.size, [source(part) for part in plugged]
    )


def class_names(workdir: str | pathlib.Path, data: Data, like: Session) -> tuple[str, ...] | None:
    """The class names of another run, in the order of its logits; None where they are not known.

    Args:
      data: of that run; looked at if the folder does not say (as one from before it did).
      like: a session whose data may be the same.
    Raises:
      ConfigError: the folder has a file of names that training did not write.
    """
    path = pathlib.Path(workdir) / CLASSES
    if os.path.lexists(path):
        try:
            names = read_json(path)
            check_form(names, [str])
        except FileError as error:
            raise ConfigError(f"{path}: found something that training did not write ({error}): remove it") from error
        return tuple(names)
    if all(getattr(data, name) == getattr(like.options.data, name) for name in ("source", "root", "train_split")):
        return like.dataset.class_names
    try:
        return open_images(data, tell=False).class_names
    except DataError:
        return None


def _ticked(batches: Iterable[dict], tick: Callable[[], None]) -> Iterator[dict]:
    for batch in batches:
        tick()
        yield batch


def _tell_skipped(batches: Iterable[dict], split: str) -> Iterator[dict]:
    """The batches, and at their end a line if corrupt images were left out."""
    skipped = 0
    for batch in batches:
        skipped += batch["skipped"]
        yield batch
    if skipped:
        print(f"{skipped} corrupt {split} images left out of the evaluation", file=sys.stderr)
