"""Milliseconds of children on the present device, added up from measured blocks.

A search asks for the latency of thousands of architectures. To compile each of them would take too long. As in
ProxylessNAS (Cai et al., 2019, appendix B) and Once-for-All (Cai et al., 2020, section 3.3), a table holds the time of
each block alone, and an architecture's estimate is a sum over its blocks. The sum leaves out the start of a program,
fusion across blocks, and caches. A line `ms = a + b * sum` corrects it. The line is fitted to a few networks that are
measured whole. Other networks, held back from the fit, show how far the estimate is off.

A child is measured as it is shipped, on one device. It has its own weights, so that no slicing is timed. Batch norm
uses stored statistics, and there is no dropout. Other work on the device or the host can only make a time longer. So
programs are timed in rounds. In each round, all programs are timed one after the other. A program's time is the lowest
of its round medians, once other rounds have confirmed it.
"""

import dataclasses
import json
import os
import pathlib
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from flax import nnx
from tqdm import tqdm

from bignas_jax.errors import ConfigError, FileError
from bignas_jax.files import add_line, open_lines, parse_json, whole_lines
from bignas_jax.forms import check_form
from bignas_jax.kernels import native
from bignas_jax.nets.kinds import module_of
from bignas_jax.nets.mode import Mode
from bignas_jax.nets.sizes import layer_sizes
from bignas_jax.programs.compile import compile_ahead
from bignas_jax.programs.memory import give_back_freed_memory
from bignas_jax.search.timing import device_name, time_together
from bignas_jax.spaces.architecture import Architecture
from bignas_jax.spaces.cost import count
from bignas_jax.spaces.layers import Layer
from bignas_jax.spaces.parts import Part, draw_networks, network_of, parts_of
from bignas_jax.spaces.space import Space

CHUNK = 16  # programs that are compiled, timed and written to the file together; a kill loses at most these


class _Modules(nnx.Module):
    """The modules of the given layers."""

    def __init__(self, layers: Sequence[Layer], rngs: nnx.Rngs):
        self.modules = nnx.List([module_of(layer)(layer, rngs=rngs) for layer in layers])


def _run(
    graphdef: nnx.GraphDef, layers: Sequence[Layer], dtype: str, params: Any, statistics: Sequence[dict], x: jax.Array
) -> jax.Array:
    """The program that is timed: from [B, H, W, C] input to the output of the last layer."""
    x = x.astype(dtype)
    for layer, module, stored in zip(layers, nnx.merge(graphdef, params).modules, statistics, strict=True):
        x, _ = module(x, layer, layer_sizes(layer, None), Mode(statistics=stored))
    return x


@dataclasses.dataclass(frozen=True)
class Workload:
    """A program and its arguments. Equal parts get equal arguments, whose values are far from denormal numbers."""

    run: Callable
    arguments: tuple  # (params, statistics, x), NumPy

    @classmethod
    def of(cls, part: Part, num_classes: int, dtype: str, batch_size: int) -> "Workload":
        """The workload of a part, with seeded weights and inputs."""
        layers = part.layers
        graphdef, state = nnx.split(nnx.eval_shape(lambda: _Modules(layers, nnx.Rngs(0))))
        params = jax.tree_util.tree_map_with_path(_weights, nnx.to_pure_dict(state))
        statistics = [
            {conv.name: (np.zeros(conv.out_width, np.float32), np.ones(conv.out_width, np.float32))
             for conv in layer.convs if conv.norm}
            for layer in layers
        ]  # fmt: skip
        x = np.random.default_rng(0).standard_normal((batch_size, *part.shape), np.float32)
        # Images arrive in float32. Inside the network, activations have `dtype`.
        x = x if part.kind in ("stem", "network") else x.astype(jax.numpy.dtype(dtype))
        return cls(partial(_run, graphdef, layers, dtype), (params, statistics, x))


def _weights(path: tuple, form: jax.ShapeDtypeStruct) -> np.ndarray:
    """Numbers that keep activations near 1 through any depth."""
    name = jax.tree_util.keystr(path[-1:], simple=True)
    if name.endswith("bias"):
        return np.zeros(form.shape, form.dtype)
    if name == "scale":
        return np.ones(form.shape, form.dtype)
    return np.random.default_rng(0).standard_normal(form.shape, form.dtype) / np.sqrt(np.prod(form.shape[:-1]))


class _File:
    """Measurements by setting and key. Each is a JSON line, which is on disk when `add` returns.

    Raises:
      ConfigError: a line is not a measurement; one line.
    """

    def __init__(self, path: pathlib.Path, setting: dict[str, Any]):
        self.path, self.setting = path, setting
        self.ms: dict[str, float] = {}
        try:
            lines = whole_lines(path)
        except FileError as error:
            raise ConfigError(f"{path}: {error}") from error
        for number, line in enumerate(lines, 1):
            try:
                record = parse_json(line)
                check_form(record, {"ms": float, "of": {"part": str}})
                ms, key = float(record.pop("ms")), json.dumps(record.pop("of"))
                if ms <= 0:
                    raise FileError(f"ms: found {ms}, expected a time")
            except FileError as error:
                raise ConfigError(
                    f"{path} line {number}: found something that is no measurement ({error}), expected one of a block "
                    "or a network: move the file away to measure anew"
                ) from error
            if record == setting:
                self.ms.setdefault(key, ms)  # the first one counts, as it did in the run that wrote it

    def add(self, key: str, ms: float) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open_lines(self.path) as file:
            add_line(file, {**self.setting, "of": json.loads(key), "ms": ms})
        self.ms[key] = ms


class LatencyTable:
    """Latencies of a space's children at a batch size on one device, estimated from blocks or measured whole.

    All measurements are kept in a file and read from there, so that estimates are the same after a restart.
    Measurements of another device, JAX version, dtype or batch size stay in the file and are not used.

    Args:
      space: the search space.
      num_classes: classes of the classifier.
      dtype: the activations' dtype, 'float32' or 'bfloat16'.
      batch_size: images of one forward pass.
      path: the file of JSON lines.
      device: a JAX device. None takes the first device here.
      progress: whether to show a bar while measuring.
      fitted: number of random networks that estimates are fitted to, besides the biggest and the smallest. All networks
        are drawn from a generator with a fixed seed.
      held_back: number of random networks that are used only by `check`.

    Raises:
      ConfigError: the file was not written by this class; one line.
    """

    def __init__(
        self,
        space: Space,
        num_classes: int,
        dtype: str,
        batch_size: int,
        path: str | os.PathLike,
        device: jax.Device | None = None,
        *,
        progress: bool = True,
        fitted: int = 3,
        held_back: int = 3,
    ):
        self.space, self.num_classes, self.dtype, self.batch_size = space, num_classes, dtype, batch_size
        self.device = jax.local_devices()[0] if device is None else device
        self._progress = progress
        setting = {
            "device": device_name(self.device), "jax": jax.__version__, "kernels": native.identity(), "dtype": dtype,
            "batch_size": batch_size,
        }  # fmt: skip
        self._file = _File(pathlib.Path(path), setting)
        self._fitted, self._held_back = draw_networks(space, fitted, held_back)
        self._line: tuple[float, float] | None = None

    def prepare(self, archs: Iterable[Architecture]) -> None:
        """Compiles and times all blocks of these architectures that the file lacks."""
        archs = [*archs, *self._fitted, *self._held_back]
        self._measure(part for arch in dict.fromkeys(archs) for part in parts_of(self.space, arch, self.num_classes))
        self._measure(self._network(arch) for arch in (*self._fitted, *self._held_back))

    def estimate(self, arch: Architecture) -> float:
        """Milliseconds of a forward pass, estimated from the blocks' times. Missing blocks are measured first.

        Raises:
          ValueError: `arch` is not in the space.
        """
        self.space.check(arch)
        if self._line is None or any(part.key not in self._file.ms for part in self._parts(arch)):
            self.prepare([arch])
        if self._line is None:
            sums, whole = zip(*((self._sum(a), self._file.ms[self._network(a).key]) for a in self._fitted), strict=True)
            self._line = fit_line(sums, whole)
        a, b = self._line
        return a + b * self._sum(arch)

    def measure(self, arch: Architecture) -> float:
        """Milliseconds of a forward pass of the whole child, in a program of its own. It is measured once.

        Raises:
          ValueError: `arch` is not in the space.
        """
        network = self._network(arch)
        self._measure([network])
        return self._file.ms[network.key]

    def check(self) -> dict[str, Any]:
        """How far estimates are off on networks that they were not fitted to.

        Returns:
          A dictionary:
          batch_size: images of one forward pass.
          device: the device's name.
          blocks: how many stems, blocks and heads have been measured.
          error: the median of |estimated - measured| / measured. None if the space is too small to hold networks back.
          networks: a list of dictionaries with macs, estimated_ms and measured_ms.
        """
        self.prepare([])
        networks = [
            {
                "macs": count(self.space, arch, self.num_classes).macs,
                "estimated_ms": self.estimate(arch),
                "measured_ms": self.measure(arch),
            }
            for arch in self._held_back
        ]
        errors = [abs(n["estimated_ms"] - n["measured_ms"]) / n["measured_ms"] for n in networks]
        measured = [key for key in self._file.ms if json.loads(key)["part"] != "network"]
        return {
            "batch_size": self.batch_size,
            "device": self._file.setting["device"],
            "blocks": len(measured),
            "error": float(np.median(errors)) if errors else None,
            "networks": networks,
        }

    def _parts(self, arch: Architecture) -> list[Part]:
        return parts_of(self.space, arch, self.num_classes)

    def _network(self, arch: Architecture) -> Part:
        return network_of(self.space, arch, self.num_classes)

    def _sum(self, arch: Architecture) -> float:
        return sum(self._file.ms[part.key] for part in self._parts(arch))

    def _measure(self, parts: Iterable[Part]) -> None:
        """Times the missing parts, and writes their times to the file chunk by chunk."""
        missing = list(dict.fromkeys(part for part in parts if part.key not in self._file.ms))
        if not missing:
            return
        whole = missing[0].kind == "network"
        title, unit = ("time networks", "network") if whole else ("time blocks", "block")
        # Networks are compared with each other. One chunk lets all of them meet the machine in the same state.
        chunk = len(missing) if whole else CHUNK
        with tqdm(total=len(missing), desc=title, unit=unit, disable=not self._progress, file=sys.stderr) as bar:
            for start in range(0, len(missing), chunk):
                batch = missing[start : start + chunk]
                for part, ms in zip(batch, self._times(batch), strict=True):
                    self._file.add(part.key, ms)
                bar.update(len(batch))

    def _times(self, parts: Sequence[Part]) -> list[float]:
        """Milliseconds of each part. Parts compile side by side. During the timing, this process runs nothing else."""
        lower, arguments = {}, {}
        for part in parts:
            work = Workload.of(part, self.num_classes, self.dtype, self.batch_size)
            arguments[part] = jax.device_put(work.arguments, self.device)
            lower[part] = partial(jax.jit(work.run).lower, *arguments[part])
        programs = compile_ahead(lower, progress=False)
        times = time_together([partial(programs[part], *arguments[part]) for part in parts])
        give_back_freed_memory()
        return times


def fit_line(x: Sequence[float], y: Sequence[float]) -> tuple[float, float]:
    """(a, b) with b >= 0 that gives the least sum of |a + b x - y| / y.

    Deviations are absolute (Boscovich, 1757), because a disturbed measurement moves this line less than a line of least
    squares. They are relative, because `LatencyTable.check` reports relative errors. The best line goes through two of
    the points. If it would fall (b < 0), the best is a level line through one point.
    """
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    first, second = np.triu_indices(len(x), 1)
    apart = x[first] != x[second]
    first, second = first[apart], second[apart]
    slopes = (y[second] - y[first]) / (x[second] - x[first])
    rising = slopes >= 0
    b = np.concatenate([slopes[rising], np.zeros_like(y)])
    a = np.concatenate([(y[first] - slopes * x[first])[rising], y])
    best = np.argmin(np.sum(np.abs(a[:, None] + b[:, None] * x - y) / y, axis=1))
    return float(a[best]), float(b[best])
