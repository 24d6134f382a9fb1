"""Writes the parts of a space's children as ONNX, to be timed on another device, with the script that times them.

Equal weights are kept once, in a file beside the models (ONNX calls it external data). So the 448 parts of
BigNAS's space and 12 networks take 106 MB, and not 1.4 GB.
"""

import dataclasses
import importlib.util
import pathlib
import shutil
from collections.abc import Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper
from onnx.external_data_helper import set_external_data

from bignas_jax.errors import ConfigError
from bignas_jax.files import locked, write_bytes, write_text
from bignas_jax.interop.exports.onnx_graph import INPUT, IR_VERSION, OPSET, part_model
from bignas_jax.interop.exports.tensors import layer_tensors
from bignas_jax.nets.slicing import put
from bignas_jax.spaces.layers import Layer
from bignas_jax.spaces.parts import FITTED, HELD_BACK, Part, distinct_parts, draw_networks, network_of
from bignas_jax.spaces.space import Space

CALL = "call"  # the name of a model that does nothing: what a call of the runtime takes by itself
MODELS, WEIGHTS, SCRIPT, GUIDE = "models", "weights.bin", "measure.py", "MEASURE.md"
PAGE = 4096  # bytes: runtimes map a file from multiples of it; smaller weights stay in the models


@dataclasses.dataclass(frozen=True)
class Written:
    """What an export wrote.

    Attributes:
      parts: number of distinct parts.
      networks: number of whole networks.
      megabytes: of all files.
    """

    parts: int
    networks: int
    megabytes: float


def write_parts(space: Space, num_classes: int, batch: int, folder: pathlib.Path) -> Written:
    """Writes models/<name>.onnx, models/weights.bin, the script and a guide into `folder`, which is made.

    Weights are seeded numbers that keep activations near 1. Batch norm is folded, as in the export of a child.

    Args:
      space: the search space.
      num_classes: classes of the classifier.
      batch: images of a call.
      folder: where the files go.
    Raises:
      ConfigError: the folder holds parts of another space.
      ExportError: a layer of a user's own family has no ONNX form.
    """
    parts = distinct_parts(space, num_classes)
    archs = [arch for some in draw_networks(space, FITTED, HELD_BACK) for arch in some]
    wholes = {network_of(space, arch, num_classes): arch.to_json() for arch in archs}
    with locked(folder, "latency export"):
        models = folder / MODELS
        _check_folder(models, {part.name for part in (*parts, *wholes)} | {CALL})
        models.mkdir(exist_ok=True)
        pool = _Pool()
        sizes = [_write(models, CALL, _nothing(batch))]
        sizes += [_write(models, part.name, pool.shared(_model(part, batch, wholes.get(part, ""))))
                  for part in (*parts, *wholes)]  # fmt: skip
        sizes.append(pool.write(models / WEIGHTS))
        shutil.copyfile(pathlib.Path(__file__).with_name("measure_latency.py"), folder / SCRIPT)
        write_text(folder / GUIDE, _GUIDE)
    return Written(len(parts), len(archs), sum(sizes) / 1e6)


def _check_folder(models: pathlib.Path, wanted: set[str]) -> None:
    others = [path.name for path in sorted(models.glob("*.onnx")) if path.stem not in wanted]
    if others:
        raise ConfigError(
            f"{models}: found {len(others)} models of another space, such as {others[0]}, expected a folder of its "
            "own: give another --out"
        )


def _write(models: pathlib.Path, name: str, model: onnx.ModelProto) -> int:
    content = model.SerializeToString()
    write_bytes(models / f"{name}.onnx", content)
    return len(content)


class _Pool:
    """The weights of all models: each array once, however many models have it."""

    def __init__(self):
        self._arrays: dict[bytes, int] = {}  # by content, the position
        self._end = 0

    def shared(self, model: onnx.ModelProto) -> onnx.ModelProto:
        """The model, with its large weights in the pool."""
        for tensor in model.graph.initializer:
            if len(tensor.raw_data) >= PAGE:
                content = tensor.raw_data
                if content not in self._arrays:
                    self._arrays[content] = self._end
                    self._end += -(-len(content) // PAGE) * PAGE
                set_external_data(tensor, WEIGHTS, self._arrays[content], len(content))
                tensor.ClearField("raw_data")
        return model

    def write(self, path: pathlib.Path) -> int:
        """Writes the pool and returns its size in bytes."""
        found = bytearray(self._end)
        for content, start in self._arrays.items():
            found[start : start + len(content)] = content
        write_bytes(path, bytes(found))
        return self._end


def _model(part: Part, batch: int, architecture: str) -> onnx.ModelProto:
    about = {"name": part.name} | ({"architecture": architecture} if architecture else {})
    return part_model(part.layers, layer_tensors(part.layers, seeded(part.layers), None), batch, about)


def seeded(layers: Sequence[Layer]) -> dict:
    """Parameters of layers with folded batch norm, as `Child.params` nests them: the same for equal parts."""
    found: dict = {}
    for layer in layers:
        for weight in layer.weights():
            if weight.path[-1] == "scale":
                continue  # folded
            if weight.path[-1] == "bias" or weight.path[-1].endswith("_bias"):
                value = np.zeros(weight.shape, np.float32)
            else:
                value = np.random.default_rng(0).standard_normal(weight.shape, np.float32)
                value /= np.sqrt(np.prod(weight.shape[:-1]))
            put(found, weight.path, value)
    return found


def _nothing(batch: int) -> onnx.ModelProto:
    """A model whose only node copies a few numbers."""
    inputs, outputs = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [batch, 1]) for n in (INPUT, "out"))
    graph = helper.make_graph([helper.make_node("Neg", [INPUT], ["out"])], CALL, [inputs], [outputs])
    return helper.make_model(graph, producer_name="bignas_jax", ir_version=IR_VERSION,
                             opset_imports=[helper.make_opsetid("", OPSET)])  # fmt: skip


def check_installed() -> None:
    """Refuses to begin without the library that writes the files.

    Raises:
      ConfigError: it is not installed.
    """
    if importlib.util.find_spec("onnx") is None:
        raise ConfigError("latency export: onnx not installed: pip install -r requirements.txt")


_GUIDE = """# Measure these networks on your device

Copy this folder to the device. `models/` holds every distinct block of the search space once, and a few whole networks
(`network-*`). Their weights are made up: a network's speed does not depend on them. All models share `weights.bin`.

    pip install onnxruntime numpy
    python measure.py                          # one thread of a CPU; writes latency.csv beside itself
    taskset -c 1 python measure.py --passes 9  # kept to one core; more passes where other work disturbs
    python measure.py --clock cpu              # on a busy machine: the time that the process had, for one thread
    python measure.py --threads 4
    python measure.py --provider CUDAExecutionProvider    # with the onnxruntime of that device

A run that was stopped goes on at the same command. Then, where the supernet is:

    python -m bignas_jax latency check --workdir RUN --config.search.latency_table=latency.csv
    python -m bignas_jax search --workdir RUN --config.search.latency_table=latency.csv \\
        --config.search.max_latency_ms=5

The first command says how far the sum of the parts is off whole networks that the fit has not seen.

## Other runtimes

The table is a CSV file with the columns `name` and `ms`: the name of each file without `.onnx`, and its milliseconds
for one call. More columns are welcome: `batch` is compared with `config.search.latency_batch_size`; `device`,
`runtime` and `threads` are repeated in reports. `call` is a model that does nothing. Its time is subtracted from each
part's, because a whole network pays it once. The row may be left out where a runtime reports the time inside the
device alone.

So any tool that times an ONNX file, or a file made from it, will do. For each of models/*.onnx:

- TensorRT: `trtexec --onnx=FILE --useSpinWait --noDataTransfers`; take the median of `GPU Compute Time`.
- OpenVINO: `benchmark_app -m FILE -d CPU -hint none -nstreams 1 -nthreads 1 -api sync`; take `Median`.
- TFLite (LiteRT): `onnx2tf -i FILE -o OUT` makes `OUT/*_float32.tflite`; then on the device
  `benchmark_model --graph=FILE.tflite --num_threads=1`; take `Inference (avg)`, in microseconds, divided by 1000.

Take the least of several medians where other work shares the device, with the clock fixed if it can be. Measure parts
and networks in the same state of the device.
"""
