"""Exports children of a run to files that do not need bignas_jax. Each file is run and checked on real images."""

import dataclasses
import json
import pathlib
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from bignas_jax.config.options import Data, Options
from bignas_jax.data import prefetch
from bignas_jax.errors import ConfigError, FileError
from bignas_jax.evaluation import RANGE_IMAGES
from bignas_jax.files import locked, read_json, read_text, write_json
from bignas_jax.interop.exports import formats, run_back
from bignas_jax.interop.exports.comparing import accuracy, compare
from bignas_jax.interop.exports.images import real_images
from bignas_jax.interop.exports.preprocess import preprocess
from bignas_jax.nets.child import Child, feature_maps, fold, take
from bignas_jax.nets.mode import Mode
from bignas_jax.ops import prepare
from bignas_jax.programs.buckets import Bucket
from bignas_jax.programs.kept import use_compilation_cache
from bignas_jax.programs.processes import alone
from bignas_jax.runs.checkpoint import Checkpoints
from bignas_jax.runs.identity import Use, check_run
from bignas_jax.runs.session import Session
from bignas_jax.spaces.architecture import Architecture
from bignas_jax.spaces.cost import count
from bignas_jax.spaces.layers import feature_layers
from bignas_jax.spaces.naming import read_architectures
from bignas_jax.spaces.space import Space

_CHECK_BATCH = 16


@dataclasses.dataclass(frozen=True)
class Form:
    """How children are written.

    Attributes:
      formats: names of `formats.WRITERS`, or of `formats.FURTHER`.
      fold: whether batch norm is folded into the convolutions.
      batch: images of a call; 0 allows any number.
      images: number of held-out images to compare on.
      features_only: whether `features.onnx`, which gives feature maps, is written in place of the formats.
    """

    formats: Sequence[str] = tuple(formats.WRITERS)
    fold: bool = True
    batch: int = 0
    images: int = 128
    features_only: bool = False

    def __post_init__(self):
        object.__setattr__(self, "formats", formats.check_formats(self.formats))
        if self.features_only:
            if self.formats != ("onnx",):
                raise ConfigError(
                    f"--format: found {','.join(self.formats)} with features_only, expected onnx alone; a child in "
                    "PyTorch has them by its method features"
                )
            object.__setattr__(self, "formats", ("features",))
        rounded = [name for name in self.formats if name in formats.ROUNDED]
        if rounded and not self.fold:
            raise ConfigError(
                f"--nofold: found {', '.join(rounded)}, whose batch norm is always folded, expected other formats: "
                "export it without --nofold"
            )
        if self.batch < 0:
            raise ConfigError(f"--batch: found {self.batch}, expected the images of a call, or 0 for any")
        if self.images < 1:
            raise ConfigError(f"--images: found {self.images}, expected at least 1 to compare on")


def export_run(
    options: Options,
    workdir: str | pathlib.Path,
    names: Sequence[str],
    form: Form,
    checkpoint: str = "newest",
    out: str | pathlib.Path = "",
) -> Iterable[dict[str, Any]]:
    """Exports architectures from a run's checkpoint. Yields a row for each when its files are written and checked.

    Args:
      options: of the run, as `flags.parse` returns them.
      workdir: the run's folder.
      names: the architectures, as `reporting.read_architectures` takes them.
      form: how the children are written.
      checkpoint: 'newest', 'best' or a step.
      out: a folder that gets a folder for each child; '' means `children` in the run's folder.
    Returns:
      Rows: name, folder, architecture, macs, params, step, files (see `write_child`), images, split, top1.
    Raises:
      ValueError: there is no such checkpoint, there are too few images, or an architecture is not in the space; one
        line.
    """
    alone(options.distributed, "an export")
    use_compilation_cache()
    out = pathlib.Path(out or pathlib.Path(workdir) / "children")
    session, weights, found, step = _open(options, workdir, names, checkpoint)
    for name, arch in found.items():
        check_folder(out / name, arch)
        if form.features_only:
            check_features(session.space, arch)
    with locked(out, "export"):
        yield from _exported(session, weights, found, step, form, out)


def _exported(
    session: Session, weights: Any, found: Mapping[str, Architecture], step: int, form: Form, out: pathlib.Path
) -> Iterable[dict[str, Any]]:
    """The rows of `export_run`, each once its files are written and checked."""
    comparison = real_images(session, form.images)
    statistics = _calibrate(session, weights, found.values())
    for name, arch in found.items():
        logits, maps = _outputs(session, weights, statistics[arch], arch, comparison.cropped, form.features_only)
        expected = maps if form.features_only else logits
        child = take(session.space, weights, statistics[arch], arch)
        about = _about(session, name, arch, step)
        specification = preprocessing(session.options.data, session.dataset.class_names, arch.resolution)
        folder = out / name
        files = write_child(child, folder, about, specification, form, partial(training_images, session, form))
        images = np.stack([preprocess(image, specification) for image in comparison.decoded])
        found_logits = run_child(folder, images, form)
        row = about | {
            "folder": str(folder),
            "files": [
                file
                | compare(found_logits[file["format"]], expected)
                | accuracy(file, found_logits[file["format"]], comparison.labels)
                for file in files
            ],
            "images": len(images),
            "split": comparison.split,
            "top1": float(np.mean(logits.argmax(1) == comparison.labels)),
        }
        write_json(folder / "export.json", row, indent=2)
        yield row


def _open(options: Options, workdir, names: Sequence[str], checkpoint: str):
    own = options
    # A child is exported in float32, whatever dtype it was trained in. The logits to compare with are float32, too.
    options = dataclasses.replace(options, model=dataclasses.replace(options.model, dtype="float32"))
    checkpoints = Checkpoints(workdir, read_only=True, on_damage=options.checkpoint.on_damage)
    try:
        check_run(own, workdir, Use.EXPORT)
        session = Session.open(options, run=workdir, use=Use.EXPORT)
        session.check_evaluation()
        found = read_architectures(session.space, names)
        weights, step = checkpoints.weights(session.shapes, session.mesh, checkpoint)
    finally:
        checkpoints.close()
    return session, weights, found, step


def check_folder(folder: pathlib.Path, arch: Architecture) -> None:
    """Refuses a folder that holds another architecture, for instance because two files have the same name."""
    file = folder / "architecture.json"
    try:
        there = Architecture.from_json(read_text(file))
    except FileNotFoundError:
        return
    except ValueError as error:
        raise ConfigError(f"{file}: {error}; give another --out") from error
    if there != arch:
        raise ConfigError(f"{folder} holds another architecture, {there.to_json()}: remove it, or give another --out")


def check_features(space: Space, arch: Architecture) -> None:
    """Refuses an architecture that has no feature maps to give."""
    if not feature_layers(space.layout(arch)):
        raise ConfigError("features: found a network without a stride of 4, expected one with feature maps to give")


def _calibrate(session: Session, weights: Any, archs: Iterable[Architecture]) -> dict[Architecture, Any]:
    buckets = {arch: Bucket(arch, masked=False) for arch in archs}
    options = session.options.calibration
    session.evaluator.compile(session.shapes, buckets.values(), session.options.data.image_size, options.batch_size, 0)
    loader = session.loader("calibration", options.batch_size, limit=options.num_images)
    with prefetch(loader.once(), session.mesh) as batches:
        return session.evaluator.calibrate(weights, buckets, batches, loader.steps_per_epoch)


def training_images(session: Session, form: Form, resolution: int) -> Iterator[np.ndarray]:
    """Batches of float32 [B, 3, R, R], of up to `RANGE_IMAGES` of the training images that calibration uses.

    They are read when the first one is asked for.
    """
    options, data = session.options.calibration, session.options.data
    limit = max(min(options.num_images, RANGE_IMAGES), options.batch_size)
    batch = form.batch or options.batch_size
    for part in session.loader("calibration", options.batch_size, limit=limit).once():
        images = np.moveaxis(np.asarray(prepare(part["image"], resolution, data.mean, data.std)), -1, 1)
        images = _filled(images, batch)
        yield from (images[start : start + batch] for start in range(0, len(images), batch))


def _outputs(
    session: Session, weights: Any, statistics: Any, arch: Architecture, images: np.ndarray, features: bool
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """What the supernet itself, sliced to `arch`, computes on uint8 [N, S, S, 3]. Evaluation scores the same logits.

    Returns:
      Logits [N, classes], and with `features` the feature maps [N, C, H, W] by name.
    """
    data = session.options.data

    @jax.jit
    def run(weights, statistics, images):
        x = prepare(images, arch.resolution, data.mean, data.std)
        net = nnx.merge(session.graphdef, weights)
        mode = Mode(statistics=statistics)
        maps = feature_maps(net, session.space.layout(arch), x, mode) if features else {}
        return net(x, arch, None, mode)[0], {name: jnp.moveaxis(value, -1, 1) for name, value in maps.items()}

    with jax.default_matmul_precision("highest"):
        parts = _filled(images, _CHECK_BATCH).reshape(-1, _CHECK_BATCH, *images.shape[1:])
        found = [jax.device_get(run(weights, statistics, part)) for part in parts]
        return jax.tree.map(lambda *parts: np.concatenate(parts)[: len(images)], *found)


def _filled(images: np.ndarray, batch: int) -> np.ndarray:
    """The images, filled up with copies of the last one to a multiple of `batch`."""
    return np.concatenate([images, np.repeat(images[-1:], -len(images) % batch, 0)])


def _about(session: Session, name: str, arch: Architecture, step: int) -> dict[str, Any]:
    cost = count(session.space, arch, session.options.model.num_classes)
    return {
        "name": name,
        "architecture": arch.to_dict(),
        "macs": cost.macs,
        "params": cost.params,
        "step": step,
    }


def preprocessing(data: Data, class_names: Sequence[str], resolution: int) -> dict[str, Any]:
    """The steps from an image file to the child's input, in the order of the keys; see preprocess.py."""
    return {
        "color": "RGB, uint8; grey images have three equal channels; the orientation in EXIF is not applied",
        "resize": {
            "short_side": data.eval_resize,
            "long_side": "in proportion, rounded down",
            "interpolation": "bicubic, a = -0.5",
            "antialias": True,
        },
        "crop": {"size": data.image_size, "position": "centre, round((side - size) / 2) to the top and the left"},
        "scale": 1 / 255,
        "mean": list(data.mean),
        "std": list(data.std),
        "size": {
            "side": resolution,
            "interpolation": "bicubic, a = -0.75, half-pixel centres, border repeated",
            "antialias": False,
        },
        "input": {
            "dtype": "float32",
            "onnx": ["batch", 3, resolution, resolution],
            "onnx-int8": ["batch", 3, resolution, resolution],
            "litert": ["batch, or 1", 3, resolution, resolution],
            "litert-int8": ["batch, or 1", 3, resolution, resolution],
            "torch": ["batch", 3, resolution, resolution],
            "safetensors": ["batch", 3, resolution, resolution],
            "stablehlo": ["batch", resolution, resolution, 3],
        },
        "output": "logits, float32 [batch, classes]; softmax gives probabilities",
        "class_names": list(class_names),
    }


def write_child(
    child: Child, folder: pathlib.Path, about: Mapping[str, Any], specification: Mapping[str, Any], form: Form,
    training: Callable[[int], Iterable[np.ndarray]] = lambda resolution: (),
) -> list[dict[str, Any]]:  # fmt: skip
    """Writes a child's files into `folder`.

    Files of other formats stay if they were exported from the same architecture and step; otherwise they are removed.
    Files that are no exports stay.

    Args:
      child: the child.
      folder: where the files are written.
      about: name, architecture (a dictionary), macs, params, step.
      specification: the result of `preprocessing`.
      form: how the child is written.
      training: gives the batches of `training_images` at a resolution, for integers alone.
    Returns:
      A dictionary for each format: format, file, bytes and, for ONNX, nodes (number of each operator).
    """
    folder.mkdir(parents=True, exist_ok=True)
    _remove_outdated(folder, about)
    child = fold(child) if form.fold else child
    write_json(folder / "architecture.json", about["architecture"])
    write_json(folder / "preprocessing.json", specification, indent=2)
    shutil.copyfile(pathlib.Path(__file__).parent / "preprocess.py", folder / "preprocess.py")
    texts = dict(about) | {"preprocessing": specification, "class_names": specification["class_names"]}
    texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in texts.items()}
    files = []
    for name in form.formats:
        images = (training(child.arch.resolution),) if name in formats.ROUNDED else ()
        path = _writer(name)(child, folder, form.batch, texts, *images)
        file = {"format": name, "file": path.name, "bytes": path.stat().st_size}
        files.append(file | ({"nodes": formats.onnx_nodes(path)} if path.suffix == ".onnx" else {}))
    return files


def _writer(name: str) -> Callable[..., pathlib.Path]:
    """The function that writes a format. Modules that import a converter are loaded only where they are asked for."""
    if name == formats.INTEGERS:
        from bignas_jax.interop.exports.integers import write_integers

        return write_integers
    if name in formats.FURTHER:
        from bignas_jax.interop.exports import litert

        return litert.write_litert if name == formats.LITERT else litert.write_litert_integers
    return formats.write_features if name == "features" else formats.WRITERS[name]


def _remove_outdated(folder: pathlib.Path, about: Mapping[str, Any]) -> None:
    """Removes the files of an earlier export from other weights: they would be mistaken for this child's."""
    record = folder / "export.json"
    try:
        before = read_json(record)
        same = isinstance(before, dict) and all(before.get(name) == about[name] for name in ("architecture", "step"))
    except FileNotFoundError:
        return
    except FileError:
        same = False
    record.unlink()
    for name in () if same else (*formats.FILES, formats.FEATURES, *formats.FURTHER.values()):
        (folder / name).unlink(missing_ok=True)


def run_child(folder: pathlib.Path, images: np.ndarray, form: Form) -> dict[str, run_back.Outputs]:
    """Logits [N, classes], or feature maps by name, of float32 images [N, 3, R, R], computed from the files alone."""
    batch = form.batch or _CHECK_BATCH
    filled = _filled(images, batch)
    found = {name: run_back.RUNNERS[name](folder, filled, batch) for name in form.formats}
    return jax.tree.map(lambda output: output[: len(images)], found)
