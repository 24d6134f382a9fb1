"""The costs of elasticity: arithmetic, executables, compiles, and the time of a member in a shared executable.

    python benchmarks/elasticity.py [--batch 8] [--resolution 96] [--members 5] [--rounds 9] [--dtype float32]
        [--quick] [--json FILE]

- Multiply-adds of the forward passes of 1,000 sampled sandwich steps, as their executables run them, over the
  multiply-adds of the architectures alone. The spaces are those of configs/bignas.py, configs/attentive_nas.py and the
  four of Once-for-All (configs/ofa_*.py). `Bucket.executed` counts XLA's own operations, and the tests compare it with
  the traced programs. Native kernels on a CPU run fewer.
- The number of executables that a space's step needs, and the compiles of JAX in steps after the first, of
  configs/digits.py and of Once-for-All's three families at the size of CIFAR-10 (`--quick`: of digits alone).
- The time of a random member's forward and backward pass in the shared executable ("masked"), over its time in an
  executable of its own ("sliced"). Both run in turns. The figure is the median of the members' ratios of medians, on
  the full space of configs/bignas.py at one resolution; `--quick` takes configs/digits.py.
"""

import argparse
import dataclasses
import pathlib
import statistics
import sys
import time
from unittest import mock

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from bignas_jax.programs import memory  # noqa: E402

memory.keep_freed_memory()

import jax  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402
from flax import nnx  # noqa: E402
from report import Result, write  # noqa: E402

from bignas_jax.nets.sizes import sizes  # noqa: E402
from bignas_jax.nets.supernet import Supernet  # noqa: E402
from bignas_jax.programs.buckets import Bucket, shared  # noqa: E402
from bignas_jax.programs.compile import compile_ahead  # noqa: E402
from bignas_jax.programs.devices import REPLICATED, batch_sharding, make_mesh, replicate, shapes  # noqa: E402
from bignas_jax.programs.kept import use_compilation_cache  # noqa: E402
from bignas_jax.programs.weights import build  # noqa: E402
from bignas_jax.spaces.architecture import Architecture  # noqa: E402
from bignas_jax.spaces.cost import count  # noqa: E402
from bignas_jax.spaces.registry import load_space  # noqa: E402
from bignas_jax.spaces.space import Space  # noqa: E402
from bignas_jax.step import train_step as sandwich  # noqa: E402
from bignas_jax.step.members.protocol import Member, Part, Target  # noqa: E402
from bignas_jax.step.members.registry import make_members  # noqa: E402
from bignas_jax.step.recipe import Recipe  # noqa: E402
from bignas_jax.step.state import TrainState  # noqa: E402
from bignas_jax.step.train_step import TrainStep  # noqa: E402
from configs import (  # noqa: E402
    attentive_nas,
    bignas,
    digits,
    ofa_mbv3,
    ofa_mbv3_cifar10,
    ofa_mbv3_w12,
    ofa_proxyless,
    ofa_proxyless_cifar10,
    ofa_resnet50,
    ofa_resnet_cifar10,
)

CLASSES = 1000
SPACES = {
    "BigNAS": bignas, "AttentiveNAS": attentive_nas, "OFA MobileNetV3": ofa_mbv3, "OFA MobileNetV3 w1.2": ofa_mbv3_w12,
    "OFA ProxylessNAS": ofa_proxyless, "OFA ResNet50": ofa_resnet50,
}  # fmt: skip
STEPPED = {"": digits, ", OFA MobileNetV3": ofa_mbv3_cifar10, ", OFA ProxylessNAS": ofa_proxyless_cifar10,
           ", OFA ResNet50": ofa_resnet_cifar10}  # fmt: skip
MOST_MACS, MOST_EXECUTABLES, MOST_TIME = 1.10, 12, 1.25


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=8, help="images of the timed passes")
    parser.add_argument("--resolution", type=int, default=96, help="of the timed members")
    parser.add_argument("--members", type=int, default=5, help="timed members, each of which compiles a program")
    parser.add_argument("--rounds", type=int, default=9, help="timed passes a member and side")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--json", help="file to write the results to")
    parser.add_argument("--quick", action="store_true", help="100 steps, and the time of 2 members of a small space")
    return parser.parse_args(argv)


def space_of(recipe) -> Space:
    """The search space of a recipe."""
    return load_space(recipe.get_config())


def macs_ratio(space: Space, steps: int) -> float:
    """Multiply-adds that the executables of `steps` steps run, over the multiply-adds of exact slicing."""
    run = exact = 0
    for step in range(steps):
        first, *drawn, last = make_members(space, Recipe()).architectures(step)
        buckets = [Bucket(first, False), *(shared(space, arch.resolution) for arch in drawn), Bucket(last, False)]
        for arch, bucket in zip((first, *drawn, last), buckets, strict=True):
            run += bucket.executed(space, arch, CLASSES)
            exact += count(space, arch, CLASSES).macs
    return run / exact


def num_executables(space: Space) -> int:
    """How many programs `TrainStep.compile` asks for. None of them is traced here."""
    graphdef, state = nnx.split(nnx.eval_shape(lambda: Supernet(space, CLASSES, rngs=nnx.Rngs(0))))
    params, zero = nnx.to_pure_dict(state), np.int32(0)
    optimizer = optax.sgd(0.1, momentum=0.9)
    state = TrainState(params, jax.eval_shape(optimizer.init, params), None, zero, zero, zero)
    side = space.resolution[-1]
    batch = {"image": np.zeros((8, side, side, 3), np.uint8), "label": np.zeros(8, np.int32)}
    made = TrainStep(space, graphdef, Recipe(), optimizer, make_mesh(1, {}))
    with mock.patch.object(sandwich, "compile_ahead", lambda jobs, *_: dict.fromkeys(jobs)):
        made.compile(state, batch, progress=False)
    return len(made.executables)


def some_batch(mesh, images: int, side: int) -> dict[str, jax.Array]:
    """A random batch on the devices of `mesh`."""
    rng = np.random.default_rng(0)
    batch = {"image": rng.integers(0, 256, (images, side, side, 3), np.uint8),
             "label": rng.integers(0, 10, images).astype(np.int32)}  # fmt: skip
    return jax.device_put(batch, batch_sharding(mesh))


def compiles_after_warmup(space: Space, steps: int) -> int:
    """How often JAX compiles in `steps` sandwich steps after the first one. Each step has other random members."""
    mesh = make_mesh(0, {})
    graphdef, params = build(space, 10)
    made = TrainStep(space, graphdef, Recipe(num_random=4), optax.sgd(0.01), mesh)
    state, batch = made.init(jax.device_get(params)), some_batch(mesh, 4 * mesh.size, space.resolution[-1])
    made.compile(state, batch, progress=False)
    state, _ = made(state, batch, 0)
    found = []

    def listen(event: str, duration: float, **_) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            found.append(duration)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        for step in range(1, steps + 1):
            state, metrics = made(state, batch, step)
        jax.block_until_ready(metrics)
        seen = len(found)
        jax.jit(lambda x: x - 1.25)(np.float32(steps))  # a compile that the listener must notice
        if len(found) == seen:
            raise SystemExit("JAX reports no compiles here: expected one event for one program")
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    return seen


class Timed:
    """The forward and backward pass of members on a batch, masked and sliced."""

    def __init__(self, space: Space, archs: list[Architecture], batch: int, dtype: str):
        self.space = space
        resolution, mesh = archs[0].resolution, make_mesh(1, {})
        graphdef, params = build(space, CLASSES, dtype=dtype)
        self.made = TrainStep(space, graphdef, Recipe(), optax.sgd(0.01), mesh)
        self.params = replicate(mesh, jax.device_get(params))
        self.batch = some_batch(mesh, batch, resolution)
        self.teacher = jax.device_put(np.zeros((batch, CLASSES), np.float32), batch_sharding(mesh))
        self.total = jax.tree.map(lambda a: np.zeros((1, *a.shape), np.float32), params)
        self.total = jax.device_put(self.total, batch_sharding(mesh))
        buckets = [shared(space, resolution), *(Bucket(arch, masked=False) for arch in archs)]
        parts = [Part(bucket, Target.TEACHER) for bucket in buckets]
        jobs = {part: lambda part=part: self._lower(part) for part in parts}
        self.made.executables = compile_ahead(jobs, "compile members")

    def _lower(self, part: Part):
        bucket = part.bucket
        whole, split = (jax.sharding.NamedSharding(self.made.mesh, REPLICATED), batch_sharding(self.made.mesh))
        sampled = shapes(sizes(self.space, bucket.arch, bucket.arch), whole) if bucket.masked else None
        image, label, teacher = shapes((self.batch["image"], self.batch["label"], self.teacher), split)
        program = self.made._gradient(part)
        params, total = shapes(self.params, whole), shapes(self.total, split)
        return program.lower(params, image, label, None, teacher, sampled, total, None, None, None)

    def seconds(self, arch: Architecture, sliced: bool) -> float:
        """The seconds of a member's forward and backward pass."""
        start = time.perf_counter()
        bucket = Bucket(arch, masked=False) if sliced else shared(self.space, arch.resolution)
        member = Member(arch, Part(bucket, Target.TEACHER))
        self.total, *_ = self.made.learn(self.params, self.batch, member, 0, self.teacher, self.total)
        jax.block_until_ready(self.total)
        return time.perf_counter() - start


def time_ratios(space: Space, resolution: int, args: argparse.Namespace) -> list[float]:
    """The time masked over the time sliced, for each of some random members."""
    space, rng = dataclasses.replace(space, resolution=(resolution,)), np.random.default_rng(0)
    archs = [space.sample(rng) for _ in range(args.members)]
    timed, ratios = Timed(space, archs, args.batch, args.dtype), []
    for arch in archs:
        rounds = [(timed.seconds(arch, False), timed.seconds(arch, True)) for _ in range(args.rounds + 2)][2:]
        masked, sliced = (statistics.median(side) for side in zip(*rounds, strict=True))
        ratios.append(masked / sliced)
        extra = shared(space, resolution).executed(space, arch, CLASSES) / count(space, arch, CLASSES).macs
        print(f"depth {arch.depth}, kernels {arch.kernel_size}: masked {1000 * masked:.1f} ms, sliced "
              f"{1000 * sliced:.1f} ms, {masked / sliced:.3f} times; multiply-adds {extra:.3f} times")  # fmt: skip
    return ratios


def main(argv: list[str] | None = None) -> None:
    args = arguments(argv)
    use_compilation_cache()
    results = []
    for name, recipe in SPACES.items():
        space = space_of(recipe)
        ratio = macs_ratio(space, 100 if args.quick else 1000)
        results.append(Result(f"multiply-adds over exact slicing, {name}", ratio, "x", MOST_MACS, "lower"))
        results.append(Result(f"executables, {name}", num_executables(space), "", MOST_EXECUTABLES, "lower"))
    for name, recipe in list(STEPPED.items())[: 1 if args.quick else None]:
        compiles = compiles_after_warmup(space_of(recipe), 3 if args.quick else 20)
        results.append(Result(f"compiles after warm-up{name}", compiles, "", 0, "lower"))
    small = space_of(digits)
    if args.quick:
        args.members, args.rounds = 2, 3
        ratios = time_ratios(small, small.resolution[-1], args)
    else:
        ratios = time_ratios(space_of(bignas), args.resolution, args)
    title = "time masked over sliced, median of members"
    results.append(Result(title, statistics.median(ratios), "x", MOST_TIME, "lower"))
    results.append(Result("time masked over sliced, worst member", max(ratios), "x", None, "lower"))
    write("elasticity", results, args.quick, args.json)


if __name__ == "__main__":
    main()
