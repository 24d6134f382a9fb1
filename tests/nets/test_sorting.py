"""Sorted channels: the same function of the whole network and of protected slices, in PyTorch; most important first.

The order of Once-for-All's own code is compared with, too.
"""

import dataclasses

import jax
import numpy as np
import pytest
import torch
from flax import nnx
from ofa_cases import SPACES, weights
from tiny import disturbed, run_child

from bignas_jax.interop.imports.bignas_names import read_state_dict
from bignas_jax.nets.sorting import sort_channels, sort_for
from bignas_jax.spaces.nesting import middle_widths
from bignas_jax.spaces.registry import space_of
from configs import ofa_resnet50


def leaves_of(tiny, params):
    """PyTorch's tensors of these weights: each is found by the numbers that stand in its place."""
    numbered, count = {}, 0
    for name, tensor in tiny.tensors.items():
        numbered[name] = np.arange(count, count + tensor.size, dtype=np.float64).reshape(tensor.shape)
        count += tensor.size
    where = read_state_dict(tiny.space, numbered)[0]
    values = np.zeros(count, np.float32)
    for place, value in zip(jax.tree.leaves(where), jax.tree.leaves(params), strict=True):
        values[np.asarray(place).astype(int)] = value
    return {name: torch.tensor(values[place.astype(int)]) for name, place in numbered.items()}


def logits(tiny, params, arch):
    images = np.random.default_rng(0).normal(size=(4, arch.resolution, arch.resolution, 3)).astype(np.float32)
    with torch.no_grad():
        return run_child(tiny.child(arch)[0].statistics("batch"), leaves_of(tiny, params), images).numpy()


def test_the_biggest_and_protected_slices_keep_their_functions(tiny):
    biggest = tiny.space.biggest
    narrower = dataclasses.replace(biggest, expand_ratio=(1, 2, 3))
    free, bound = sort_channels(tiny.space, tiny.params), sort_channels(tiny.space, tiny.params, [narrower])
    for params in (free, bound):
        np.testing.assert_allclose(logits(tiny, params, biggest), logits(tiny, tiny.params, biggest), atol=2e-4)
    before = logits(tiny, tiny.params, narrower)
    np.testing.assert_allclose(logits(tiny, bound, narrower), before, atol=2e-4)
    assert np.abs(logits(tiny, free, narrower) - before).max() > 1e-2


def test_the_most_important_channels_come_first_and_none_is_lost(tiny):
    found, changed = sort_channels(tiny.space, tiny.params), 0
    for block, old in zip(found["blocks"].values(), tiny.params["blocks"].values(), strict=True):
        if "expand" in block:
            norms = [np.abs(params["project"]["kernel"]).sum(-1) for params in (block, old)]
            assert np.all(np.diff(norms[0]) <= 0)
            np.testing.assert_array_equal(norms[0], np.sort(norms[1])[::-1])
            changed += not np.array_equal(*norms)
            if "squeeze_excite" in block:
                assert np.all(np.diff(np.abs(block["squeeze_excite"]["expand_kernel"]).sum(-1)) <= 1e-6)
    assert changed >= 2


# Where the channels at the first ten positions of block 7 come from, by mit-han-lab/once-for-all at f03b267: sorted
# before the first expansion phase, and before the second one, when the 160 channels of ratio 4 are trained already.
FIRST = [99, 110, 25, 198, 185, 183, 170, 184, 51, 203]
SECOND = [99, 110, 25, 51, 81, 92, 1, 3, 134, 62]
UNITS = [57, 51, 53, 26, 61, 8, 30, 29, 35, 56]  # of its squeeze and excitation


def places(found, before):
    """The position in `before` of each of the first ten rows of `found`."""
    return [int(np.flatnonzero((before == row).all(-1))[0]) for row in found[:10]]


@pytest.mark.parametrize("ratios, expected", [(1, FIRST), (2, SECOND)])
def test_the_order_is_once_for_alls(ratios, expected):
    space, (params, _) = SPACES["ofa_mbv3_w1.0"], weights("ofa_mbv3_w1.0")
    block = params["blocks"][7]
    found = sort_for(space, params, space.restricted(largest={"expand_ratio": ratios}))["blocks"][7]
    assert places(found["project"]["kernel"], block["project"]["kernel"]) == expected
    squeeze, before = found["squeeze_excite"], block["squeeze_excite"]
    np.testing.assert_array_equal(found["depthwise_norm"]["scale"][:10], block["depthwise_norm"]["scale"][expected])
    np.testing.assert_array_equal(squeeze["expand_bias"][:10], before["expand_bias"][expected])
    if ratios == 1:  # before the second phase, ours keeps trained units in front, and its does not
        np.testing.assert_array_equal(squeeze["reduce_bias"][:10], before["reduce_bias"][UNITS])


def test_nothing_is_sorted_where_no_block_gets_narrower():
    space, (params, _) = SPACES["ofa_proxyless_w1.3"], weights("ofa_proxyless_w1.3")
    assert sort_for(space, params, space.restricted(largest={"depth": 1, "kernel_size": 1})) is params


def tiny_resnet():
    space = ofa_resnet50.get_config().space.to_dict()
    stages = {name: dict(stage, depth=(1,), width=(16, 24)) for name, stage in list(space["stages"].items())[:3]}
    for name in ("rb1", "rb2"):
        stages[name].update(width=(32, 64), expand_ratio=(0.25, 0.5, 0.75))
    return space_of(space | dict(resolution=(16,), stem_width=(8,), stages=stages))


def test_a_bottleneck_is_sorted_before_and_behind_its_middle():
    space = tiny_resnet()
    net, params = disturbed(space)
    assert middle_widths(space)["blocks", 2] == {8, 16, 24, 32, 48}  # 0.25, 0.5 and 0.75 times 32 and 64
    before = space.restricted(largest={"expand_ratio": 2, "width": 1})
    free, bound = sort_channels(space, params), sort_for(space, params, before)
    block = free["blocks"][2]
    sums = np.abs(block["expand"]["kernel"]).sum(-1), np.abs(block["middle"]["kernel"]).sum((0, 1, 3))
    assert all(np.all(np.diff(values) <= 1e-5) for values in sums)
    images = np.random.default_rng(0).normal(size=(4, 16, 16, 3)).astype(np.float32)

    def logits(params, arch):
        return np.asarray(nnx.merge(net, params)(images, arch)[0])

    trained = dataclasses.replace(space.biggest, expand_ratio=(1, 0.5, 0.5))
    for arch in (space.biggest, trained):
        np.testing.assert_allclose(logits(bound, arch), logits(params, arch), atol=2e-4)
    np.testing.assert_allclose(logits(free, space.biggest), logits(params, space.biggest), atol=2e-4)
    assert np.abs(logits(free, trained) - logits(params, trained)).max() > 1e-2
