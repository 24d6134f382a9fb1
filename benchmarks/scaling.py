"""The traffic of a sandwich step between devices, read from its compiled programs, and a model of many devices.

    python benchmarks/scaling.py [--step FILE | --counted FILE | --compute-ms 300] [--quick] [--json FILE]

It reads the compiled HLO of all executables of a step on 8 virtual CPU devices. There must be one all-reduce, of the
gradients (parameters x 4 bytes) and the members' loss and accuracy (8 bytes each), and no other collective. With
synchronised batch norm there must be more. Otherwise it fails. The programs are those of configs/digits.py, because the
full space of configs/bignas.py would compile for minutes on 8 virtual devices. The model takes the parameters of the
full space.

The model: step = compute + all-reduce. Nothing overlaps, because the reduction comes after the last member's gradient.
A ring all-reduce of S bytes over n links of bandwidth b and latency a takes 2 (n - 1) hops of S / n / b + a (Patarasu
and Yuan, 2009). With several hosts, each GPU then reduces its eighth with its peers on the other hosts, by its own
network card. Links, one direction a GPU: NVLink of an H100 450 GB/s (NVIDIA's data sheet: 900 GB/s both ways),
InfiniBand NDR 50 GB/s, Ethernet 12.5 GB/s (100 Gbit/s). Latencies of a hop are assumed, near the values in NCCL's own
cost model of a ring: NVLink 3.4 us, network 14 us. For Ethernet without RDMA, 14 us is a lower bound. Compute is
measured, if FILE comes from `benchmarks/step.py --json FILE` on a GPU. It is counted, if FILE comes from
`benchmarks/gpu_programs.py --json FILE`: the bytes of a step over the card's bandwidth. That is the least time of a
step, and so the efficiency is the least, too. Without FILE or --compute-ms, there is no model.
"""

import argparse
import json
import os
import pathlib
import re
import sys

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
os.environ["JAX_PLATFORMS"] = "cpu"

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from bignas_jax.programs import memory  # noqa: E402

memory.keep_freed_memory()

import jax  # noqa: E402
import numpy as np  # noqa: E402
from flax import nnx  # noqa: E402
from report import Result, write  # noqa: E402

from bignas_jax.config.options import Options  # noqa: E402
from bignas_jax.nets.supernet import Supernet  # noqa: E402
from bignas_jax.programs.devices import batch_sharding, make_mesh  # noqa: E402
from bignas_jax.programs.kept import use_compilation_cache  # noqa: E402
from bignas_jax.programs.weights import build  # noqa: E402
from bignas_jax.spaces import cost  # noqa: E402
from bignas_jax.spaces.mobilenet import SearchSpace  # noqa: E402
from bignas_jax.step.members.registry import make_members  # noqa: E402
from bignas_jax.step.optimizer import optimizer, schedule  # noqa: E402
from bignas_jax.step.recipe import Recipe  # noqa: E402
from bignas_jax.step.train_step import TrainStep  # noqa: E402
from configs import bignas, digits  # noqa: E402

COLLECTIVE = re.compile(r"= (\(?[^=]*?\)?) (all-reduce|all-gather|reduce-scatter|ragged-all-to-all|all-to-all|"
                        r"collective-permute|collective-broadcast)(?:-start)?\(")
ARRAY = re.compile(r"\b(f32|f64|bf16|f16|s32|u32|pred)\[([\d,]*)\]")
BYTES = {"f64": 8, "f32": 4, "s32": 4, "u32": 4, "bf16": 2, "f16": 2, "pred": 1}
NVLINK, INFINIBAND, ETHERNET = 450e9, 50e9, 12.5e9  # bytes a second of one GPU, in one direction
NVLINK_HOP, NETWORK_HOP = 3.4e-6, 14e-6  # seconds
GPUS = 8  # of a host
STEP = "step: images a second"  # a result of benchmarks/step.py


def collectives(hlo: str) -> list[tuple[str, int]]:
    """(operation, bytes of its result) of every collective in the text of a compiled program."""
    found = []
    for shapes, operation in COLLECTIVE.findall(hlo):
        size = 0
        for dtype, dims in ARRAY.findall(shapes):
            size += BYTES[dtype] * int(np.prod([int(d) for d in dims.split(",") if d], dtype=np.int64))
        found.append((operation, size))
    return found


def ring_seconds(size: float, devices: int, bandwidth: float, hop: float = 0.0) -> float:
    """Seconds of a ring all-reduce of `size` bytes: 2 (n - 1) hops. In each, every device sends an n-th of them."""
    return 2 * (devices - 1) * (size / devices / bandwidth + hop)


def reduce_seconds(size: float, hosts: int, network: float) -> float:
    """Seconds of an all-reduce inside the hosts first; then each GPU reduces its eighth with peers on other hosts."""
    inside = ring_seconds(size, GPUS, NVLINK, NVLINK_HOP)
    return inside + (ring_seconds(size / GPUS, hosts, network, NETWORK_HOP) if hosts > 1 else 0)


def compiled_step(synchronised: bool):
    """The sandwich of configs/digits.py at two resolutions, compiled for 8 devices, and how many parameters and members
    it has."""
    config = digits.get_config()
    config.space.resolution = config.space.resolution[:2]
    space = SearchSpace.from_config(config.space)
    config.model.sync_batch_norm = synchronised
    options = Options.of(config)
    graphdef, params = build(space, config.model.num_classes)
    mesh = make_mesh(8, {})
    rate = schedule(options.optimizer, 100, 1)
    recipe = Recipe.of(options)
    sandwich = TrainStep(space, graphdef, recipe, optimizer(options.optimizer, rate), mesh, rate)
    state = sandwich.init(params)
    side = config.data.image_size
    images = {"image": np.zeros((16, side, side, 3), np.uint8), "label": np.zeros(16, np.int32)}
    batch = jax.device_put(images, batch_sharding(mesh))
    sandwich.compile(state, batch, progress=False)
    return sandwich, sum(p.size for p in jax.tree.leaves(params)), len(make_members(space, recipe).names)


def sent(sandwich: TrainStep) -> list[tuple[str, int]]:
    """The collectives of one step. Each shared executable counts once, though a step may run it twice or not at all."""
    return [c for executable in sandwich.executables.values() for c in collectives(executable.as_text())]


def check(found, with_sync, parameters: int, members: int) -> None:
    """Exits with a message if the collectives are not as expected."""
    expected = 4 * parameters + 8 * members
    if found != [("all-reduce", expected)]:
        raise SystemExit(f"found {found} in a step, expected one all-reduce of {expected} bytes and nothing else")
    if len(with_sync) <= len(found):
        raise SystemExit("found no collective of synchronised batch norm where it is on")


def model(compute_ms: float, parameters: int) -> list[Result]:
    """Step time and scaling efficiency on 8 GPUs and on 64 hosts of 8."""
    size, results = 4 * parameters, []
    for name, hosts, network in (("8 GPUs, NVLink", 1, NVLINK), ("64 hosts of 8, InfiniBand", 64, INFINIBAND),
                                 ("64 hosts of 8, Ethernet", 64, ETHERNET)):
        reduce_ms = 1000 * reduce_seconds(size, hosts, network)
        print(f"{name}: {compute_ms:.1f} ms of compute + {reduce_ms:.2f} ms of all-reduce ({size / 1e6:.1f} MB)")
        results.append(Result(f"model, {name}: efficiency", compute_ms / (compute_ms + reduce_ms), "x"))
    return results


def compute_ms_of(path: pathlib.Path, batch: int) -> float:
    """Milliseconds of our step, computed from its batch and the images a second that benchmarks/step.py wrote.

    Raises:
      SystemExit: the file has no such figure.
    """
    rates = {row["name"]: row["value"] for row in json.loads(path.read_text())["results"]}
    if STEP not in rates:
        raise SystemExit(f"--step {path}: found no {STEP!r}, expected what benchmarks/step.py writes")
    return 1000 * batch / rates[STEP]


def counted_ms_of(path: pathlib.Path) -> float:
    """The least milliseconds of our step on one card, by the bytes that benchmarks/gpu_programs.py counted.

    Raises:
      SystemExit: the file does not hold a whole step.
    """
    found = json.loads(path.read_text())
    if "step" not in found.get("parts", {}):
        raise SystemExit(f"--counted {path}: found no whole step, expected what benchmarks/gpu_programs.py writes")
    return 1000 * found["parts"]["step"] / found["bandwidth"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--step", type=pathlib.Path, metavar="FILE", help="what benchmarks/step.py wrote on a GPU")
    parser.add_argument("--batch", type=int, default=80, help="images of that step")
    parser.add_argument("--counted", type=pathlib.Path, metavar="FILE", help="what benchmarks/gpu_programs.py wrote")
    parser.add_argument("--compute-ms", type=float, help="a step on one GPU, in the place of --step")
    parser.add_argument("--json", help="file to write the results to")
    parser.add_argument("--quick", action="store_true", help="the same: it takes well under a minute")
    args = parser.parse_args()
    use_compilation_cache()
    compute = compute_ms_of(args.step, args.batch) if args.step else args.compute_ms
    if args.counted:
        compute = counted_ms_of(args.counted)
        print(f"a step takes at least {compute:.1f} ms: its bytes over the card's bandwidth")
    sandwich, parameters, members = compiled_step(synchronised=False)
    found, with_sync = sent(sandwich), sent(compiled_step(synchronised=True)[0])
    check(found, with_sync, parameters, members)
    print(f"one all-reduce of {found[0][1]} bytes: {parameters} parameters x 4, and 8 for each of {members} members;"
          f" {len(with_sync)} collectives with synchronised batch norm")
    results = [Result("collectives a step", len(found), "", 1, "lower"),
               Result("bytes of it over parameters x 4", found[0][1] / (4 * parameters), "x", 1.01, "lower")]
    if compute is None:
        print("no model of the step on many GPUs: it needs the step of one (--step, --counted or --compute-ms)")
    else:
        config = bignas.get_config()
        space = SearchSpace.from_config(config.space)
        full = build_size(space, config.model.num_classes)
        child = cost.count(space, space.biggest, config.model.num_classes).params
        print(f"model for the {full / 1e6:.1f} M parameters of BigNAS's supernet,"
              f" of which the biggest child has {child / 1e6:.1f} M")
        results += model(compute, full)
    write("scaling", results, args.quick, args.json)


def build_size(space: SearchSpace, num_classes: int) -> int:
    """How many numbers the supernet's weights have. No weights are drawn."""
    state = nnx.split(nnx.eval_shape(lambda: Supernet(space, num_classes, rngs=nnx.Rngs(0))))[1]
    return sum(int(np.prod(p.shape)) for p in jax.tree.leaves(state))


if __name__ == "__main__":
    main()
