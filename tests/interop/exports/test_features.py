"""Feature maps against the activations inside an independent PyTorch network, and docs/features.md as it stands."""

import re
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import onnxruntime
import pytest
import torch
from paths import ROOT
from reference_torch import load_slice
from tiny import CLASSES, relative_error

from bignas_jax.api.child import Child
from bignas_jax.errors import ConfigError
from bignas_jax.interop.exports import formats
from bignas_jax.interop.exports.onnx_graph import onnx_model
from bignas_jax.interop.exports.tensors import describe, tensors
from bignas_jax.interop.exports.torch_child import Child as TorchChild
from bignas_jax.nets.child import fold, take
from bignas_jax.spaces.layers import feature_layers
from bignas_jax.spaces.mobilenet import SearchSpace
from configs import attentive_nas, bignas, digits


@pytest.fixture(scope="module")
def known(tiny):
    """A child, images [B, 3, R, R], and the outputs of the blocks of the independent network at strides 4 and 8."""
    arch = tiny.space.biggest
    child = take(tiny.space, tiny.params, tiny.statistics, arch)
    reference = load_slice(tiny.child(arch)[0], tiny.tensors).statistics("stored")
    outputs = []
    for block in reference.blocks.values():
        block.register_forward_hook(lambda _module, _inputs, output: outputs.append(output.numpy()))
    images = np.random.default_rng(0).standard_normal((3, 3, arch.resolution, arch.resolution)).astype(np.float32)
    with torch.no_grad():
        reference(torch.tensor(images))
    # The stem halves the side, as the first blocks of the second and of the third stage do.
    before = np.cumsum(arch.depth)
    return child, images, {"stride4": outputs[before[1] - 1], "stride8": outputs[before[2] - 1]}


@pytest.mark.parametrize("folded", [True, False])
def test_pytorch_and_onnx_give_the_activations(known, folded):
    child, images, expected = known
    child = fold(child) if folded else child
    net = TorchChild(describe(child))
    net.load_state_dict({name: torch.from_numpy(a) for name, a in tensors(child).items()})
    with torch.no_grad():
        found = {name: a.numpy() for name, a in net.features(torch.tensor(images)).items()}
    model = onnx_model(child, tensors(child), 0, {}, features_only=True)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    by_onnx = dict(zip(names, session.run(None, {"images": images}), strict=True))
    assert list(found) == names == list(expected)
    for name, value in expected.items():
        assert relative_error(found[name], value) < 1e-5 and relative_error(by_onnx[name], value) < 1e-5
    assert [output.shape for output in session.get_outputs()][1][1:] == list(expected["stride8"].shape[1:])
    assert not any(tensor.name.startswith(("head", "classifier")) for tensor in model.graph.initializer)


def test_jax_gives_the_activations(known, tiny, tmp_path):
    child, images, expected = known
    data = SimpleNamespace(mean=(0.5,) * 3, std=(0.2,) * 3, eval_resize=12, image_size=11)
    model = SimpleNamespace(num_classes=CLASSES, dtype="float32")
    options, names = SimpleNamespace(data=data, model=model), [str(n) for n in range(CLASSES)]
    run = SimpleNamespace(num_classes=CLASSES, options=options, step=3, class_names=names)
    found = Child(run, child.space, child.params, child.statistics).features(np.moveaxis(images, 1, -1))
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert relative_error(np.moveaxis(found[name], -1, 1), value) < 1e-5
    ours = Child(run, child.space, child.params, child.statistics)
    path = ours.export("onnx", tmp_path / "child", images=0, features_only=True)["onnx"]
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (first, _) = session.run(None, {"images": images})
    assert relative_error(first, expected["stride4"]) < 1e-5
    with pytest.raises(ConfigError, match="found torch with features_only, expected onnx alone"):
        ours.export("torch", tmp_path / "child", images=0, features_only=True)


@pytest.mark.parametrize("recipe, strides", [(bignas, (4, 8, 16, 32)), (attentive_nas, (4, 8, 16, 32)), (digits, (4,))])
def test_the_strides_of_the_recipes(recipe, strides):
    space = SearchSpace.from_config(recipe.get_config().space)
    for arch in (space.biggest, space.smallest):
        found = feature_layers(space.layout(arch))
        assert list(found) == [f"stride{stride}" for stride in strides]
        for stride, layer in zip(strides, found.values(), strict=True):
            assert layer.convs[-1].side == -(-arch.resolution // stride) and layer.stage is not None


def test_the_detector_of_the_page_runs(known, tmp_path):
    child, _, _ = known
    formats.write_torch(fold(child), tmp_path, 0, {"name": "MAX", "macs": "1"})
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/features.md").read_text(), re.DOTALL)
    begin = "import sys\nsys.path.insert(0, '.')\nsys.modules['bignas_jax'] = None\n"
    done = subprocess.run(
        [sys.executable, "-I", "-c", begin + code], cwd=tmp_path, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip() == str(["loss_box_reg", "loss_classifier", "loss_objectness", "loss_rpn_box_reg"])
