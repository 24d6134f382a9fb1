"""The checks and the measurements of `doctor`, each in a few seconds."""

import dataclasses
import pathlib
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from PIL import Image

from bignas_jax.config.options import Augment, Data
from bignas_jax.data import Loader, open_dataset
from bignas_jax.nets.supernet import Supernet
from bignas_jax.ops.losses import cross_entropy
from bignas_jax.programs.buckets import Bucket, shared
from bignas_jax.programs.devices import REPLICATED, make_mesh, over_devices
from bignas_jax.programs.weights import build
from bignas_jax.spaces.architecture import Architecture
from bignas_jax.spaces.mobilenet import SearchSpace, Stage

TOLERANCE = 1e-3  # of the gradient's norm, in float32; a wrong mask changes it by a tenth and more
CLASSES, BATCH = 10, 16
ROUNDS = 5


def small_space() -> SearchSpace:
    """A space with all that masks act on: widths, depth, kernel sizes, expansion ratios, squeeze-and-excitation."""
    first = Stage("first", width=(8, 16), depth=(1,), kernel_size=(3,), expand_ratio=(1,), stride=1, se=False)
    second = Stage("second", width=(16, 24), depth=(1, 2), kernel_size=(3, 5), expand_ratio=(2, 3), stride=2, se=True)
    return SearchSpace(
        resolution=(16,), stem_width=(8, 16), stem_stride=1, head_width=(32, 64), v3_head=False, activation="swish",
        stages=(first, second),
    )  # fmt: skip


def masked_against_sliced() -> float:
    """The distance between the gradients of one architecture in its shared program and in its own, over their norm."""
    space = small_space()
    graphdef, params = build(space, CLASSES)
    rng = np.random.default_rng(0)
    # Batch norm's scales are drawn: as new, zeros would hide most of the network.
    params = jax.tree_util.tree_map_with_path(
        lambda path, p: jnp.asarray(rng.uniform(0.5, 1.5, p.shape), p.dtype) if path[-1].key == "scale" else p, params
    )
    image = jnp.asarray(rng.normal(size=(BATCH, 16, 16, 3)), jnp.float32)
    label = jax.nn.one_hot(rng.integers(0, CLASSES, BATCH), CLASSES)
    arch = dataclasses.replace(space.biggest, width=(8, 16, 16, 32), kernel_size=(3, 3), expand_ratio=(1, 2),
                               depth=(1, 1))  # fmt: skip
    with jax.default_matmul_precision("highest"):
        masked, sliced = (
            _gradient(space, graphdef, bucket, arch, params, image, label)
            for bucket in (shared(space, arch.resolution), Bucket(arch, masked=False))
        )
    return float(np.linalg.norm(masked - sliced) / np.linalg.norm(sliced))


def _gradient(space: SearchSpace, graphdef, bucket: Bucket, arch: Architecture, params, image, label) -> np.ndarray:
    """The gradient of all weights, as one vector."""

    def gradient(params, image, label, sampled):
        def loss(params):
            net: Supernet = nnx.merge(graphdef, params)
            return cross_entropy(net(image, bucket.arch, sampled)[0], label)

        return jax.grad(loss)(params)

    run = over_devices(make_mesh(1, {}), gradient, REPLICATED, REPLICATED)
    grads = jax.device_get(run(params, image, label, bucket.sampled(space, arch)))
    return np.concatenate([g.ravel() for g in jax.tree.leaves(grads)])


def copy_bandwidth() -> float:
    """Bytes a second that a kernel reads and writes, together."""
    holder = [jnp.zeros(1 << (24 if jax.default_backend() == "cpu" else 28), jnp.float32)]
    add = jax.jit(lambda x: x + 1, donate_argnums=0)  # donated: no page is new to the process

    def call() -> jax.Array:
        holder[0] = add(holder[0])
        return holder[0]

    return 2 * holder[0].nbytes / _seconds(call)


def product_rate(dtype: str) -> float:
    """Operations a second of a square matrix product; a multiply-add is two."""
    side = 1024 if jax.default_backend() == "cpu" else 8192
    a = jax.random.normal(jax.random.key(0), (side, side), dtype)
    product = jax.jit(lambda a: a @ a)
    return 2 * side**3 / _seconds(lambda: product(a))


def _seconds(call) -> float:
    """The seconds of a call: the fastest of a few."""
    jax.block_until_ready(call())
    times = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        jax.block_until_ready(call())
        times.append(time.perf_counter() - start)
    return min(times)


def images_a_second(files: int = 64, seconds: float = 3.0) -> float:
    """Training images a second that this process reads, from JPEG files to batches; on one core."""
    with tempfile.TemporaryDirectory(prefix="bignas_jax-") as folder:
        _write_images(pathlib.Path(folder), files)
        augment = Augment(
            crop="resized", crop_scale=(0.08, 1.0), crop_ratio=(0.75, 1.3333), padding=0, flip=0.5, policy="none",
            rand_ops=2, rand_magnitude=9, color_jitter=(0.0, 0.0, 0.0, 0.0),
        )  # fmt: skip
        data = Data(
            source="folder", root=folder, train_split="train", val_split="val", holdout=0, image_size=224,
            eval_resize=256, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), num_workers=0, on_corrupt="error",
            augment=augment,
        )  # fmt: skip
        batches = Loader(open_dataset(data), "train", batch_size=16, train=True, num_workers=0).epochs()
        next(batches)
        count, start = 0, time.perf_counter()
        while time.perf_counter() - start < seconds:
            count += len(next(batches)["label"])
        return count / (time.perf_counter() - start)


def _write_images(root: pathlib.Path, count: int) -> None:
    """JPEG files of 500x400 pixels that are about as hard to decode as photographs: waves, edges and some noise."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:400, :500].astype(np.float32)
    for number in range(count):
        place = root / ("val" if number < 4 else "train") / str(number % 2)
        place.mkdir(parents=True, exist_ok=True)
        angle, length = rng.uniform(0, np.pi), rng.uniform(5, 60)
        waves = np.sin((x * np.cos(angle) + y * np.sin(angle)) * 2 * np.pi / length)
        edge = (x * rng.uniform(-1, 1) + y > rng.uniform(100, 400)).astype(np.float32)
        noise = rng.normal(0, 6, (400, 500, 3))
        image = 128 + 50 * waves[..., None] * rng.uniform(0, 1, 3) + 40 * edge[..., None] + noise
        Image.fromarray(np.clip(image, 0, 255).astype(np.uint8)).save(place / f"{number}.jpg", quality=90)
