"""Sorted channels: the same function of the whole network and of protected slices, in PyTorch; most important first."""

import dataclasses

import jax
import numpy as np
import torch
from tiny import run_child

from bignas_jax.interop.imports.bignas_names import read_state_dict
from bignas_jax.nets.sorting import sort_channels


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
