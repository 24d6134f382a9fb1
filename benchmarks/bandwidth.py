"""Measures the ceilings of this device, and how near the sandwich step comes to them.

    python benchmarks/bandwidth.py [--megabytes 2048] [--side 8192] [--step FILE] [--dtype bfloat16] [--quick]
        [--json FILE]

Copy bandwidth counts a read and a write of every byte. Arithmetic is a square matrix product in float32, TF32 (on GPUs)
and bfloat16, with two operations a multiply-add. FILE comes from `benchmarks/step.py --json FILE` on the same device.
Its rates of arithmetic and of memory traffic are compared with the ceilings. The arithmetic is that of the
architectures, as bignas_jax/spaces/cost.py counts it, with the backward pass twice the forward pass. The traffic is
XLA's count for its executables. XLA always counts the heavier branch of a conditional, so that a skipped block counts
in full. It does not count custom calls (the native kernels of CPUs, Pallas). So the count may be above or below the
real traffic.
"""

import argparse
import json
import pathlib
import statistics
import sys
import time
from collections.abc import Callable, Sequence

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from bignas_jax.programs import memory  # noqa: E402

memory.keep_freed_memory()

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
from report import Result, write  # noqa: E402

COPY = "copy bandwidth"
# Results of benchmarks/step.py.
ARITHMETIC = "step: rate of arithmetic"
TRAFFIC = "step: memory traffic by XLA's count (a conditional's heavier branch always, native kernels never)"
# bfloat16 and TF32 are dtypes of products. TF32 products take and give float32.
PRODUCTS = {"float32": ("float32", "highest"), "TF32": ("float32", "tensorfloat32"), "bfloat16": ("bfloat16", None)}


def best_seconds(call: Callable[[], jax.Array], rounds: int, calls: int) -> float:
    """Seconds of a call, timed in rows of `calls`: the median of the faster half of the rounds, to find a ceiling."""
    call().block_until_ready()
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        for _ in range(calls):
            result = call()
        result.block_until_ready()
        times.append((time.perf_counter() - start) / calls)
    return statistics.median(sorted(times)[: (rounds + 1) // 2])


def copy_bandwidth(megabytes: int, rounds: int, calls: int) -> Result:
    """The rate of reading and writing memory, in GB/s."""
    holder = [jnp.zeros(megabytes * 2**20 // 4, jnp.float32)]
    size = holder[0].nbytes
    # The compiler may drop a plain copy, or another engine may do it. With the buffer donated, no page is new to the
    # process.
    add = jax.jit(lambda x: x + 1, donate_argnums=0)

    def call() -> jax.Array:
        holder[0] = add(holder[0])
        return holder[0]

    return Result(COPY, 2 * size / best_seconds(call, rounds, calls) / 1e9, "GB/s", shown=True)


def product_rates(side: int, rounds: int, calls: int) -> list[Result]:
    """The rates of square matrix products with `side` rows, in TFLOP/s."""
    found = []
    for name, (dtype, precision) in PRODUCTS.items():
        if name == "TF32" and jax.default_backend() == "cpu":
            continue
        a = jax.random.normal(jax.random.key(0), (side, side), dtype)
        product = jax.jit(lambda a, b, precision=precision: jnp.matmul(a, b, precision=precision))
        seconds = best_seconds(lambda a=a, product=product: product(a, a), rounds, calls)
        found.append(Result(f"matrix product in {name}", 2 * side**3 / seconds / 1e12, "TFLOP/s", shown=True))
    return found


def over_ceilings(step: Sequence[dict], ceilings: Sequence[Result], dtype: str) -> list[Result]:
    """The rates in the step's results, as fractions of these ceilings. Arithmetic takes the ceiling of `dtype`.

    Raises:
      SystemExit: the step's file has no such rates, or another unit.
    """
    by_name = {ceiling.name: ceiling for ceiling in ceilings}
    rates = {row["name"]: row for row in step}
    found = []
    for name, ceiling in ((ARITHMETIC, f"matrix product in {dtype}"), (TRAFFIC, COPY)):
        row, top = rates.get(name), by_name[ceiling]
        if row is None or row["unit"] != top.unit:
            there = "no such figure" if row is None else row["unit"]
            raise SystemExit(f"--step: found {there} for {name!r}, expected {top.unit}: run benchmarks/step.py again")
        found.append(Result(f"{name} over {ceiling}", row["value"] / top.value, "x", shown=True))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    on_cpu = jax.default_backend() == "cpu"
    parser.add_argument("--megabytes", type=int, default=256 if on_cpu else 2048, help="of the array that is copied")
    parser.add_argument("--side", type=int, default=2048 if on_cpu else 8192, help="of the matrices")
    parser.add_argument("--step", type=pathlib.Path, metavar="FILE", help="what benchmarks/step.py wrote here")
    parser.add_argument("--dtype", choices=tuple(PRODUCTS), default="float32" if on_cpu else "bfloat16",
                        help="of the step's products")
    parser.add_argument("--json", help="file to write the results to")
    parser.add_argument("--quick", action="store_true", help="16 MB, side 256, 3 rounds")
    args = parser.parse_args()
    step = json.loads(args.step.read_text())["results"] if args.step else None
    rounds, calls = (3 if args.quick else 10), (1 if on_cpu else 10)
    if args.quick:
        args.megabytes, args.side = 16, 256
    results = [copy_bandwidth(args.megabytes, rounds, calls), *product_rates(args.side, rounds, calls)]
    if step is not None:
        results += over_ceilings(step, results, args.dtype)
    print(jax.devices()[0].device_kind)
    write("bandwidth", results, args.quick, args.json)


if __name__ == "__main__":
    main()
