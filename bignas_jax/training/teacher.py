"""The teacher that `config.teacher` names: the architecture of another run, or an ONNX file.

A run keeps its teacher: the weights and calibrated statistics, or the file, lie in `teacher/` in the run's folder from
the first step on. So a run that goes on has the same teacher to the bit, whatever became of the other run.
"""

import io
import pathlib
import zipfile
from typing import Any

import jax
import numpy as np

from bignas_jax.config.choices import Losses
from bignas_jax.config.files import load_run_options
from bignas_jax.config.options import Options
from bignas_jax.data import prefetch
from bignas_jax.errors import CheckpointError, ConfigError, FileError
from bignas_jax.evaluation import Evaluator
from bignas_jax.files import read_bytes, read_json, write_bytes, write_json
from bignas_jax.nets.slicing import param_shapes, single, slice_params
from bignas_jax.programs.buckets import Bucket
from bignas_jax.programs.kept import identity_of
from bignas_jax.runs.agree import agreed
from bignas_jax.runs.checkpoint import Checkpoints
from bignas_jax.runs.folder import begun
from bignas_jax.runs.session import Session, class_names
from bignas_jax.runs.state_names import named, unnamed
from bignas_jax.spaces.layers import statistics as widths_of
from bignas_jax.spaces.naming import read_architectures
from bignas_jax.spaces.registry import space_of
from bignas_jax.step.teacher import Network, Teacher, graphdef_of
from bignas_jax.training.onnx_teacher import Onnx

FOLDER, NETWORK, WEIGHTS, FILE = "teacher", "network.json", "weights.npz", "teacher.onnx"


def open_teacher(session: Session, workdir: pathlib.Path, goes_on: bool) -> Teacher | None:
    """The teacher of a run; None if its config names none.

    Args:
      session: of the run.
      workdir: the run's folder.
      goes_on: whether the run has made steps. Its teacher is then the one that it keeps.
    Raises:
      ConfigError: there is no such teacher, it has other classes or takes images of another size, or the loss has no
        place for it.
    """
    source = session.options.teacher.source
    if not source:
        return None
    if goes_on:
        return _kept(session, workdir / FOLDER)
    check_heard(session.options)
    if pathlib.Path(source).is_dir():
        return _of_run(session, pathlib.Path(source))
    if not source.endswith(".onnx"):
        raise ConfigError(f"config.teacher.source: found {source!r}, expected the folder of a run or an .onnx file")
    return _of_file(session, pathlib.Path(source))


def check_heard(options: Options) -> None:
    """Refuses a teacher that the loss does not listen to.

    Raises:
      ConfigError: there is one, and members learn from labels alone.
    """
    if options.teacher.source and options.sandwich.loss == Losses.LABELS:
        raise ConfigError(
            f"config.teacher.source: found {options.teacher.source!r} beside config.sandwich.loss=labels, expected a "
            "loss that listens to a teacher, such as soft_cross_entropy"
        )


def keep(teacher: Teacher, workdir: pathlib.Path) -> None:
    """Writes a teacher into a run's folder, for the run to go on with."""
    folder = workdir / FOLDER
    folder.mkdir(exist_ok=True)
    if isinstance(teacher, Onnx):
        write_bytes(folder / FILE, teacher.content)
        return
    arrays = {f"params.{name}": np.asarray(a) for name, a in named(teacher.params).items()}
    for name, moments in teacher.statistics.items():
        arrays |= {f"statistics.{name}.{n}": np.asarray(a) for n, a in enumerate(moments)}
    packed = io.BytesIO()
    np.savez(packed, **arrays)
    write_bytes(folder / WEIGHTS, packed.getvalue())
    about = {"space": teacher.space.to_dict(), "dtype": teacher.dtype, "mean": teacher.mean, "std": teacher.std}
    write_json(folder / NETWORK, about, indent=2)


def _of_run(session: Session, folder: pathlib.Path) -> Network:
    """The architecture `config.teacher.arch` of a run, calibrated on this run's training images."""
    if not begun(folder):
        raise ConfigError(f"config.teacher.source: found no checkpoint under {folder}, expected those of a trained run")
    theirs = load_run_options(folder / "config.json")
    _check_same(session, folder, theirs)
    space, chosen = space_of(theirs.space), session.options.teacher
    (arch,) = read_architectures(space, [chosen.arch], "config.teacher.arch").values()
    try:
        checkpoints = Checkpoints(folder, read_only=True)
        try:
            form = param_shapes(space, theirs.model.num_classes)
            weights, _ = checkpoints.weights(form, session.mesh, chosen.checkpoint)
        finally:
            checkpoints.close()
    except CheckpointError as error:
        raise ConfigError(f"config.teacher.checkpoint: {str(error).removeprefix('--checkpoint: ')}") from error
    params = jax.tree.map(np.ascontiguousarray, slice_params(space, jax.tree.map(np.asarray, weights), arch))
    own = single(space, arch)
    statistics = _calibrated(session, own, theirs, params)
    return _network(session, own, theirs.model.dtype, params, statistics, theirs.data.mean, theirs.data.std)


def _check_same(session: Session, folder: pathlib.Path, theirs: Options) -> None:
    ours = session.options
    if theirs.model.num_classes != ours.model.num_classes:
        raise ConfigError(
            f"config.teacher.source: found {theirs.model.num_classes} classes in {folder}, expected "
            f"{ours.model.num_classes} as in this run: take a teacher of the same classes"
        )
    if class_names(folder, theirs.data, like=session) not in (None, session.dataset.class_names):
        raise ConfigError(
            f"config.teacher.source: found other classes in {folder}, expected those of this run in the same order"
        )
    if theirs.data.image_size != ours.data.image_size:
        raise ConfigError(
            f"config.teacher.source: found images of {theirs.data.image_size} pixels in {folder}, expected "
            f"{ours.data.image_size} as in this run: take a teacher of that size, or set config.data.image_size"
        )


def _calibrated(session: Session, space: Any, theirs: Options, params: Any) -> dict[str, tuple[Any, Any]]:
    options, (arch, data) = session.options, (space.biggest, theirs.data)
    classes, dtype = theirs.model.num_classes, theirs.model.dtype
    identity = identity_of("teacher", space.to_dict(), classes, dtype, data.mean, data.std, session.network)
    graphdef = graphdef_of(space, classes, dtype)
    evaluator = Evaluator(space, graphdef, session.mesh, data.mean, data.std, identity)
    bucket, batch = Bucket(arch, masked=False), options.calibration.batch_size
    evaluator.compile(params, [bucket], options.data.image_size, batch, 0, progress=False)
    loader = session.loader("calibration", batch, limit=options.calibration.num_images)
    with prefetch(loader.once(), session.mesh) as batches:
        found = evaluator.calibrate(params, {arch: bucket}, agreed(batches), loader.steps_per_epoch)[arch]
    return jax.tree.map(np.asarray, found)


def _network(session: Session, space, dtype, params, statistics, mean, std) -> Network:
    classes, parts = session.options.model.num_classes, session.options.micro_batches
    return Network(space, classes, dtype, params, statistics, tuple(mean), tuple(std), session.mesh, parts)


def _of_file(session: Session, path: pathlib.Path) -> Onnx:
    options, where = session.options, f"config.teacher.source: {path}"
    try:
        content = read_bytes(path, largest=2 << 30)
    except (OSError, FileError) as error:
        raise ConfigError(f"{where}: cannot be read ({getattr(error, 'strerror', None) or error})") from error
    local = options.batch_size // jax.process_count()
    return Onnx.of(content, where, options.data, options.model.num_classes, local, session.mesh)


def _kept(session: Session, folder: pathlib.Path) -> Teacher:
    """The teacher that `keep` wrote."""
    if (folder / FILE).is_file():
        return _of_file(session, folder / FILE)
    try:
        about = read_json(folder / NETWORK)
        with np.load(io.BytesIO(read_bytes(folder / WEIGHTS, largest=8 << 30))) as file:
            arrays = dict(file)
        space, classes = space_of(about["space"]), session.options.model.num_classes
        form = param_shapes(space, classes)
        params = unnamed({name: arrays[f"params.{name}"] for name in named(form)}, form)
        names = widths_of(space.layout(space.biggest))
        statistics = {name: tuple(arrays[f"statistics.{name}.{n}"] for n in (0, 1)) for name in names}
        return _network(session, space, about["dtype"], params, statistics, about["mean"], about["std"])
    except (OSError, FileError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise ConfigError(
            f"{folder}: found no teacher of this run ({error}), expected the one that it began with: put it back"
        ) from error
