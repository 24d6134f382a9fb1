"""A child of a run, ready to use."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from PIL import Image

from bignas_jax.api import statistics as kept
from bignas_jax.api.inspection import Inspection, inspect
from bignas_jax.api.prediction import Prediction, predictions
from bignas_jax.data.fingerprint import fingerprint
from bignas_jax.data.given import labelled, read_given
from bignas_jax.data.transforms import CenterCrop
from bignas_jax.errors import ConfigError
from bignas_jax.evaluation import Score
from bignas_jax.nets import child as nets
from bignas_jax.nets.mode import Mode
from bignas_jax.nets.supernet import Supernet
from bignas_jax.ops import prepare
from bignas_jax.programs.buckets import Bucket
from bignas_jax.programs.compile import compile_ahead
from bignas_jax.programs.devices import make_mesh
from bignas_jax.programs.kept import identity_of
from bignas_jax.runs.identity import Use, check_data, check_run
from bignas_jax.runs.session import Session, network_identity
from bignas_jax.spaces.architecture import Architecture
from bignas_jax.spaces.cost import count
from bignas_jax.spaces.space import Space

if TYPE_CHECKING:
    from bignas_jax.api.run import Run

MOST = 64  # images of a call of a compiled program; more are computed in parts
SPLITS = ("val", "holdout", "train")


class Child:
    """One architecture with its slice of a run's weights, and its batch-norm statistics. `Run.child` makes it.

    Attributes:
      run: the run that it comes from.
      arch: its architecture.
      weights: its parameters, nested NumPy float32 arrays.
      statistics: layer name to (mean, variance); None if each batch gives its own.
      macs: multiply-adds of an image.
      params: the number of its trained parameters.
    """

    def __init__(self, run: Run, space: Space, weights: Any, statistics: kept.Statistics | None):
        self.run, self._space = run, space
        self.arch: Architecture = space.biggest
        self.weights, self.statistics = weights, statistics
        cost = count(space, self.arch, run.num_classes)
        self.macs, self.params = cost.macs, cost.params
        net = nnx.eval_shape(lambda: Supernet(space, run.num_classes, rngs=nnx.Rngs(0)))
        graphdef = self._graphdef = nnx.graphdef(net)
        mean, std = run.options.data.mean, run.options.data.std

        def logits(weights, statistics, images):
            """[B, classes] of normalised float32 [B, R, R, 3], or of uint8 [B, S, S, 3]."""
            if images.dtype == jnp.uint8:
                images = prepare(images, self.arch.resolution, mean, std)
            net = nnx.merge(graphdef, weights)
            return net(images, self.arch, None, Mode(statistics=statistics))[0]

        self._logits = jax.jit(logits)
        mesh = make_mesh(1, {})
        self._identity = identity_of("child", network_identity(space, run.options, mesh), mean, std)
        self._programs: dict[Any, Any] = {}

    @cached_property
    def _operands(self) -> Any:
        return jax.device_put((self.weights, self.statistics), jax.devices()[0])

    def __repr__(self) -> str:
        return (
            f"Child(resolution {self.arch.resolution}, {self.macs / 1e6:,.2f} M multiply-adds, "
            f"{self.params / 1e6:,.3f} M parameters, step {self.run.step})"
        )

    @property
    def resolution(self) -> int:
        """The side of its input, in pixels."""
        return self.arch.resolution

    def __call__(self, images: Any) -> Any:
        """Logits of normalised images.

        Inside `jax.jit`, `jax.grad` and the like it is a plain function of JAX. Called with arrays, it runs compiled
        programs for 1, 2, 4, ... 64 images: an unusual number of images is filled up, and compiles nothing new.

        Args:
          images: float32 [B, R, R, 3], R being `resolution`: (pixels / 255 - mean) / std, as in `config.data`.
        Returns:
          float32 [B, classes]: a NumPy array, or a traced one for a traced one.
        Raises:
          ValueError: the images have another shape or type.
        """
        images = self._checked(images)
        if isinstance(images, jax.core.Tracer):
            return self._logits(self.weights, self.statistics, images.astype(jnp.float32))
        return self._run(np.asarray(images, np.float32))

    def features(self, images: Any) -> dict[str, Any]:
        """Feature maps of normalised images, as the backbone of a detector or of a segmenter gives them.

        They are the outputs of the last block at each stride from 4 up. It is a function of JAX: wrap it in `jax.jit`.

        Args:
          images: float32 [B, R, R, 3], as the child itself takes them.
        Returns:
          By name, from the finest: {'stride4': [B, R / 4, R / 4, C], 'stride8': ..., ...}.
        Raises:
          ConfigError: the child has no stride of 4.
          ValueError: the images have another shape or type.
        """
        images = self._checked(images)
        from bignas_jax.interop.exports.export import check_features

        check_features(self._space, self.arch)
        layout = self._space.layout(self.arch, self.run.num_classes)
        net = nnx.merge(self._graphdef, self.weights)
        return nets.feature_maps(net, layout, jnp.asarray(images, jnp.float32), Mode(statistics=self.statistics))

    def predict(self, images: Any, top: int = 5) -> list[Prediction]:
        """The likeliest classes of images, which go through the run's own preprocessing.

        Args:
          images: an image, or several: paths, uint8 arrays [H, W, 3] or [H, W], images of PIL. An array [N, H, W, 3] is
            several.
          top: how many classes are kept of each image.
        Returns:
          A Prediction for each image, in order.
        Raises:
          DataError: an image is something else, or cannot be decoded.
        """
        single = isinstance(images, str | os.PathLike | Image.Image) or (hasattr(images, "ndim") and images.ndim <= 3)
        images = [images] if single else images
        if top < 1:
            raise ConfigError(f"top: found {top}, expected at least 1")
        found, part = [], []
        data = self.run.options.data
        crop = CenterCrop(data.image_size, data.eval_resize)
        for image in images:
            part.append(crop(read_given(image, data.max_pixels)))
            if len(part) == MOST:
                found.append(self._run(np.stack(part)))
                part = []
        if part:
            found.append(self._run(np.stack(part)))
        return predictions(np.concatenate(found), self.run.class_names, top) if found else []

    def evaluate(self, images: str | os.PathLike = "val") -> Score:
        """Accuracy on labelled images, as `eval.py` measures it.

        Args:
          images: a split of the run's data ('val', 'holdout' or 'train'), or a folder with a folder for each class. Not
            every class of the run needs one.
        Returns:
          top1, top5, loss, the number of images, and the speed.
        Raises:
          ConfigError: its statistics are those of each batch.
          DataError: there are no such images, or a folder is none of the run's classes.
        """
        self._check_statistics("evaluate")
        session, split = self._labelled(images)
        bucket = Bucket(self.arch, masked=False)
        session.compile_evaluation([bucket], progress=False, calibrate=False)
        wide = kept.in_supernet(session.space, self.arch, self.statistics)
        weights = self.run.placed_weights
        return session.evaluate(weights, {self.arch: bucket}, split, {self.arch: wide})[self.arch]

    def inspect(self, images: str | os.PathLike = "val", wrong: int = 24) -> Inspection:
        """What it takes the classes for, and where it is surest and wrong. `Inspection.write` makes a page of it.

        Args:
          images: as `evaluate` takes them.
          wrong: how many of the images are kept whose wrong class it gives the highest probability.
        Raises:
          ConfigError: its statistics are those of each batch.
          DataError: there are no such images, or one is corrupt and `config.data.on_corrupt` is error.
        """
        self._check_statistics("inspect")
        session, split = self._labelled(images)
        about = f"A child of {self.run.workdir}, step {self.run.step}: {self.macs / 1e6:,.2f} M multiply-adds at "
        about += f"{self.resolution} pixels"
        return inspect(self._run, session.dataset, split, wrong, about, os.fspath(images))

    def _labelled(self, images: str | os.PathLike) -> tuple[Session, str]:
        """A session of these images, and their split in it; as `evaluate` takes them."""
        split, session = os.fspath(images), self.run.session
        if split == "holdout":
            check_run(self.run.options, self.run.workdir, Use.HELD_OUT)
            check_data(self.run.workdir, fingerprint(session.dataset), Use.HELD_OUT)
        if split not in SPLITS:
            source = labelled(split, self.run.class_names)
            source.max_pixels = self.run.options.data.max_pixels
            session = dataclasses.replace(session, dataset=dataclasses.replace(session.dataset, val=source))
            split = "val"
        session.check_evaluation(split)
        return session, split

    def export(
        self,
        formats: str | Sequence[str],
        folder: str | os.PathLike,
        *,
        fold: bool = True,
        batch: int = 0,
        images: int = 128,
        features_only: bool = False,
    ) -> dict[str, pathlib.Path]:
        """Writes files that do not need this package, and runs each: its logits must be those of the child.

        Args:
          formats: some of onnx, stablehlo, torch, safetensors, onnx-int8 (quantised to 8 bits on training images, which
            are read for it); several as 'onnx,torch' or in a list.
          folder: gets the files, and preprocessing.json with the class names.
          fold: whether batch norm is folded into the convolutions.
          batch: images of a call; 0 allows any number.
          images: held-out images to compare on; 0 compares on noise, and opens no data set.
          features_only: writes features.onnx, whose outputs are the feature maps of `features` ([batch, C, H, W]), in
            place of logits. For ONNX alone; `features` of an exported PyTorch child gives the same.
        Returns:
          The file of each format.
        Raises:
          ConfigError: a format is unknown, the folder holds another child, or its statistics are those of each batch.
          ExportError: a file computes other logits; do not use it.
        """
        from bignas_jax.api.writing import write
        from bignas_jax.interop.exports.export import Form, check_features

        self._check_statistics("export")
        formats = formats.split(",") if isinstance(formats, str) else list(formats)
        if features_only:
            check_features(self._space, self.arch)
        form = Form(formats, fold, batch, max(images, 1), features_only)
        return write(self, form, pathlib.Path(folder), images=images)

    def _checked(self, images: Any) -> Any:
        side = self.resolution
        if not hasattr(images, "shape") or not hasattr(images, "dtype"):
            images = np.asarray(images)
        if images.ndim != 4 or images.shape[1:] != (side, side, 3) or not jnp.issubdtype(images.dtype, jnp.floating):
            advice = "; child.predict takes images as they are" if images.dtype == np.uint8 else ""
            raise ValueError(
                f"images: found {images.dtype} {list(images.shape)}, expected normalised float32 [B, {side}, {side}, 3]"
                + advice
            )
        return images

    def net(self) -> nets.Child:
        """The child as the exports take it."""
        return nets.Child(self._space, self.run.num_classes, self.weights, self.statistics)

    def _check_statistics(self, what: str) -> None:
        if self.statistics is None:
            raise ConfigError(f"{what}: found a child with statistics='batch', expected statistics of its own: "
                              "calibrated, stored or given")  # fmt: skip

    def _run(self, images: np.ndarray) -> np.ndarray:
        """Logits [N, classes] of normalised float32 [N, R, R, 3], or of uint8 [N, S, S, 3]."""
        if not len(images):
            return np.zeros((0, self.run.num_classes), np.float32)
        if self.statistics is None:  # what one image gets depends on the others
            return self._program(len(images), images)(images)
        parts = []
        for start in range(0, len(images), MOST):
            part = images[start : start + MOST]
            size = 1 << (len(part) - 1).bit_length()
            filled = np.concatenate([part, np.repeat(part[-1:], size - len(part), 0)])
            parts.append(self._program(size, filled)(filled)[: len(part)])
        return np.concatenate(parts)

    def _program(self, size: int, images: np.ndarray) -> Any:
        """The compiled program for so many images of this kind, as a function of them."""
        key = ("logits", size, images.dtype.name, images.shape[1], self.statistics is None)
        if key not in self._programs:
            operands = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), self._operands)
            batch = jax.ShapeDtypeStruct(images.shape, images.dtype)
            self._programs |= compile_ahead(
                {key: lambda: self._logits.lower(*operands, batch)}, progress=False, identity=self._identity
            )
        run = self._programs[key]
        return lambda batch: np.asarray(run(*self._operands, batch))

