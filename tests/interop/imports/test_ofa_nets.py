"""Once-for-All's specialised networks: what its code computes of a slice is what the imported network computes."""

import json
import re

import numpy as np
import pytest
import torch
from ofa_cases import CASES, LOGITS, SPACES, images, weights
from tiny import relative_error

from bignas_jax.config.files import load_run_options
from bignas_jax.config.options import Options
from bignas_jax.config.recipes import load_recipe
from bignas_jax.errors import WeightsError
from bignas_jax.interop.exports.tensors import tensors
from bignas_jax.interop.imports.bignas_names import read_state_dict
from bignas_jax.interop.imports.import_torch import import_checkpoint
from bignas_jax.interop.imports.ofa_nets import is_folder, specialised
from bignas_jax.interop.imports.torch_file import read_checkpoint, to_float32
from bignas_jax.nets.child import forward, take
from bignas_jax.runs.checkpoint import Checkpoints
from bignas_jax.spaces.registry import space_of

NAMES = {"ofa_mbv3_w1.0": "MobileNetV3", "ofa_proxyless_w1.3": "ProxylessNASNets"}
PARTS = {"expand": "inverted_bottleneck", "depthwise": "depth_conv", "project": "point_linear"}


def static_name(name):
    """Once-for-All's name in a static network of a tensor of an exported child."""
    name = re.sub(r"^stem\.", "first_conv.", name)
    name = re.sub(r"^head\.", "final_expand_layer.", name)
    name = re.sub(r"^head_project\.weight", "feature_mix_layer.conv.weight", name)
    name = re.sub(r"^classifier\.", "classifier.linear.", name)
    name = re.sub(r"\.squeeze_excite\.(\w+)\.", r".depthwise.se.fc.\1.", name).replace(".norm.", ".bn.")
    return re.sub(r"^(blocks\.\d+)\.(\w+)", lambda m: f"{m[1]}.mobile_inverted_conv.{PARTS[m[2]]}", name)


def write_folder(folder, name):
    """A slice of the seeded supernet as a specialised network, and its child."""
    space, (params, stored) = SPACES[name], weights(name)
    arch = space.read(CASES[name]["r0"]["arch"])
    child = take(space, params, stored, arch)
    found = {static_name(n): torch.from_numpy(a) for n, a in tensors(child).items()}
    if name == "ofa_proxyless_w1.3":
        found = {n.replace("final_expand_layer", "feature_mix_layer"): a for n, a in found.items()}
    torch.save({"state_dict": found}, folder / "init")
    blocks = []
    for layer in child.layout:
        if layer.stage is not None:
            depthwise = layer.convs[-2]
            conv = dict(
                name="MBInvertedConvLayer", in_channels=layer.in_width, out_channels=layer.out_width,
                kernel_size=depthwise.kernel_size, stride=depthwise.stride, mid_channels=depthwise.in_width,
                expand_ratio=round(depthwise.in_width / layer.in_width), act_func=depthwise.activation,
                use_se=depthwise.squeeze > 0,
            )  # fmt: skip
            shortcut = {"name": "IdentityLayer"} if layer.shortcut else None
            blocks.append(dict(name="MobileInvertedResidualBlock", mobile_inverted_conv=conv, shortcut=shortcut))
    stem, net = child.layout[0].convs[0], {"name": NAMES[name], "blocks": blocks}
    net["bn"] = {"momentum": 0.1, "eps": stem.epsilon}
    net["first_conv"] = dict(name="ConvLayer", out_channels=stem.out_width, stride=2, act_func=stem.activation)
    net["final_expand_layer"] = {"name": "ConvLayer"} if name == "ofa_mbv3_w1.0" else None
    (folder / "net.config").write_text(json.dumps(net))
    (folder / "run.config").write_text(json.dumps({"image_size": arch.resolution}))
    return arch


@pytest.mark.parametrize("name, recipe", [("ofa_mbv3_w1.0", "ofa_mbv3"), ("ofa_proxyless_w1.3", "ofa_mbv3")])
def test_a_specialised_network_computes_what_its_code_does(name, recipe, tmp_path):
    folder = tmp_path / "net"
    folder.mkdir()
    arch = write_folder(folder, name)
    assert is_folder(folder) and not is_folder(folder / "init")
    options, file = specialised(Options.of(load_recipe(f"configs/{recipe}.py")), folder)
    result = import_checkpoint(options, tmp_path / "run", file)
    assert result.params == CASES[name]["r0"]["params"] and not result.ignored
    options = load_run_options(tmp_path / "run" / "config.json")
    space = space_of(options.space)
    assert space.size == 1 and space.biggest == arch
    assert (options.data.image_size, options.data.eval_resize) == (160, 183)
    assert Checkpoints(tmp_path / "run").newest() == 0
    params, stored = read_state_dict(space, to_float32(file, read_checkpoint(file).tensors))
    logits = forward(take(space, params, stored, arch))(images(0, 2, 160))
    assert relative_error(np.asarray(logits)[:, :200], LOGITS[f"{name}/eval_r0"]) < 1e-4


@pytest.mark.parametrize("file, change, words", [
    ("net.config", lambda net: net["blocks"][1]["mobile_inverted_conv"].update(mid_channels=8), r"blocks\[1\]: found"),
    ("net.config", lambda net: net["blocks"][2]["mobile_inverted_conv"].update(act_func="relu6"), "act_func: found"),
    ("net.config", lambda net: net.pop("bn"), "KeyError: 'bn'"),
    ("run.config", lambda run: run.update(image_size="224"), "image_size: found '224'"),
    ("run.config", lambda run: run.clear(), "run.config: cannot read it .No such file"),
])  # fmt: skip
def test_a_folder_that_is_none_is_named(file, change, words, tmp_path):
    write_folder(tmp_path, "ofa_mbv3_w1.0")
    values = json.loads((tmp_path / file).read_text())
    change(values)
    (tmp_path / file).write_text(json.dumps(values))
    if not values:
        (tmp_path / file).unlink()
    with pytest.raises(WeightsError, match=words):
        specialised(Options.of(load_recipe("configs/ofa_mbv3.py")), tmp_path)
