"""Runs exported files as their users run them: in fresh processes that cannot import this package.

Every runner takes the child's folder, float32 images [N, 3, R, R] and the size of a batch. It returns the logits
[N, classes], and the runner of `features` a dictionary of feature maps [N, C, H, W] by name.
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Callable

import numpy as np

from bignas_jax.errors import ExportError
from bignas_jax.interop.exports.formats import (
    FEATURES,
    INTEGERS,
    INTEGERS_FILE,
    LITERT,
    LITERT_FILE,
    LITERT_INTEGERS,
    LITERT_INTEGERS_FILE,
    torch_classes,
)

# In the environment before onnxruntime is loaded. From 1.29 on, it would send data on the model to Microsoft, and leave
# files in the user's cache and in the folder for temporary files (github.com/microsoft/onnxruntime/pull/27379).
NO_TELEMETRY = {"ORT_DISABLE_TELEMETRY": "1"}

# Arguments: the folder, the file of images, the file to write the logits to, the size of a batch.
_BEGIN = """
import sys
sys.modules.update(dict.fromkeys({forbidden!r}))
import numpy as np
folder, source, target, size = sys.argv[1:]
images, size = np.load(source), int(size)
parts = [images[start : start + size] for start in range(0, len(images), size)]
"""
_END = """
found = [run(part) for part in parts]
np.savez(target, **{name: np.concatenate([np.asarray(part[name]) for part in found]) for name in found[0]})
"""
_ONNX = """
import onnxruntime
options = onnxruntime.SessionOptions()
options.log_severity_level = 3
session = onnxruntime.InferenceSession(folder + "/FILE", options, providers=["CPUExecutionProvider"])
names = [output.name for output in session.get_outputs()]
run = lambda part: dict(zip(names, session.run(None, {session.get_inputs()[0].name: part})))
"""
_STABLEHLO = """
import jax, jax.export
with open(folder + "/child.stablehlo", "rb") as file:
    call = jax.jit(jax.export.deserialize(bytearray(file.read())).call)
run = lambda part: {"logits": call(part.transpose(0, 2, 3, 1))}
"""
_TORCH = """
sys.path.insert(0, folder)
import child, torch
torch.set_grad_enabled(False)
model = child.load()
run = lambda part: {"logits": model(torch.from_numpy(part))}
"""
# A file takes a fixed number of images, which divides that of a part. Integers have a scale and an offset.
_LITERT = """
from ai_edge_litert.interpreter import Interpreter
model = Interpreter(model_path=folder + "/FILE")
model.allocate_tensors()
(source,), (result,) = model.get_input_details(), model.get_output_details()
def call(images):
    (scale, offset), kind = source["quantization"], source["dtype"]
    if kind != np.float32:
        images = np.clip(np.round(images / scale) + offset, np.iinfo(kind).min, np.iinfo(kind).max).astype(kind)
    model.set_tensor(source["index"], images)
    model.invoke()
    found, (scale, offset) = model.get_tensor(result["index"]), result["quantization"]
    return found if found.dtype == np.float32 else (found.astype(np.float32) - offset) * scale
def run(part):
    count = source["shape"][0]
    return {"logits": np.concatenate([call(part[start : start + count]) for start in range(0, len(part), count)])}
"""
_NO_ONNX = ("bignas_jax", "jax", "flax", "torch")
_PROGRAMS = {
    "onnx": (_ONNX.replace("FILE", "child.onnx"), _NO_ONNX),
    "features": (_ONNX.replace("FILE", FEATURES), _NO_ONNX),
    INTEGERS: (_ONNX.replace("FILE", INTEGERS_FILE), _NO_ONNX),
    LITERT: (_LITERT.replace("FILE", LITERT_FILE), _NO_ONNX),
    LITERT_INTEGERS: (_LITERT.replace("FILE", LITERT_INTEGERS_FILE), _NO_ONNX),
    "stablehlo": (_STABLEHLO, ("bignas_jax", "flax", "torch")),
    "torch": (_TORCH, ("bignas_jax", "jax", "flax", "torchvision")),
}


def _run_alone(name: str, folder: pathlib.Path, images: np.ndarray, batch: int) -> dict[str, np.ndarray]:
    program, forbidden = _PROGRAMS[name]
    program = _BEGIN.format(forbidden=forbidden) + program + _END
    # The checks run on the CPU, because this process may hold all of a GPU's memory.
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""} | NO_TELEMETRY
    with tempfile.TemporaryDirectory() as scratch:
        source, target = f"{scratch}/images.npy", f"{scratch}/outputs.npz"
        np.save(source, images)
        # -I: imports ignore the working directory and PYTHONPATH. -B: no bytecode is written beside child.py.
        command = [sys.executable, "-I", "-B", "-c", program, str(folder.absolute()), source, target, str(batch)]
        ended = subprocess.run(command, env=environment, capture_output=True, text=True)
        if ended.returncode:
            last = (ended.stderr.strip().splitlines() or [f"exit code {ended.returncode}"])[-1]
            raise ExportError(f"{folder}: the {name} file was written but does not run: {last}")
        with np.load(target) as outputs:
            return dict(outputs)


def _run_safetensors(folder: pathlib.Path, images: np.ndarray, batch: int) -> np.ndarray:
    """Runs child.safetensors in this process. Its metadata describes the module; the classes are from this package."""
    import torch
    from safetensors import safe_open

    with safe_open(folder / "child.safetensors", "pt") as file:
        description = json.loads(file.metadata()["description"])
        classes: dict = {}
        exec(torch_classes(layer["kind"] for layer in description["layers"]), classes)  # noqa: S102 - our own text
        model = classes["Child"](description)
        state = {name: file.get_tensor(name) for name in file.keys()}
    model.load_state_dict(state)
    with torch.inference_mode():
        return torch.cat([model(part) for part in torch.from_numpy(images).split(batch)]).numpy()


Outputs = np.ndarray | dict[str, np.ndarray]
Runner = Callable[[pathlib.Path, np.ndarray, int], Outputs]
RUNNERS: dict[str, Runner] = {
    **{name: (lambda *args, name=name: _run_alone(name, *args)["logits"]) for name in _PROGRAMS if name != "features"},
    "safetensors": _run_safetensors,
    "features": lambda *args: _run_alone("features", *args),
}
