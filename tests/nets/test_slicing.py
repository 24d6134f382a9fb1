"""A child's own weights against the supernet run at the child, and against PyTorch's slice of the same tensors."""

import dataclasses
from functools import partial

import jax
import numpy as np
import pytest
import torch
from flax import nnx
from reference_torch import Child, load_slice
from tiny import CLASSES, flat, graphdef, relative_error

from bignas_jax.nets.mode import Mode
from bignas_jax.nets.sizes import sizes
from bignas_jax.nets.slicing import single, slice_params, slice_statistics
from bignas_jax.spaces.cost import count


@partial(jax.jit, static_argnames=("net", "arch"))
def run(net, arch, params, images, statistics=None, sampled=None):
    """Logits and statistics of the batch (of `statistics`, where given)."""
    return nnx.merge(net, params)(images, arch, sampled, Mode(statistics=statistics, collect=True))


def images_of(arch, count=4):
    rng = np.random.default_rng(0)
    return rng.standard_normal((count, arch.resolution, arch.resolution, 3)).astype(np.float32)


def drawn(space, count):
    """The smallest and random ones."""
    rng = np.random.default_rng(2)
    return [space.smallest, *(space.sample(rng) for _ in range(count))]


@pytest.mark.parametrize("variant", ["tiny", "tiny_v3", "tiny_relu"])
def test_a_slice_is_the_supernet_at_its_architecture(variant, request):
    made = request.getfixturevalue(variant)
    for arch in drawn(made.space, 1):
        space, params = single(made.space, arch), slice_params(made.space, made.params, arch)
        images = images_of(arch)
        expected, _ = run(made.graphdef, arch, made.params, images)
        found, _ = run(graphdef(space, CLASSES), arch, params, images)
        assert relative_error(found, expected) < 1e-6
        torch_child = load_slice(Child(made.space, arch, CLASSES), made.tensors).statistics("batch")
        theirs = torch_child(torch.tensor(images.transpose(0, 3, 1, 2)))
        assert relative_error(found, theirs.detach()) < 1e-4


def test_a_slice_holds_what_the_child_costs_and_the_shortcuts_that_it_skips(tiny):
    for arch in [*drawn(tiny.space, 8), tiny.space.biggest]:
        space, params = single(tiny.space, arch), slice_params(tiny.space, tiny.params, arch)
        assert space.biggest == space.smallest == arch and space.size == 1
        unused = sum(
            block["shortcut"]["conv"]["kernel"].size
            for block in params["blocks"].values()
            if "shortcut" in block and np.equal(*block["shortcut"]["conv"]["kernel"].shape)
        )
        held = sum(a.size for a in flat(params).values())
        assert held - unused == count(tiny.space, arch, CLASSES).params == count(space, arch, CLASSES).params


def test_statistics_of_a_masked_run_are_the_slice_s(tiny):
    arch = drawn(tiny.space, 1)[-1]
    bucket = dataclasses.replace(tiny.space.biggest, resolution=arch.resolution)
    images = images_of(arch)
    _, masked = run(tiny.graphdef, bucket, tiny.params, images, sampled=sizes(tiny.space, bucket, arch))
    statistics = slice_statistics(tiny.space, masked, arch)
    net, params = graphdef(single(tiny.space, arch), CLASSES), slice_params(tiny.space, tiny.params, arch)
    expected = run(net, arch, params, images)[1]
    assert statistics.keys() == expected.keys()
    for name, pair in expected.items():
        for ours, theirs in zip(statistics[name], pair, strict=True):
            assert relative_error(ours, theirs) < 1e-5, name
    ours, theirs = (run(net, arch, params, images, given)[0] for given in (statistics, expected))
    assert relative_error(ours, theirs) < 1e-5


def test_equal_entries_of_a_stage_are_one_and_unequal_ones_are_refused(tiny):
    biggest = tiny.space.biggest
    listed = dataclasses.replace(biggest, kernel_size=(3, (5, 5), 5), expand_ratio=((1, 1), 3, 4))
    assert single(tiny.space, listed) == single(tiny.space, biggest)
    mixed = dataclasses.replace(biggest, kernel_size=(3, (5, 3), 5))
    with pytest.raises(ValueError, match=r"kernel_size: found \(5, 3\), allowed 3, 5 \(one value for all blocks"):
        single(tiny.space, mixed)


def test_what_does_not_fit_is_refused(tiny, tiny_v3):
    outside = dataclasses.replace(tiny.space.biggest, width=(16, 16, 24, 40, 40))
    with pytest.raises(ValueError, match="stage mb3 width: found 40, allowed 24, 32"):
        slice_params(tiny.space, tiny.params, outside)
    with pytest.raises(ValueError, match="not those of this search space"):
        slice_params(tiny_v3.space, tiny.params, tiny_v3.space.biggest)
    small = slice_params(tiny.space, tiny.params, tiny.space.smallest)
    for missing in (tiny.space.biggest, dataclasses.replace(tiny.space.smallest, width=(16, 8, 16, 24, 32))):
        with pytest.raises(ValueError, match="not those of this search space"):
            slice_params(tiny.space, small, missing)
