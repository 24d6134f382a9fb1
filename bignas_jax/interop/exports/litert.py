"""A child for LiteRT (once TensorFlow Lite), in float32 and in 8-bit integers, by the converters of its own project.

litert-torch converts the PyTorch module of child.py. ai-edge-quantizer rounds the result: weights with a scale for each
output channel, activations with one for each tensor, from their ranges over training images. All three packages are
extras. They run in a process of their own, because litert-torch changes settings of JAX and of logging.
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
from bignas_jax.interop.exports.formats import LITERT, LITERT_FILE, LITERT_INTEGERS, LITERT_INTEGERS_FILE, write_torch
from bignas_jax.nets.child import Child, fold
from bignas_jax.text import one_line

# Arguments: a folder with child.py and child.pt, the file to write, images of a call, the side of an image, and the
# file of the images that give the ranges, or nothing. The names of the signature and of its input are litert-torch's.
_PROGRAM = """
import sys
import numpy as np
folder, target, batch, side, ranges = sys.argv[1:]
batch, side = int(batch), int(side)
sys.path.insert(0, folder)
import child, litert_torch, torch
model = litert_torch.convert(child.load().eval(), (torch.zeros(batch, 3, side, side),))
model.export(target)
if ranges:
    from ai_edge_quantizer import quantizer, recipe
    images = np.load(ranges)
    calls = [{"args_0": images[start : start + batch]} for start in range(0, len(images), batch)]
    made = quantizer.Quantizer(target)
    made.load_quantization_recipe(recipe.static_wi8_ai8())
    content = made.quantize(made.calibrate({"serving_default": calls})).quantized_model
    with open(target, "wb") as file:
        file.write(content)
"""


def write_litert(child: Child, folder: pathlib.Path, batch: int, about: dict[str, str]) -> pathlib.Path:
    """Writes child.tflite: float32 images [batch, 3, R, R] to logits [batch, classes], with the weights inside.

    Args:
      child: the child.
      folder: where the file is written.
      batch: images of a call, which is fixed in the file; 0 means one.
      about: describes the child; the file has no place for it.
    Raises:
      ExportError: the converter refuses the child, one line.
    """
    path = folder / LITERT_FILE
    write_bytes(path, _converted(LITERT, child, batch, about))
    return path


def write_litert_integers(
    child: Child, folder: pathlib.Path, batch: int, about: dict[str, str], images: Iterable[np.ndarray]
) -> pathlib.Path:
    """Writes child-int8.tflite, whose inputs and outputs are 8-bit integers, with their scales in the file.

    Args:
      child: the child, folded or not.
      folder: where the file is written.
      batch: images of a call, which is fixed in the file; 0 means one.
      about: describes the child; the file has no place for it.
      images: batches of training images, float32 [B, 3, R, R], normalised; B is a multiple of `batch`.
    Raises:
      ExportError: there are no images, or the converter or the quantiser refuses the child; one line.
    """
    parts = list(images)
    if not parts:
        raise ExportError(f"{LITERT_INTEGERS}: found no training image to take the ranges from, expected some")
    path = folder / LITERT_INTEGERS_FILE
    write_bytes(path, _converted(LITERT_INTEGERS, fold(child), batch, about, np.concatenate(parts)))
    return path


def _converted(
    name: str, child: Child, batch: int, about: dict[str, str], images: np.ndarray | None = None
) -> bytes:
    """The content of a file of this format, in integers if there are images to take the ranges from."""
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    with tempfile.TemporaryDirectory() as scratch:
        write_torch(child, pathlib.Path(scratch), batch, about)
        target, ranges = pathlib.Path(scratch, "child.tflite"), ""
        if images is not None:
            ranges = f"{scratch}/images.npy"
            np.save(ranges, images.astype(np.float32, copy=False))
        arguments = [scratch, str(target), str(batch or 1), str(child.arch.resolution), ranges]
        # -I: imports ignore the working directory and PYTHONPATH.
        ended = subprocess.run(
            [sys.executable, "-I", "-c", _PROGRAM, *arguments], env=environment, capture_output=True, text=True
        )
        if ended.returncode or not target.exists():
            said = (ended.stderr.strip().splitlines() or [f"exit code {ended.returncode}"])[-1]
            raise ExportError(f"{name}: its converter does not take the child: {one_line(said)}")
        return target.read_bytes()
