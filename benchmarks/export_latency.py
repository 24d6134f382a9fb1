"""Latency of an exported child at batch 1 on this machine's CPU: onnxruntime beside JAX and PyTorch.

    python benchmarks/export_latency.py                     # BigNAS's smallest child, random weights
    python benchmarks/export_latency.py --child exp/digits/children/MAX
    python benchmarks/export_latency.py --quick             # a small child, a few seconds

It prints the median and the least milliseconds of one image, and both as multiples of onnxruntime's. All run in this
process, each with its default number of threads. They take turns, so that other work on the machine affects all alike.
If the machine is busy, threads wait for each other and the figures say little: put `taskset -c 0` in front.
"""

import argparse
import importlib.util
import json
import os
import pathlib
import statistics
import sys
import tempfile
import time
from collections.abc import Callable

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bignas_jax.programs import memory  # noqa: E402

memory.keep_freed_memory()
os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # before onnxruntime is loaded

import jax  # noqa: E402
import numpy as np  # noqa: E402
import onnxruntime  # noqa: E402
import torch  # noqa: E402

from bignas_jax.interop.exports import comparing, export  # noqa: E402
from bignas_jax.nets.child import Child, forward, take  # noqa: E402
from bignas_jax.nets.slicing import single  # noqa: E402
from bignas_jax.programs.weights import build  # noqa: E402
from bignas_jax.spaces.mobilenet import SearchSpace  # noqa: E402


def random_child(space: SearchSpace, num_classes: int, arch) -> Child:
    """A child with random weights. The values do not change its time."""
    own = single(space, arch)
    graphdef, params = build(own, num_classes)
    rng = np.random.default_rng(0)
    norms = {name: params[name]["conv_norm"] for name in ("stem", "head")}
    for number, block in params["blocks"].items():
        norms |= {f"block{number}.{name[:-5]}": norm for name, norm in block.items() if name.endswith("_norm")}
    found = {}
    for name, norm in norms.items():
        width = norm["scale"].shape
        norm["scale"] = np.ones(width, np.float32)  # at a scale of zero, whole blocks would have no effect
        found[name] = rng.normal(0, 0.1, width), rng.uniform(0.5, 1.5, width)
    return take(own, params, found, own.biggest)


def write(child: Child, folder: pathlib.Path) -> None:
    """Writes the files of a child into `folder`."""
    about = {"name": "child", "architecture": child.arch.to_dict(), "macs": 0, "params": 0, "step": 0}
    names = [str(number) for number in range(child.num_classes)]
    specification = {"size": {"side": child.arch.resolution}, "class_names": names}
    export.write_child(child, folder, about, specification, export.Form())


def load_module(folder: pathlib.Path):
    """The PyTorch child in `folder`."""
    spec = importlib.util.spec_from_file_location("exported_child", folder / "child.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.load()


def contestants(
    folder: pathlib.Path, child: Child | None, compiled: bool
) -> tuple[dict[str, Callable], np.ndarray]:
    """Functions without arguments, by name, that run one image and wait for the result; and the image [1, 3, R, R]."""
    side = json.loads((folder / "preprocessing.json").read_text())["size"]["side"]
    image = np.random.default_rng(0).standard_normal((1, 3, side, side)).astype(np.float32)
    session = onnxruntime.InferenceSession(folder / "child.onnx", providers=["CPUExecutionProvider"])
    exported = jax.export.deserialize(bytearray((folder / "child.stablehlo").read_bytes()))
    runs = {"ONNX, onnxruntime": lambda: session.run(None, {"images": image})[0]}

    pixels = jax.device_put(image.transpose(0, 2, 3, 1), jax.devices("cpu")[0])
    functions = {"StableHLO, jax.export": exported.call}
    if child is not None:
        functions["JAX, the child itself, batch norm kept"] = forward(child)
    for name, function in functions.items():
        jitted = jax.jit(function)
        runs[name] = lambda jitted=jitted: np.asarray(jitted(pixels))

    torch.set_grad_enabled(False)
    model, tensor = load_module(folder), torch.from_numpy(image)
    runs["PyTorch"] = lambda: model(tensor).numpy()
    last, tensor_last = (a.to(memory_format=torch.channels_last) for a in (load_module(folder), tensor))
    runs["PyTorch, channels last"] = lambda: last(tensor_last).numpy()
    if compiled:
        fast = torch.compile(load_module(folder))
        runs["PyTorch, torch.compile"] = lambda: fast(tensor).numpy()
    return runs, image


def measure(runs: dict[str, Callable], rounds: int, calls: int) -> dict[str, tuple[float, float]]:
    """Median and least milliseconds of a call, over `rounds` turns of `calls` calls each."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            run()  # fills the caches with its own data again
            for _ in range(calls):
                start = time.perf_counter()
                run()
                times[name].append(1e3 * (time.perf_counter() - start))
    return {name: (statistics.median(values), min(values)) for name, values in times.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--child", type=pathlib.Path, help="a folder that export.py wrote, in all formats")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--calls", type=int, default=10)
    parser.add_argument("--compile", action="store_true", help="torch.compile too (needs a C++ compiler)")
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    rounds, calls = (3, 3) if arguments.quick else (arguments.rounds, arguments.calls)
    with tempfile.TemporaryDirectory() as scratch:
        folder, child = arguments.child, None
        if folder is None:
            from configs import bignas, digits

            space = SearchSpace.from_config((digits if arguments.quick else bignas).get_config().space)
            folder, child = pathlib.Path(scratch), random_child(space, 1000, space.smallest)
            write(child, folder)
        runs, image = contestants(folder, child, arguments.compile)
        logits = {name: run() for name, run in runs.items()}
        first = next(iter(logits.values()))
        for name, found in logits.items():
            if not comparing.compare(found, first)["difference"] < comparing.LIMIT:
                raise SystemExit(f"{name} computes something else than onnxruntime: {comparing.compare(found, first)}")
        found = measure(runs, rounds, calls)
    base = next(iter(found.values()))
    print(f"one image of {image.shape[-1]} pixels, {rounds} x {calls} calls, {torch.get_num_threads()} threads")
    print(f"{'':<42}{'median':>11}{'ratio':>8}{'least':>11}{'ratio':>8}")
    for name, values in found.items():
        columns = (f"{ms:>8.2f} ms{f'x{ms / own:.2f}':>8}" for ms, own in zip(values, base, strict=True))
        print(f"{name:<42}{''.join(columns)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
