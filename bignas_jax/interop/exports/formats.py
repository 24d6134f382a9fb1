"""Writes a child to files that do not need bignas_jax: ONNX, StableHLO, PyTorch, safetensors.

Each writer takes the child, its folder, the batch (0: any) and a dictionary of strings that describe the child.
"""

import importlib.util
import json
import pathlib
from collections.abc import Callable, Iterable, Sequence

import jax
import numpy as np
from jax import export as jax_export

from bignas_jax.errors import ConfigError, ExportError
from bignas_jax.files import write_bytes, write_text, write_with
from bignas_jax.interop.exports.tensors import describe, tensors
from bignas_jax.kernels.depthwise.choice import portable
from bignas_jax.nets.child import Child, forward
from bignas_jax.nets.kinds import MODULES
from bignas_jax.plugins import find

PLATFORMS = ("cpu", "cuda")


def write_onnx(child: Child, folder: pathlib.Path, batch: int, about: dict[str, str]) -> pathlib.Path:
    """Writes child.onnx: float32 images [batch, 3, R, R] to logits [batch, classes]. It holds weights and `about`."""
    from bignas_jax.interop.exports.onnx_graph import onnx_model

    path = folder / "child.onnx"
    write_bytes(path, onnx_model(child, tensors(child), batch, about).SerializeToString())
    return path


def write_features(child: Child, folder: pathlib.Path, batch: int, about: dict[str, str]) -> pathlib.Path:
    """Writes features.onnx: images [batch, 3, R, R] to the feature maps `stride4` [batch, C, R / 4, R / 4], ..."""
    from bignas_jax.interop.exports.onnx_graph import onnx_model

    path = folder / FEATURES
    write_bytes(path, onnx_model(child, tensors(child), batch, about, features_only=True).SerializeToString())
    return path


def write_stablehlo(child: Child, folder: pathlib.Path, batch: int, about: dict[str, str]) -> pathlib.Path:
    """Writes child.stablehlo for `jax.export.deserialize`: images [batch, R, R, 3] to logits, with the weights inside.

    It runs on CPUs and CUDA. Products are in full float32 on both, so that all formats give the same logits.
    """
    del about  # the file has no place for it
    side = child.arch.resolution
    (count,) = (batch,) if batch else jax_export.symbolic_shape("batch")
    images = jax.ShapeDtypeStruct((count, side, side, 3), np.float32)
    with jax.default_matmul_precision("highest"), portable():
        exported = jax_export.export(jax.jit(forward(child)), platforms=PLATFORMS)(images)
    path = folder / "child.stablehlo"
    write_bytes(path, exported.serialize())
    return path


def write_torch(child: Child, folder: pathlib.Path, batch: int, about: dict[str, str]) -> pathlib.Path:
    """Writes child.pt, a state_dict, and child.py, the module that loads it. `batch` has no effect."""
    import torch

    del batch
    state = {name: torch.from_numpy(a) for name, a in tensors(child).items()}
    write_with(folder / "child.pt", lambda temporary: torch.save(state, temporary))
    note = f"# {about['name']}, {about['macs']} multiply-adds.\n"
    write_text(folder / "child.py", torch_source(child, note))
    return folder / "child.pt"


def torch_source(child: Child, note: str = "") -> str:
    """The text of child.py: the module of `torch_child.py` with the child's description.

    The module of a user's own kind of layer has the text of its PyTorch class as `torch_source`. Both classes have the
    same name.

    Args:
      child: the child.
      note: a comment before the description.
    Raises:
      ExportError: a user's own kind has no such text.
    """
    description = describe(child)
    source = torch_classes(layer["kind"] for layer in description["layers"])
    return _filled(source, _DESCRIPTION, note + _literal(description))


def torch_classes(kinds: Iterable[str]) -> str:
    """The text of `torch_child.py` with the classes of all these kinds of layers, without a description.

    Raises:
      ExportError: a user's own kind has no such class.
    """
    source = (pathlib.Path(__file__).parent / "torch_child.py").read_text()
    own = [_own_class(kind) for kind in dict.fromkeys(kinds) if ":" in kind]
    return _filled(source, _CHILD, "".join(own) + _CHILD)


def _filled(source: str, place: str, text: str) -> str:
    if source.count(place) != 1:
        raise AssertionError(f"torch_child.py has no place {place!r}")
    return source.replace(place, text)


_DESCRIPTION = "DESCRIPTION: dict = {}\n"
_CHILD = "class Child(nn.Module):\n"  # classes of other kinds of layers are inserted before it


def _own_class(kind: str) -> str:
    """The PyTorch class of a user's own kind of layer, and its entry in KINDS."""
    module = find(kind, MODULES, "space: kind of layer")
    text = getattr(module, "torch_source", None)
    if text is None:
        raise ExportError(
            f"torch: layers of kind {kind} have no PyTorch form, expected the text of a class {module.__name__} as "
            "torch_source in their class: write one, or leave the formats torch and safetensors out"
        )
    return f"{text.strip()}\n\n\nKINDS[{kind!r}] = {module.__name__}\n\n\n"


def _literal(description: dict) -> str:
    """The description as Python, a line for each field and each layer."""
    lines = ["DESCRIPTION = {"]
    for name, value in description.items():
        if name == "layers":
            lines += ['    "layers": [', *(f"        {layer!r}," for layer in value), "    ],"]
        else:
            lines.append(f'    "{name}": {value!r},')
    return "\n".join([*lines, "}\n"])


def write_safetensors(child: Child, folder: pathlib.Path, batch: int, about: dict[str, str]) -> pathlib.Path:
    """Writes child.safetensors: weights with PyTorch's names and layouts. Its metadata holds `about` and the layers."""
    from safetensors.numpy import save_file

    del batch
    path = folder / "child.safetensors"
    about = about | {"format": "pt", "description": json.dumps(describe(child))}
    write_with(path, lambda temporary: save_file(tensors(child), temporary, about))
    return path


Writer = Callable[[Child, pathlib.Path, int, dict[str, str]], pathlib.Path]
WRITERS: dict[str, Writer] = {
    "onnx": write_onnx,
    "stablehlo": write_stablehlo,
    "torch": write_torch,
    "safetensors": write_safetensors,
}
# Written where they are asked for: those in 8 bits need training images (integers.py), and LiteRT's need packages that
# are not required (litert.py).
INTEGERS, INTEGERS_FILE = "onnx-int8", "child-int8.onnx"
LITERT, LITERT_FILE = "litert", "child.tflite"
LITERT_INTEGERS, LITERT_INTEGERS_FILE = "litert-int8", "child-int8.tflite"
ROUNDED = (INTEGERS, LITERT_INTEGERS)  # formats whose logits differ by design
FURTHER = {INTEGERS: INTEGERS_FILE, LITERT: LITERT_FILE, LITERT_INTEGERS: LITERT_INTEGERS_FILE}
FEATURES = "features.onnx"  # written in place of logits, never beside them in one export
FILES = ("child.onnx", "child.stablehlo", "child.pt", "child.py", "child.safetensors")
_NEEDED = {"onnx": ("onnx", "onnxruntime"), INTEGERS: ("onnx", "onnxruntime"), "safetensors": ("safetensors",)}
_EXTRA = {
    LITERT: ("litert_torch", "ai_edge_litert"),
    LITERT_INTEGERS: ("litert_torch", "ai_edge_litert", "ai_edge_quantizer"),
}


def check_formats(formats: Sequence[str]) -> tuple[str, ...]:
    """The formats, each once.

    Raises:
      ConfigError: a format is unknown, none is given, or a library that a format needs is not installed.
    """
    known = (*WRITERS, *FURTHER)
    for name in formats:
        if name not in known:
            raise ConfigError(f"--format: found {name!r}, expected some of {','.join(known)}")
        needed = _NEEDED.get(name) or _EXTRA.get(name, ())
        missing = [library for library in needed if importlib.util.find_spec(library) is None]
        if missing:
            names = " ".join(library.replace("_", "-") for library in missing)
            how = names if name in _EXTRA else "-r requirements.txt"
            raise ConfigError(
                f"--format {name}: {', '.join(missing)} not installed: pip install {how}, or leave the format out"
            )
    if not formats:
        raise ConfigError(f"--format: found nothing, expected some of {','.join(known)}")
    return tuple(dict.fromkeys(formats))


def onnx_nodes(path: pathlib.Path) -> dict[str, int]:
    """How often each operator occurs in an ONNX file."""
    import onnx

    counts: dict[str, int] = {}
    for node in onnx.load(path, load_external_data=False).graph.node:
        counts[node.op_type] = counts.get(node.op_type, 0) + 1
    return counts
