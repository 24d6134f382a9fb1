"""Once-for-All's released supernets: each spelling of the names is read, and every tensor is accounted for."""

import json
import re

import jax
import numpy as np
import pytest
import torch
from ofa_cases import SPACES, state_dict, weights
from tiny import flat

from bignas_jax.config.options import Options
from bignas_jax.config.recipes import load_recipe
from bignas_jax.errors import WeightsError
from bignas_jax.interop.imports.bignas_names import account, read_state_dict, released_name
from bignas_jax.interop.imports.import_torch import import_checkpoint, table
from bignas_jax.nets.slicing import param_shapes
from bignas_jax.runs.checkpoint import Checkpoints

NAME = "ofa_mbv3_w1.0"
SPELLINGS = {
    "released": lambda name: name,
    "current": lambda name: name.replace(".mobile_inverted_conv.", ".conv."),
    "static": lambda name: re.sub(r"\b(conv|bn|linear)\.\1\b", r"\1", name),
    "doubled": lambda name: re.sub(r"(?<!\bbn\.)\b(bn|linear)\.(?!bn|linear)", r"\1.\1.", name),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("net, count", [(NAME, 411), ("ofa_resnet50", 307)])
def test_each_spelling_gives_the_same_weights(net, count, spelling):
    found = {released_name(SPELLINGS[spelling](name)): array for name, array in state_dict(net).items()}
    assert len(found) == count
    space = SPACES[net]
    held = account(space, 1000, {name: array.shape for name, array in found.items()})
    assert held.fits and not held.idle
    params, statistics = read_state_dict(space, found)
    expected, stored = weights(net)
    expected = flat(expected)
    for name, array in flat(params).items():
        np.testing.assert_array_equal(array, expected[name], err_msg=name)
    assert statistics.keys() == stored.keys() == {n for la in space.layout(space.biggest) for n in la.statistics()}


@pytest.mark.parametrize("name", ["ofa_mbv3_w1.0", "ofa_proxyless_w1.3", "ofa_resnet50"])
def test_every_parameter_has_the_shape_of_the_supernets(name):
    params = jax.tree.map(np.shape, weights(name)[0], is_leaf=lambda a: isinstance(a, np.ndarray))
    assert params == jax.tree.map(lambda s: s.shape, param_shapes(SPACES[name], 1000))


def test_a_tensor_that_is_missing_is_named():
    shapes = {name: array.shape for name, array in state_dict(NAME).items()}
    lost = shapes.pop("blocks.4.mobile_inverted_conv.depth_conv.conv.7to5_matrix")
    held = account(SPACES[NAME], 1000, shapes)
    assert held.missing == {"blocks.4.mobile_inverted_conv.depth_conv.conv.7to5_matrix": lost}


def test_a_released_file_becomes_a_run(tmp_path):
    tensors = {SPELLINGS["current"](name): torch.tensor(array) for name, array in state_dict(NAME).items()}
    tensors["first_conv.bn.num_batches_tracked"] = torch.tensor(5)
    torch.save({"state_dict": tensors}, tmp_path / "ofa.pth")
    options = Options.of(load_recipe("configs/ofa_mbv3.py"))
    result = import_checkpoint(options, tmp_path / "run", tmp_path / "ofa.pth")
    assert result.params == 7678880 and sum(result.tensors.values()) == 411
    assert result.ignored == {"counters (num_batches_tracked)": 1}
    assert "566.17" in table(result, options) and "41.48" in table(result, options)
    assert json.loads((tmp_path / "run" / "config.json").read_text())["space"]["family"] == "ofa"
    assert Checkpoints(tmp_path / "run").newest() == 0

    other = Options.of(load_recipe("configs/ofa_mbv3_w12.py"))
    with pytest.raises(WeightsError, match="are those of --config configs/ofa_mbv3.py"):
        import_checkpoint(other, tmp_path / "other", tmp_path / "ofa.pth")
    assert not (tmp_path / "other").exists()
