"""How long a depthwise convolution takes by ours, by XLA's grouped convolution and by PyTorch: checked, then timed.

The benchmark that uses it is depthwise.py, whose settings must come first: it sets the import path and the memory.
"""

import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import torch
import torch.nn.functional as F
from peer import torch_device

from bignas_jax.kernels.depthwise import pallas as depthwise_pallas
from bignas_jax.kernels.depthwise.choice import IMPLEMENTATIONS, depthwise_conv, using
from bignas_jax.programs.compile import compile_ahead

PARTS = ("forward", "gradient")
DIRECTIONS = ("forward", "input_gradient", "kernel_gradient")
TOLERANCE = {"float32": 1e-4, "bfloat16": 4e-2}
# A sample on a GPU repeats a computation until it has moved this many bytes (some milliseconds), within these limits.
SAMPLE_BYTES, REPEATS = 4e9, (5, 200)

Sides = dict[str, Callable[[], object]]  # from a name to a call that returns when its result is ready


@dataclasses.dataclass(frozen=True)
class Case:
    """A depthwise convolution: side and channels of its input, kernel size, stride, and number of blocks of MAX."""

    space: str
    side: int
    channels: int
    size: int
    stride: int
    count: int = 1

    @property
    def shape(self) -> tuple[int, ...]:
        """Everything that decides the computation. The space is left out."""
        return self.side, self.channels, self.size, self.stride

    @property
    def macs(self) -> int:
        """Multiply-adds for one image."""
        return math.ceil(self.side / self.stride) ** 2 * self.channels * self.size**2

    def __str__(self) -> str:
        return f"{self.space} {self.side}x{self.side}x{self.channels}, {self.size}x{self.size} / {self.stride}"


@dataclasses.dataclass(frozen=True)
class Operands:
    """float32 operands: x [B, H, W, C], kernel [k, k, C] and g, the output's gradient. On the host, or on the GPU."""

    x: np.ndarray | jax.Array
    kernel: np.ndarray | jax.Array
    g: np.ndarray | jax.Array

    @classmethod
    def draw(cls, case: Case, batch: int) -> "Operands":
        """Random operands of a case."""
        out = math.ceil(case.side / case.stride)
        shapes = (batch, case.side, case.side), (case.size, case.size), (batch, out, out)
        if jax.default_backend() != "cpu":
            keys = jax.random.split(jax.random.key(0), 3)
            draw = jax.jit(jax.random.normal, static_argnums=1)
            return cls(*(draw(key, (*shape, case.channels)) for key, shape in zip(keys, shapes, strict=True)))
        rng = np.random.default_rng(0)
        return cls(*(rng.standard_normal((*shape, case.channels), np.float32) for shape in shapes))


def jax_functions(operands: Operands, stride: int, dtype: str) -> dict[str, Callable[[], object]]:
    """The forward pass and both gradients as compiled calls. The surrounding context chooses the implementation."""
    x, g = jnp.asarray(operands.x, dtype), jnp.asarray(operands.g, dtype)
    kernel = jnp.asarray(operands.kernel)
    conv = lambda x, kernel: depthwise_conv(x, kernel, stride)  # noqa: E731
    forward, gradient = jax.jit(conv), jax.jit(lambda x, kernel, g: jax.vjp(conv, x, kernel)[1](g))
    return {
        "forward": partial(forward.lower(x, kernel).compile(), x, kernel),
        "gradient": partial(gradient.lower(x, kernel, g).compile(), x, kernel, g),
    }


def torch_functions(operands: Operands, stride: int, dtype: str) -> dict[str, Callable[[], object]]:
    """The same in PyTorch. Arrays in NHWC already have the memory layout of its channels_last."""
    device = torch_device()
    if device == "cuda":  # in the same memory as JAX's arrays
        x, g, kernel = (torch.from_dlpack(a) for a in (operands.x, operands.g, operands.kernel))
    else:
        x, g, kernel = (torch.tensor(a) for a in (operands.x, operands.g, operands.kernel))
    x, g = (a.to(getattr(torch, dtype)).permute(0, 3, 1, 2) for a in (x, g))
    kernel = kernel.permute(2, 0, 1)[:, None].to(x.dtype).contiguous(memory_format=torch.channels_last)
    size, _, channels = operands.kernel.shape
    if device == "cuda":
        # Called directly: autograd would run on the stream of the forward pass, which the graph does not capture.
        arguments = [stride] * 2, [size // 2] * 2, [1, 1], False, [0, 0], channels
        backward = torch.ops.aten.convolution_backward
        return {
            "forward": lambda: F.conv2d(x, kernel, None, stride, size // 2, groups=channels),
            "gradient": lambda: backward(g, x, kernel, None, *arguments, [True, True, False])[:2],
        }
    x.requires_grad_(), kernel.requires_grad_()
    conv = partial(F.conv2d, x, kernel, None, stride, size // 2, groups=channels)
    y = conv()

    def forward():
        with torch.no_grad():
            return conv()

    return {"forward": forward, "gradient": lambda: torch.autograd.grad(y, (x, kernel), g, retain_graph=True)}


def repeats_of(case: Case, batch: int) -> int:
    """How often a sample on a GPU repeats this case. With few repetitions of a small case, launches would dominate."""
    numbers = batch * case.channels * (case.side**2 + math.ceil(case.side / case.stride) ** 2)
    return int(min(REPEATS[1], max(REPEATS[0], SAMPLE_BYTES / (2 * numbers))))


def repeated(run: Callable, repeats: int) -> Callable:
    """A function that computes `run` `repeats` times, one after the other, and returns the last result."""
    if repeats == 1:
        return run

    def body(_, carry):
        arrays, result = jax.lax.optimization_barrier(carry)  # operands wait until the previous result is ready
        return arrays, run(*arrays)

    def loop(*arrays):
        result = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), jax.eval_shape(run, *arrays))
        return jax.lax.fori_loop(0, repeats, body, (arrays, result))[1]

    return loop


def torch_repeated(call: Callable[[], object], repeats: int) -> Callable[[], object]:
    """A call that makes `call` `repeats` times: on a GPU as one CUDA graph, because PyTorch's launches take longer."""
    if not torch.cuda.is_available():
        return lambda: [call() for _ in range(repeats)][-1]
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # cuDNN searches now, not while a graph is captured
        for _ in range(3):
            call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(repeats):
            call()
    return graph.replay


def check(ours, theirs, name: str, dtype: str) -> None:
    """Compares the forward pass and the gradients of one side with PyTorch's.

    Raises:
      SystemExit: they differ.
    """
    dx, d_kernel = theirs["gradient"]()
    expected = [theirs["forward"]().permute(0, 2, 3, 1), dx.permute(0, 2, 3, 1), d_kernel[:, 0].permute(1, 2, 0)]
    for found, value in zip((ours["forward"](), *ours["gradient"]()), expected, strict=True):
        value = value.detach().float().cpu().numpy()
        difference = np.abs(np.asarray(found, np.float32) - value).max() / np.abs(value).max()
        if not difference < TOLERANCE[dtype]:
            raise SystemExit(f"{name}: found a difference to PyTorch of {difference:.1e}, "
                             f"expected less than {TOLERANCE[dtype]:g}: nothing was timed")


def medians(sides: Sides, rounds: int, repeats: int = 1) -> dict[str, float]:
    """Milliseconds of each side's computation. A call makes it `repeats` times, and the sides take turns."""
    samples: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(-1, rounds):  # one round to warm up
        for name, call in sides.items():
            start = time.perf_counter()
            jax.block_until_ready(call())
            if name == "torch" and torch.cuda.is_available():
                torch.cuda.synchronize()
            if number >= 0:
                samples[name].append(1000 * (time.perf_counter() - start) / repeats)
    return {name: statistics.median(values) for name, values in samples.items()}


def compare(case: Case, batch: int, dtype: str, rounds: int) -> dict[str, dict[str, float]]:
    """Milliseconds of ours, XLA's and PyTorch's, by part."""
    operands = Operands.draw(case, batch)
    sides = {"ours": jax_functions(operands, case.stride, dtype)}
    with using("grouped"):
        sides["xla"] = jax_functions(operands, case.stride, dtype)
    sides["torch"] = torch_functions(operands, case.stride, dtype)
    for name in ("ours", "xla"):
        check(sides[name], sides["torch"], f"{case}, {name}", dtype)
    return {part: medians({name: functions[part] for name, functions in sides.items()}, rounds) for part in PARTS}


def measure(
    case: Case, batch: int, dtype: str, rounds: int, names: Sequence[str], repeats: int = 1
) -> tuple[list[dict], dict[str, dict[str, float]]]:
    """Milliseconds of each direction, by every named implementation that runs here and by PyTorch.

    Returns:
      An entry of the table for each direction, and the times as `compare` gives them, with the fastest as ours.
    """
    operands = Operands.draw(case, batch)
    x, g = jnp.asarray(operands.x, dtype), jnp.asarray(operands.g, dtype)
    kernel, theirs = jnp.asarray(operands.kernel), torch_functions(operands, case.stride, dtype)
    del operands
    given = {"forward": (x, kernel), "input_gradient": (g, kernel), "kernel_gradient": (x, g)}
    jobs, entries = {}, []
    for name in names:
        if name == "pallas" and not depthwise_pallas.supports(x.shape, case.size, case.stride, x.dtype):
            continue
        for direction in DIRECTIONS:
            function = getattr(IMPLEMENTATIONS[name], direction)
            run = {
                "forward": lambda x, k, f=function: f(x, k, case.stride),
                "input_gradient": lambda g, k, f=function: f(g, k, case.stride, x.shape),
                "kernel_gradient": lambda x, g, f=function: f(x, g, case.size, case.stride),
            }[direction]
            jobs[direction, name] = partial(jax.jit(repeated(run, repeats)).lower, *given[direction])
    compiled = compile_those_that_run(jobs, str(case))
    dx, d_kernel = theirs["gradient"]()
    expected = {"forward": theirs["forward"]().permute(0, 2, 3, 1), "input_gradient": dx.permute(0, 2, 3, 1),
                "kernel_gradient": d_kernel[:, 0].permute(1, 2, 0)}  # fmt: skip
    found: dict[str, dict[str, float]] = {}
    for direction in DIRECTIONS:
        calls: Sides = {}
        for name in names:
            if (direction, name) not in compiled:
                continue
            call = partial(compiled[direction, name], *given[direction])
            try:
                result = jax.block_until_ready(call())
            except Exception as error:  # this device cannot run the implementation: it is left out
                print(f"{case}, {direction}: {name} does not run here: {str(error).splitlines()[0]}")
                continue
            check_one(result, expected[direction], f"{case}, {direction}, {name}", dtype)
            calls[name] = call
        found[direction] = medians(calls, rounds, repeats)
        entries.append({
            "direction": direction, "shape": list(x.shape), "size": case.size, "stride": case.stride, "dtype": dtype,
            "milliseconds": {name: round(ms, 4) for name, ms in found[direction].items()},
        })
    del expected, dx, d_kernel
    times = {}
    for part, directions in (("forward", DIRECTIONS[:1]), ("gradient", DIRECTIONS[1:])):
        parts = [found[direction] for direction in directions]
        times[part] = medians({"torch": torch_repeated(theirs[part], repeats)}, rounds, repeats)
        times[part]["ours"] = sum(min(part.values()) for part in parts)
        if all("grouped" in part for part in parts):
            times[part]["xla"] = sum(part["grouped"] for part in parts)
    return entries, times


def compile_those_that_run(jobs: Mapping[tuple[str, str], Callable], title: str) -> dict[tuple[str, str], Callable]:
    """The compiled programs. They compile side by side. Programs that do not compile here are left out."""
    try:
        return compile_ahead(jobs, title, progress=False)
    except Exception:
        compiled = {}
        for (direction, name), lower in jobs.items():
            try:
                compiled[direction, name] = lower().compile()
            except Exception as error:
                print(f"{title}, {direction}: {name} does not compile here: {str(error).splitlines()[0]}")
        return compiled


def check_one(found: jax.Array, expected: torch.Tensor, name: str, dtype: str) -> None:
    """Compares one result with PyTorch's, on the device that holds both.

    Raises:
      SystemExit: they differ.
    """
    value = jnp.from_dlpack(expected.detach().float().contiguous())
    difference = float(jnp.abs(found.astype(jnp.float32) - value).max() / jnp.abs(value).max())
    if not difference < TOLERANCE[dtype]:
        raise SystemExit(f"{name}: found a difference to PyTorch of {difference:.1e}, "
                         f"expected less than {TOLERANCE[dtype]:g}: nothing was timed")
