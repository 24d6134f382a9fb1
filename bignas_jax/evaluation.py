"""Calibration and evaluation of architectures on a trained supernet's weights.

The supernet keeps no running statistics. Before an architecture is evaluated, it gets its own by forward passes over
training images (Yu et al., 2020, section 3.1, "batch norm calibration"). They are the means and the unbiased variances
of the batches, averaged with equal weight. The statistics of a batch are computed over all devices, so that a result
does not depend on the number of devices.
"""

import dataclasses
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding

from bignas_jax.errors import EvaluationError
from bignas_jax.nets.mode import NOTED, Mode
from bignas_jax.nets.sizes import sizes
from bignas_jax.ops import prepare
from bignas_jax.ops.losses import cross_entropy
from bignas_jax.programs.buckets import Bucket, bucket_for
from bignas_jax.programs.compile import compile_ahead, lowering
from bignas_jax.programs.devices import AXIS, REPLICATED, SPLIT, batch_sharding, over_devices, shapes
from bignas_jax.spaces.architecture import Architecture
from bignas_jax.spaces.space import Space

RANGE_IMAGES = 512  # of those for calibration, from which the ranges of 8-bit integers are taken

Batch = Mapping[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Score:
    """Accuracy of an architecture on a set of images.

    Attributes:
      top1: fraction of the images whose label comes first.
      top5: fraction of the images whose label is among the first five.
      loss: mean cross-entropy with the labels.
      images: the number of images that were scored.
      images_per_second: speed of the forward passes on the device, without reading images; 0 if no batch was timed.
    """

    top1: float
    top5: float
    loss: float
    images: int
    images_per_second: float


class Evaluator:
    """Calibrates and scores architectures.

    Args:
      space: the search space.
      graphdef: the graphdef of its supernet, as `weights.build` gives it.
      mesh: the devices.
      mean: three numbers, one a channel, of images scaled to 0..1.
      std: three numbers, one a channel, of images scaled to 0..1.
      identity: a text that determines these arguments and the shapes of the weights; see `compile.compile_ahead`.
      biased: whether calibration averages the biased variances of the batches, as Once-for-All does.
      rounded: whether architectures are scored in 8-bit integers (`ops.rounding`). Their statistics are then pairs: of
        the batch norms, and of the ranges of the tensors.
    Attributes:
      executables: the compiled programs by key.
    """

    def __init__(
        self,
        space: Space,
        graphdef: nnx.GraphDef,
        mesh: Mesh,
        mean: Sequence,
        std: Sequence,
        identity: str | None = None,
        biased: bool = False,
        rounded: bool = False,
    ):
        self.space, self.graphdef, self.mesh = space, graphdef, mesh
        self.mean, self.std, self.biased, self.rounded = tuple(mean), tuple(std), biased, rounded
        self.identity = f"{identity} rounded" if rounded and identity is not None else identity
        self.executables: dict[Any, Any] = {}
        self._zeros: dict[Any, Any] = {}

    def compile(
        self,
        params: Any,
        buckets: Iterable[Bucket],
        image_size: int,
        calibration_batch: int,
        batch: int,
        progress: bool = True,
    ) -> None:
        """Compiles the programs of some buckets that are not compiled yet.

        Args:
          params: the weights, or their shapes.
          buckets: the buckets to compile for.
          image_size: side of the uint8 images that will be evaluated, in pixels.
          calibration_batch: images of a calibration batch, over all devices; 0 if `calibrate` will not be called.
          batch: images of an evaluation batch, over all devices; 0 if `score` will not be called.
          progress: whether a progress bar is shown.
        """
        jobs = lowering(self.programs(params, buckets, image_size, calibration_batch, batch))
        jobs = {key: job for key, job in jobs.items() if key not in self.executables}
        if jobs:
            identity = None if self.identity is None else f"{self.identity} {image_size}"
            self.executables |= compile_ahead(jobs, "compile evaluation", progress, identity)

    def programs(
        self, params: Any, buckets: Iterable[Bucket], image_size: int, calibration_batch: int, batch: int
    ) -> dict[Any, Callable[[], Any]]:
        """Functions that trace the programs of some buckets, by key. The arguments are those of `compile`."""
        split, whole = batch_sharding(self.mesh), NamedSharding(self.mesh, REPLICATED)
        params = shapes(params, whole)

        def of(shape, dtype):
            return jax.ShapeDtypeStruct(shape, dtype, sharding=split)

        def images(count):
            return of((count, image_size, image_size, 3), np.uint8)

        def operands(bucket):
            sampled = shapes(sizes(self.space, bucket.arch, bucket.arch), whole) if bucket.masked else None
            return sampled, shapes(self._zero_statistics(params, bucket), whole)

        def ranges(bucket):
            return shapes(self._zero_ranges(params, bucket), whole)

        def trace_ranges(bucket):
            operand, statistics = operands(bucket)
            return self._note(bucket).trace(params, images(calibration_batch), operand, statistics, ranges(bucket))

        def trace_calibrate(bucket):
            sampled, statistics = operands(bucket)
            weight = shapes(np.float32(0), whole)
            return self._calibrate(bucket).trace(params, images(calibration_batch), sampled, statistics, weight)

        def trace_score(bucket):
            sampled, statistics = operands(bucket)
            statistics = (statistics, ranges(bucket)) if self.rounded else statistics
            rows = of((batch,), np.int32), of((batch,), np.float32)
            return self._score(bucket).trace(params, statistics, images(batch), *rows, sampled)

        jobs = {}
        for bucket in buckets:
            if calibration_batch:
                jobs["calibrate", bucket, calibration_batch] = partial(trace_calibrate, bucket)
                if self.rounded:
                    jobs["ranges", bucket, calibration_batch] = partial(trace_ranges, bucket)
            if batch:
                jobs["score", bucket, batch] = partial(trace_score, bucket)
        return jobs

    def calibrate(
        self, params: Any, archs: Mapping[Architecture, Bucket], batches: Iterable[Batch], num_batches: int
    ) -> dict[Architecture, Any]:
        """Batch-norm statistics of each architecture, from one pass over the images.

        Args:
          params: the weights.
          archs: architectures with the bucket that each runs in (`bucket_for`, or a sliced one of its own).
          batches: batches with `image`, uint8 [B, S, S, 3] on the devices.
          num_batches: the number of batches.
        Returns:
          By architecture, the statistics that `Mode.statistics` takes: layer name to (mean, unbiased variance), each
          [width of the bucket], on all devices. With `rounded`, they come with the ranges, of the first RANGE_IMAGES.
        Raises:
          ValueError: there were more or fewer batches.
        """
        sampled = self._sampled(archs)
        statistics = {arch: self._zero_statistics(params, bucket) for arch, bucket in archs.items()}
        came, kept = 0, []
        for batch in batches:
            came += 1
            if self.rounded and sum(map(len, kept)) < RANGE_IMAGES:
                kept.append(batch["image"])
            for arch, bucket in archs.items():
                run = self.executables["calibrate", bucket, len(batch["image"])]
                statistics[arch] = run(
                    params, batch["image"], sampled[arch], statistics[arch], np.float32(1 / num_batches)
                )
        if came != num_batches:
            raise ValueError(f"calibration: found {came} batches of images, expected {num_batches}")
        return self._with_ranges(params, archs, statistics, kept) if self.rounded else statistics

    def _with_ranges(self, params: Any, archs: Mapping, statistics: Mapping, images: Sequence[jax.Array]) -> dict:
        """The statistics of each architecture, with the ranges of its tensors over these batches of images."""
        sampled, found = self._sampled(archs), {}
        for arch, bucket in archs.items():
            ranges = self._zero_ranges(params, bucket)
            for image in images:
                run = self.executables["ranges", bucket, len(image)]
                ranges = run(params, image, sampled[arch], statistics[arch], ranges)
            found[arch] = statistics[arch], ranges
        return found

    def score(
        self,
        params: Any,
        archs: Mapping[Architecture, Bucket],
        statistics: Mapping[Architecture, Any],
        batches: Iterable[Batch],
    ) -> dict[Architecture, Score]:
        """Accuracy of each architecture, from one pass over the images.

        Args:
          params: the weights.
          archs: architectures with the bucket that each runs in.
          statistics: by architecture, as `calibrate` returns them.
          batches: batches with `image` uint8 [B, S, S, 3], `label` int32 [B] and `weight` float32 [B] (0 for padding).
        Raises:
          EvaluationError: there was no image to score.
        """
        outcomes, seconds = self.outcomes(params, archs, statistics, batches, timed=True)
        return {arch: score_of(rows, seconds[arch]) for arch, rows in outcomes.items()}

    def outcomes(
        self,
        params: Any,
        archs: Mapping[Architecture, Bucket],
        statistics: Mapping[Architecture, Any],
        batches: Iterable[Batch],
        timed: bool = False,
    ) -> tuple[dict[Architecture, np.ndarray], dict[Architecture, float]]:
        """The outcome of each image for each architecture, from one pass over the images.

        Args:
          params: the weights.
          archs: architectures with the bucket that each runs in.
          statistics: by architecture, as `calibrate` returns them.
          batches: batches as for `score`.
          timed: whether to wait for each batch and measure it. Without it, the devices always have work queued.
        Returns:
          The outcomes by architecture: float32 [images, 3] in the order of the batches, without padding. The columns
          are whether the label came first (0 or 1), whether it was among the first five, and the cross-entropy with it.
          And the seconds of one image's forward pass by architecture, 0 if none was measured.
        """
        sampled = self._sampled(archs)
        rows: dict[Architecture, list[jax.Array]] = {arch: [] for arch in archs}
        spent, images = dict.fromkeys(archs, 0.0), 0
        for number, batch in enumerate(batches):
            for arch, bucket in archs.items():
                run = self.executables["score", bucket, len(batch["image"])]
                operands = batch["image"], batch["label"], batch["weight"]
                start = time.perf_counter()
                rows[arch].append(run(params, statistics[arch], *operands, sampled[arch]))
                if timed and number:  # the first call of an executable is slower and not measured
                    jax.block_until_ready(rows[arch])
                    spent[arch] += time.perf_counter() - start
            if timed:
                jax.block_until_ready(list(rows.values()))
                images += len(batch["image"]) if number else 0
        seconds = {arch: spent[arch] / images if images else 0.0 for arch in archs}
        return {arch: _kept(found) for arch, found in rows.items()}, seconds

    def _sampled(self, archs: Mapping[Architecture, Bucket]) -> dict[Architecture, Any]:
        return {arch: bucket.sampled(self.space, arch) for arch, bucket in archs.items()}

    def _forward(self, params, image, bucket: Bucket, sampled, mode: Mode):
        x = prepare(image, bucket.arch.resolution, self.mean, self.std)
        return nnx.merge(self.graphdef, params)(x, bucket.arch, sampled, mode)

    def _zero_statistics(self, params: Any, bucket: Bucket) -> Any:
        """Zeros in the form of the bucket's statistics. A trace of the network gives the form, once for each bucket."""
        if bucket in self._zeros:
            return self._zeros[bucket]
        side = bucket.arch.resolution
        image = jax.ShapeDtypeStruct((1, side, side, 3), np.uint8)
        sampled = sizes(self.space, bucket.arch, bucket.arch) if bucket.masked else None
        form = jax.eval_shape(
            lambda params, image: self._forward(params, image, bucket, sampled, Mode(collect=True))[1], params, image
        )
        self._zeros[bucket] = jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), form)
        return self._zeros[bucket]

    def _zero_ranges(self, params: Any, bucket: Bucket) -> Any:
        """Zeros in the form of the bucket's ranges."""
        if ("ranges", bucket) not in self._zeros:
            side, statistics = bucket.arch.resolution, self._zero_statistics(params, bucket)
            image = jax.ShapeDtypeStruct((1, side, side, 3), np.uint8)
            sampled = sizes(self.space, bucket.arch, bucket.arch) if bucket.masked else None
            mode = Mode(statistics=statistics, ranges=NOTED)
            form = jax.eval_shape(lambda p, image: self._forward(p, image, bucket, sampled, mode)[1], params, image)
            self._zeros["ranges", bucket] = jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), form)
        return self._zeros["ranges", bucket]

    def _note(self, bucket: Bucket):
        def note(params, image, sampled, statistics, before):
            mode = Mode(statistics=statistics, ranges=NOTED)
            _, ranges = self._forward(params, image, bucket, sampled, mode)
            return jax.tree.map(lambda b, r: jnp.maximum(b, jax.lax.pmax(r, AXIS)), before, ranges)

        specs = (REPLICATED, SPLIT, REPLICATED, REPLICATED, REPLICATED)
        return over_devices(self.mesh, note, specs, REPLICATED)

    def _calibrate(self, bucket: Bucket):
        def calibrate(params, image, sampled, total, weight):
            mode = Mode(collect=True, axis_name=AXIS)
            _, statistics = self._forward(params, image, bucket, sampled, mode)
            if self.biased:
                statistics = self._biased(statistics, bucket, len(image) * self.mesh.size)
            return jax.tree.map(lambda t, s: t + weight * s, total, statistics)

        specs = (REPLICATED, SPLIT, REPLICATED, REPLICATED, REPLICATED)
        return over_devices(self.mesh, calibrate, specs, REPLICATED)

    def _biased(self, statistics: Any, bucket: Bucket, images: int) -> Any:
        """Statistics of a batch with the biased variance in place of the unbiased one."""
        found = {}
        for layer in self.space.layout(bucket.arch):
            for conv in layer.convs:
                if conv.norm:
                    name, count = layer.statistics_name(conv), images * conv.side**2
                    mean, variance = statistics[name]
                    found[name] = (mean, variance * (max(count - 1, 1) / count))
        return found

    def _score(self, bucket: Bucket):
        def score(params, statistics, image, label, weight, sampled):
            statistics, ranges = statistics if self.rounded else (statistics, None)
            logits, _ = self._forward(params, image, bucket, sampled, Mode(statistics=statistics, ranges=ranges))
            targets = jax.nn.one_hot(label, logits.shape[-1])
            losses = jax.vmap(lambda row, target: cross_entropy(row[None], target[None]))(logits, targets)
            # The rank of the label's logit. Logits that are equal to it count as larger. Where a logit is not a number
            # there is no rank, and the label is not among the first five, even of fewer classes.
            own = jnp.sum(jnp.where(targets > 0, logits, 0), -1, keepdims=True)
            rank = jnp.sum(~(logits < own), -1) - 1 + 5 * jnp.any(jnp.isnan(logits), -1)
            rows = jnp.stack([rank < 1, rank < 5, losses, weight], -1)
            return jax.lax.all_gather(rows, AXIS, tiled=True)

        specs = (REPLICATED, REPLICATED, SPLIT, SPLIT, SPLIT, REPLICATED)
        return over_devices(self.mesh, score, specs, REPLICATED)


def _kept(rows: Sequence[jax.Array]) -> np.ndarray:
    """The outcomes of all batches without padding: float32 [images, 3]."""
    if not rows:
        return np.zeros((0, 3), np.float32)
    joined = np.concatenate([np.asarray(part) for part in rows])
    return joined[joined[:, 3] > 0, :3]


def score_of(outcomes: np.ndarray, seconds: float = 0.0) -> Score:
    """The score of an architecture.

    Args:
      outcomes: float32 [images, 3], as `Evaluator.outcomes` returns them.
      seconds: duration of one image's forward pass; 0 if it was not measured.
    Raises:
      EvaluationError: there was no image.
    """
    if not len(outcomes):
        raise EvaluationError("evaluation: found no image to score, expected at least one")
    top1, top5, loss = (float(v) for v in np.mean(outcomes, 0, dtype=np.float64))
    return Score(top1, top5, loss, len(outcomes), 1 / seconds if seconds else 0.0)


def placed(space: Space, archs: Iterable[Architecture], sliced: bool) -> dict[Architecture, Bucket]:
    """The bucket of each architecture: its own if `sliced` (one compile each), otherwise as `bucket_for` gives it."""
    return {arch: Bucket(arch, masked=False) if sliced else bucket_for(space, arch) for arch in archs}
