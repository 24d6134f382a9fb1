"""A child written to files that need no bignas_jax: ONNX, StableHLO, PyTorch, safetensors.

Each writer takes the child, its folder, the batch (0: any) and a dictionary of strings that tell what it is.
"""

import importlib.util
import json
import pathlib
from collections.abc import Callable, Sequence

import jax
import numpy as np
from jax import export as jax_export

from bignas_jax.errors import ConfigError
from bignas_jax.interop.exports.tensors import describe, tensors
from bignas_jax.kernels.depthwise.choice import portable
from bignas_jax.nets.child import Child, forward

PLATFORMS = ("cpu", "cuda")


def write_onnx(child: Child, folder: pathlib.Path, batch: int, about: dict[str, str]) -> pathlib.Path:
    """child.onnx: float32 images [batch, 3, R, R] to logits [batch, classes], weights inside, `about` as properties."""
    import onnx

    from bignas_jax.interop.exports.onnx_graph import onnx_model

    path = folder / "child.onnx"
    onnx.save(onnx_model(describe(child), tensors(child), batch, about), path)
    return path


def write_stablehlo(child: Child, folder: pathlib.Path, batch: int, about: dict[str, str]) -> pathlib.Path:
    """child.stablehlo: what `jax.export.deserialize` reads, images [batch, R, R, 3] to logits, weights inside.

    For CPUs and CUDA. Products are in full float32 on both: the logits are those of the other formats.
    """
    del about  # there is no place for it
    side = child.arch.resolution
    (count,) = (batch,) if batch else jax_export.symbolic_shape("batch")
    images = jax.ShapeDtypeStruct((count, side, side, 3), np.float32)
    with jax.default_matmul_precision("highest"), portable():
        exported = jax_export.export(jax.jit(forward(child)), platforms=PLATFORMS)(images)
    path = folder / "child.stablehlo"
    path.write_bytes(exported.serialize())
    return path


def write_torch(child: Child, folder: pathlib.Path, batch: int, about: dict[str, str]) -> pathlib.Path:
    """child.pt, a state_dict, and child.py, the module that takes it; `batch` may be anything."""
    import torch

    del batch
    torch.save({name: torch.from_numpy(a) for name, a in tensors(child).items()}, folder / "child.pt")
    source = (pathlib.Path(__file__).parent / "torch_child.py").read_text()
    empty = "DESCRIPTION: dict = {}\n"
    if source.count(empty) != 1:
        raise AssertionError("torch_child.py has no place for the description")
    note = f"# {about['name']}, {about['macs']} multiply-adds.\n"
    (folder / "child.py").write_text(source.replace(empty, note + _literal(describe(child))))
    return folder / "child.pt"


def _literal(description: dict) -> str:
    """The description as Python, a line for each field and each block."""
    lines = ["DESCRIPTION = {"]
    for name, value in description.items():
        if name == "blocks":
            lines += ['    "blocks": [', *(f"        {json.dumps(block)}," for block in value), "    ],"]
        else:
            lines.append(f'    "{name}": {json.dumps(value)},')
    text = "\n".join([*lines, "}\n"])
    return text.replace(": true", ": True").replace(": false", ": False")


def write_safetensors(child: Child, folder: pathlib.Path, batch: int, about: dict[str, str]) -> pathlib.Path:
    """child.safetensors: the weights by PyTorch names and layouts, and in its metadata `about` and the layers."""
    from safetensors.numpy import save_file

    del batch
    path = folder / "child.safetensors"
    save_file(tensors(child), path, about | {"format": "pt", "description": json.dumps(describe(child))})
    return path


Writer = Callable[[Child, pathlib.Path, int, dict[str, str]], pathlib.Path]
WRITERS: dict[str, Writer] = {
    "onnx": write_onnx,
    "stablehlo": write_stablehlo,
    "torch": write_torch,
    "safetensors": write_safetensors,
}
FILES = ("child.onnx", "child.stablehlo", "child.pt", "child.py", "child.safetensors")
_NEEDED = {"onnx": ("onnx", "onnxruntime"), "safetensors": ("safetensors",)}


def check_formats(formats: Sequence[str]) -> tuple[str, ...]:
    """The formats, each once.

    Raises:
      ConfigError: one is unknown, there is none, or a library that it needs is not installed.
    """
    for name in formats:
        if name not in WRITERS:
            raise ConfigError(f"--format: found {name!r}, expected some of {','.join(WRITERS)}")
        missing = [library for library in _NEEDED.get(name, ()) if importlib.util.find_spec(library) is None]
        if missing:
            raise ConfigError(
                f"--format {name}: {', '.join(missing)} not installed: pip install -r requirements.txt, "
                "or leave the format out"
            )
    if not formats:
        raise ConfigError(f"--format: found nothing, expected some of {','.join(WRITERS)}")
    return tuple(dict.fromkeys(formats))


def onnx_nodes(path: pathlib.Path) -> dict[str, int]:
    """How often each operator occurs in an ONNX file."""
    import onnx

    counts: dict[str, int] = {}
    for node in onnx.load(path, load_external_data=False).graph.node:
        counts[node.op_type] = counts.get(node.op_type, 0) + 1
    return counts
