"""Files of each format, run back in processes that cannot import this package, and what they hold."""

import ast
import json

import jax
import numpy as np
import onnx
import pytest
import torch
from reference_torch import load_slice
from safetensors import safe_open
from tiny import relative_error
from torch import nn

from bignas_jax.errors import ConfigError, ExportError
from bignas_jax.interop.exports import formats, run_back
from bignas_jax.interop.exports.onnx_graph import onnx_model
from bignas_jax.interop.exports.tensors import describe, tensors
from bignas_jax.nets.child import Child, fold, take
from bignas_jax.nets.slicing import single
from bignas_jax.programs.weights import build
from bignas_jax.spaces.mobilenet import SearchSpace
from configs import bignas

ABOUT = {"name": "MIN", "macs": "12", "architecture": "{}", "class_names": json.dumps(["cat", "dög"])}
PLAIN = {"Conv", "Gemm", "Sigmoid", "Mul", "Add", "Relu", "HardSwish", "HardSigmoid", "GlobalAveragePool",
         "AveragePool", "Flatten"}  # fmt: skip


@pytest.fixture(scope="module", params=[("tiny", True), ("tiny_v3", False), ("tiny_relu", True)],
                ids=["swish, folded", "v3 head, h-swish, not folded", "relu, folded"])  # fmt: skip
def written(request, tmp_path_factory):
    """A child in all formats, its images, and what the independent PyTorch code makes of them."""
    name, folded = request.param
    tiny = request.getfixturevalue(name)
    arch = tiny.space.biggest
    child = take(tiny.space, tiny.params, tiny.statistics, arch)
    child = fold(child) if folded else child
    folder = tmp_path_factory.mktemp("child")
    for write in formats.WRITERS.values():
        write(child, folder, 0, ABOUT)
    reference = load_slice(tiny.child(arch)[0], tiny.tensors).statistics("stored")
    images = np.random.default_rng(0).standard_normal((5, 3, arch.resolution, arch.resolution)).astype(np.float32)
    with torch.no_grad():
        return child, folder, images, reference, reference(torch.tensor(images)).numpy()


@pytest.mark.parametrize("name", formats.WRITERS)
def test_the_file_alone_gives_the_logits_at_any_batch(written, name):
    child, folder, images, _, expected = written
    # In batches of 2, 2 and 1.
    assert relative_error(run_back.RUNNERS[name](folder, images, 2), expected) < 1e-5


def test_the_onnx_graph_is_plain(written):
    child, folder, _, reference, _ = written
    nodes = formats.onnx_nodes(folder / "child.onnx")
    assert set(nodes) <= PLAIN | ({"BatchNormalization"} if not child.folded else set())

    def layers(kind):
        return sum(isinstance(module, kind) for module in reference.modules())

    assert nodes["Conv"] == layers(nn.Conv2d) and nodes["Gemm"] == layers(nn.Linear) == 1
    assert nodes.get("BatchNormalization", 0) == (0 if child.folded else layers(nn.BatchNorm2d))
    assert nodes["Add"] == sum(layer["shortcut"] is not None for layer in describe(child)["layers"])


def test_the_smallest_bignas_child_has_as_few_nodes_as_torch_onnx_makes():
    """185, counted once in what torch.onnx (2.14.1, dynamo) exported of the folded PyTorch child."""
    space = SearchSpace.from_config(bignas.get_config().space)
    own = single(space, space.smallest)
    shapes = jax.eval_shape(lambda: build(own, 1000)[1])
    params = jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), shapes)
    child = Child(own, 1000, params, statistics=None)  # as folded: each norm's bias is there
    model = onnx_model(child, tensors(child), 0, {})
    assert len(model.graph.node) == 185


@pytest.mark.parametrize("batch", [0, 4])
def test_the_batch_is_open_or_fixed(tiny, batch):
    child = fold(take(tiny.space, tiny.params, tiny.statistics, tiny.space.smallest))
    model = onnx_model(child, tensors(child), batch, {})
    for value in (*model.graph.input, *model.graph.output):
        first = value.type.tensor_type.shape.dim[0]
        assert (first.dim_value, first.dim_param) == ((4, "") if batch else (0, "batch"))


def test_a_fixed_batch_runs(tiny, tmp_path):
    child = fold(take(tiny.space, tiny.params, tiny.statistics, tiny.space.smallest))
    side = child.arch.resolution
    formats.write_stablehlo(child, tmp_path, 4, ABOUT)
    exported = jax.export.deserialize(bytearray((tmp_path / "child.stablehlo").read_bytes()))
    assert exported.in_avals[0].shape == (4, side, side, 3) and exported.platforms == ("cpu", "cuda")


def test_the_files_tell_what_they_are(written):
    child, folder, *_ = written
    model = onnx.load(folder / "child.onnx")
    assert {entry.key: entry.value for entry in model.metadata_props} == ABOUT
    with safe_open(folder / "child.safetensors", "np") as file:
        metadata = file.metadata()
        assert set(file.keys()) == set(tensors(child))
    assert json.loads(metadata["class_names"]) == ["cat", "dög"]
    assert json.loads(metadata["description"]) == describe(child)


def test_the_pytorch_file_is_small_and_imports_torch_alone(written):
    _, folder, *_ = written
    source = (folder / "child.py").read_text()
    imports = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {node.module if isinstance(node, ast.ImportFrom) else node.names[0].name for node in imports}
    assert names == {"os", "torch", "torch.nn.functional"}
    assert len(source.splitlines()) < 220
    state = torch.load(folder / "child.pt", weights_only=True)
    assert all(isinstance(value, torch.Tensor) for value in state.values())


@pytest.mark.parametrize("name", ["onnx", "stablehlo", "torch"])
def test_a_file_that_does_not_run_is_an_error_in_one_line(tmp_path, name):
    for file in formats.FILES:
        (tmp_path / file).write_bytes(b"nothing")
    with pytest.raises(ExportError, match=f"the {name} file was written but does not run: ") as caught:
        run_back.RUNNERS[name](tmp_path, np.zeros((1, 3, 8, 8), np.float32), 1)
    assert "\n" not in str(caught.value)


def test_runners_cannot_import_this_package(tmp_path):
    for name in ("child.py", "child.pt"):
        (tmp_path / name).write_text("import bignas_jax\n")
    with pytest.raises(ExportError, match="import of bignas_jax halted"):
        run_back.RUNNERS["torch"](tmp_path, np.zeros((1, 3, 8, 8), np.float32), 1)


def test_formats_are_checked(monkeypatch):
    assert formats.check_formats(["torch", "onnx", "torch"]) == ("torch", "onnx")
    with pytest.raises(ConfigError, match="--format: found 'tflite', expected some of onnx,stablehlo"):
        formats.check_formats(["onnx", "tflite"])
    with pytest.raises(ConfigError, match="--format: found nothing"):
        formats.check_formats([])
    monkeypatch.setattr(formats.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="--format safetensors: safetensors not installed"):
        formats.check_formats(["safetensors"])
