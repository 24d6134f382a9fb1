"""A child in 8-bit integers: child_int8.onnx, made of child.onnx by onnxruntime's static quantisation.

The file is in the QDQ form: QuantizeLinear and DequantizeLinear stand around float operators, and a runtime that has
integer kernels merges them. Weights are int8 with a scale for each output channel, max |w| / 127, and the zero point 0
(Jacob et al., 2018, section 2; Krishnamoorthi, 2018, section 3.1). Activations are int8 with one scale and zero point a
tensor, from the least and the greatest value over training images. They are int8 and not uint8, because on x86 CPUs
without VNNI products of uint8 by int8 saturate (onnxruntime's guide, "When to use reduce-range").
"""

import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Iterable

import numpy as np

from bignas_jax.errors import ExportError
from bignas_jax.files import write_bytes
from bignas_jax.interop.exports.formats import INT8, onnx_nodes
from bignas_jax.interop.exports.onnx_graph import INPUT
from bignas_jax.interop.exports.run_back import NO_TELEMETRY

FORMAT = "onnx_int8"
_BATCH = 16  # images of a call where the file leaves it open

# Arguments: child.onnx, the file to write, the file of images, the size of a batch, the name of the input.
# It runs in a process of its own, because onnxruntime must not be loaded in one that allows telemetry.
_PROGRAM = """
import logging, sys
import numpy as np
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
logging.disable(logging.WARNING)
source, target, images, size, name = sys.argv[1:]
images, size = np.load(images, mmap_mode="r"), int(size)
class Reader(CalibrationDataReader):
    def __init__(self):
        self.parts = (images[start : start + size] for start in range(0, len(images), size))
    def get_next(self):
        part = next(self.parts, None)
        return None if part is None else {name: np.ascontiguousarray(part)}
quantize_static(source, target, Reader(), quant_format=QuantFormat.QDQ, per_channel=True,
                activation_type=QuantType.QInt8, weight_type=QuantType.QInt8)
"""


def write(folder: pathlib.Path, images: Iterable[np.ndarray], batch: int) -> pathlib.Path:
    """Writes child_int8.onnx beside child.onnx, whose batch norm is folded. Inputs and outputs stay float32.

    Args:
      folder: has child.onnx.
      images: preprocessed training images, float32 [3, R, R] each.
      batch: images of a call of child.onnx; 0: any.
    Raises:
      ExportError: onnxruntime does not quantise the file; the reason in one line.
    """
    with tempfile.TemporaryDirectory() as scratch:
        source, target = pathlib.Path(scratch, "images.npy"), pathlib.Path(scratch, INT8)
        size = batch or _BATCH
        found = np.stack(list(images))
        # Copies of the last image fill the last batch: least and greatest values stay what they are.
        np.save(source, np.concatenate([found, np.repeat(found[-1:], -len(found) % size, 0)]))
        arguments = [folder.absolute() / "child.onnx", target, source, size, INPUT]
        command = [sys.executable, "-I", "-B", "-c", _PROGRAM, *map(str, arguments)]
        environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""} | NO_TELEMETRY
        ended = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=scratch)
        if ended.returncode:
            last = (ended.stderr.strip().splitlines() or [f"exit code {ended.returncode}"])[-1]
            raise ExportError(f"{folder}/child.onnx: onnxruntime does not quantise it: {last}")
        if not onnx_nodes(target).get("DequantizeLinear"):
            raise ExportError(f"{folder}/child.onnx: onnxruntime found nothing in it to quantise")
        write_bytes(folder / INT8, target.read_bytes())
    return folder / INT8
