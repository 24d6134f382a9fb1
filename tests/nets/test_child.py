"""A child's own weights against the slice that the independent PyTorch code takes, and folding against PyTorch's."""

import dataclasses

import jax
import numpy as np
import pytest
import torch
from reference_torch import load_slice
from tiny import assert_close, relative_error
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from bignas_jax.interop.exports import torch_child
from bignas_jax.interop.exports.tensors import describe, tensors
from bignas_jax.nets.child import fold, forward, take

SPACES = ("tiny", "tiny_v3", "tiny_relu")


def middle(space):
    return dataclasses.replace(space.biggest, resolution=20, width=(16, 8, 16, 32, 32), depth=(1, 2, 1),
                               kernel_size=(3, 3, 5))  # fmt: skip


def architectures(space):
    return {"smallest": space.smallest, "middle": middle(space), "biggest": space.biggest}


@pytest.fixture(params=[(name, kind) for name in SPACES for kind in ("smallest", "middle", "biggest")],
                ids=lambda pair: "-".join(pair))  # fmt: skip
def pair(request):
    """A child of ours, and the same in the independent PyTorch code, on stored statistics."""
    name, kind = request.param
    tiny = request.getfixturevalue(name)
    arch = architectures(tiny.space)[kind]
    reference = load_slice(tiny.child(arch)[0], tiny.tensors).statistics("stored")
    return take(tiny.space, tiny.params, tiny.statistics, arch), reference


def images(side, count=3):
    return np.random.default_rng(0).standard_normal((count, 3, side, side)).astype(np.float32)


def loaded(child):
    module = torch_child.Child(describe(child))
    module.load_state_dict({name: torch.from_numpy(array) for name, array in tensors(child).items()})
    return module


def test_the_weights_are_exactly_the_slice(pair):
    child, reference = pair

    def contents(arrays):
        return sorted((a.shape, a.tobytes()) for a in arrays)

    theirs = {name: a.numpy() for name, a in reference.state_dict().items() if not name.endswith("batches_tracked")}
    assert contents(tensors(child).values()) == contents(theirs.values())


@pytest.mark.parametrize("folded", [False, True])
def test_logits_are_those_of_the_slice(pair, folded):
    child, reference = pair
    x = images(child.arch.resolution)
    with torch.no_grad():
        expected = reference(torch.tensor(x)).numpy()
        if folded:
            child = fold(child)
        found = loaded(child)(torch.tensor(x)).numpy()
    assert relative_error(found, expected) < 1e-5
    assert relative_error(jax.jit(forward(child))(x.transpose(0, 2, 3, 1)), expected) < 1e-5


def test_folding_is_pytorchs(tiny):
    child = take(tiny.space, tiny.params, tiny.statistics, tiny.space.biggest)
    before = jax.tree.map(np.copy, child.params)
    unfolded, found = loaded(child), tensors(fold(child))
    assert_close(child.params, before, 0)  # the child itself stays as it was
    layers = {name: layer for name, layer in unfolded.named_modules() if isinstance(layer, torch_child.ConvNorm)}
    assert len(layers) == sum(isinstance(module, nn.BatchNorm2d) for module in unfolded.modules()) > 10
    for name, layer in layers.items():
        fused = fuse_conv_bn_eval(layer.conv, layer.norm)
        assert relative_error(found[f"{name}.conv.weight"], fused.weight.detach()) < 1e-6, name
        assert relative_error(found[f"{name}.conv.bias"], fused.bias.detach()) < 1e-5, name
    assert not any(".norm." in name for name in found)


def test_folding_twice_changes_nothing(tiny):
    once = fold(take(tiny.space, tiny.params, tiny.statistics, tiny.space.smallest))
    assert once.folded and fold(once) is once


def test_an_architecture_of_another_space_is_refused(tiny):
    arch = dataclasses.replace(tiny.space.biggest, width=(16, 16, 24, 40, 40))
    with pytest.raises(ValueError, match="mb3.*found 40, allowed 24, 32"):
        take(tiny.space, tiny.params, tiny.statistics, arch)
