"""Once-for-All's mobile spaces: their costs against its own counter's, what a step computes, and its own form."""

import dataclasses
import json

import numpy as np
import pytest
from ofa_cases import CASES, RECIPES, SPACES

from bignas_jax.programs.buckets import shared
from bignas_jax.spaces.architecture import Architecture
from bignas_jax.spaces.cost import count
from bignas_jax.spaces.naming import read_architectures
from bignas_jax.spaces.ofa import OfaSpace
from bignas_jax.spaces.registry import load_space, space_of
from bignas_jax.step.members.registry import make_members
from bignas_jax.step.recipe import Recipe

# Millions of multiply-adds at 128, 160 and 224, and parameters, of architectures with one kernel, expansion and depth.
UNIFORM = {
    "ofa_mbv3_w1.0": {
        (3, 3, 2): ((41.476, 63.241, 121.279), 3410792),
        (5, 4, 3): ((84.100, 129.549, 250.747), 4551792),
        (7, 6, 4): ((188.248, 291.318, 566.171), 7664760),
    },
    "ofa_mbv3_w1.2": {
        (3, 3, 2): ((65.537, 100.321, 193.078), 4602456),
        (5, 4, 3): ((128.932, 198.948, 385.659), 6245312),
        (7, 6, 4): ((279.987, 433.564, 843.101), 10701632),
    },
    "ofa_proxyless_w1.3": {
        (3, 3, 2): ((87.823, 136.288, 265.526), 3718832),
        (5, 4, 3): ((160.133, 249.271, 486.974), 5053864),
        (7, 6, 4): ((329.254, 513.523, 1004.908), 7942056),
    },
}


def uniform(space, kernel, ratio, depth, resolution) -> Architecture:
    """The architecture with these values wherever there is a choice."""
    wanted = {"kernel_size": kernel, "expand_ratio": ratio, "depth": depth, "resolution": resolution}
    return space.at([
        choice.values.index(wanted[choice.kind]) if len(choice) > 1 else 0 for choice in space.choices
    ])  # fmt: skip


@pytest.mark.parametrize("name", UNIFORM)
def test_costs_are_those_of_its_own_counter(name):
    space = SPACES[name]
    for (kernel, ratio, depth), (millions, params) in UNIFORM[name].items():
        for resolution, expected in zip((128, 160, 224), millions, strict=True):
            cost = count(space, uniform(space, kernel, ratio, depth, resolution), 1000)
            assert round(cost.macs / 1e6, 3) == expected and cost.params == params


@pytest.mark.parametrize("name", SPACES)
def test_recorded_slices_cost_exactly_as_much(name):
    space = SPACES[name]
    for case in CASES[name].values():
        cost = count(space, space.read(case["arch"]), 1000)
        assert (cost.macs, cost.params) == (case["macs"], case["params"])


@pytest.mark.parametrize("name", SPACES)
def test_a_step_computes_little_more_than_its_slices_in_few_programs(name):
    space, rng = SPACES[name], np.random.default_rng(0)
    drawn = [space.sample(rng) for _ in range(40)]
    ends = sum(count(space, arch, 1000).macs for arch in (space.biggest, space.smallest))
    exact = ends + 2 * np.mean([count(space, arch, 1000).macs for arch in drawn])
    run = ends + 2 * np.mean([shared(space, arch.resolution).executed(space, arch, 1000) for arch in drawn])
    assert run / exact <= 1.10
    assert len(set(make_members(space, Recipe()).programs(space))) + 1 <= 12  # and the update


def test_blocks_differ_from_bignas_where_once_for_all_does():
    space = SPACES["ofa_mbv3_w1.0"]
    blocks = [layer for layer in space.layout(space.biggest) if layer.stage is not None]
    assert [layer.shortcut is not None for layer in blocks] == [True, *[False, True, True, True] * 5]
    assert not any(layer.shortcut.elastic for layer in blocks if layer.shortcut)
    by_stage = [(block.convs[0].activation, block.convs[-2].squeeze > 0) for block in blocks[1::4]]
    assert by_stage == [("relu", False), ("relu", True), ("h_swish", False), ("h_swish", True), ("h_swish", True)]
    assert {conv.transforms for block in blocks[1:] for conv in block.convs if conv.depthwise} == {(5, 3)}
    proxyless = SPACES["ofa_proxyless_w1.3"]
    convs = [conv for layer in proxyless.layout(proxyless.biggest) for conv in layer.convs]
    assert {conv.epsilon for conv in convs if conv.norm} == {1e-3}
    assert {conv.activation for conv in convs} == {"relu6", "identity"} and not any(conv.squeeze for conv in convs)
    assert not any(conv.zero_scale for conv in convs)


def test_its_matrices_belong_to_the_supernet_alone():
    space = SPACES["ofa_mbv3_w1.0"]
    tensors = [weight for layer in space.layout(space.biggest, 1000) for weight in layer.weights()]
    assert sum(np.prod(weight.shape) for weight in tensors) == 7678880  # as Once-for-All's own supernet
    alone = space.restricted(only=space.smallest)
    names = [weight.name for layer in alone.layout(alone.biggest) for weight in layer.weights()]
    assert not [name for name in names if "matrix" in name]


@pytest.mark.parametrize("name", UNIFORM)
def test_it_is_written_and_read_as_plain_values(name):
    space = SPACES[name]
    assert space_of(space.to_dict()) == space and space.to_dict()["family"] == "ofa"
    phase = space.restricted(largest={"depth": 1, "expand_ratio": 2})
    assert isinstance(phase, OfaSpace) and phase.biggest == space.biggest and phase.smallest.depth[1:6] == (4,) * 5


@pytest.mark.parametrize("field, value, words", [
    ("epsilon", 0, "space.epsilon: found 0, expected a number > 0"),
    ("kernel_transforms", 1, "space.kernel_transforms: found 1, expected True or False"),
    ("activation", "gelu", "space.activation: found 'gelu', expected one of"),
])
def test_what_cannot_be_is_named(field, value, words):
    config = RECIPES["ofa_mbv3_w1.0"].get_config()
    config.space = config.space.to_dict() | {field: value}
    with pytest.raises(ValueError, match=words):
        load_space(config)


def test_an_unknown_activation_of_a_stage_is_named():
    stage = SPACES["ofa_mbv3_w1.0"].stages[1]
    with pytest.raises(ValueError, match="space.stages.mb1.activation: found 'gelu', expected one of swish"):
        dataclasses.replace(stage, activation="gelu")


def test_its_own_form_is_read():
    space = SPACES["ofa_mbv3_w1.0"]
    assert space.read(CASES["ofa_mbv3_w1.0"]["max"]["arch"]) == space.biggest
    # A single value goes to all blocks or stages; entries beyond the depth do nothing.
    short = {"ks": 5, "e": 4, "d": [2, 3, 4, 2, 3], "r": [160]}
    arch = space.read(short)
    assert arch.depth == (1, 2, 3, 4, 2, 3) and arch.kernel_size == (3, 5, 5, 5, 5, 5) and arch.resolution == 160
    assert space.read({"wid": None, **short}) == arch
    listed = short | {"ks": [5, 5, 3, 3] + [5] * 16}
    assert space.read(listed) == arch
    assert space.read(arch.to_dict()) == arch
    assert read_architectures(space, [json.dumps(short)]) == {"given1": arch}


@pytest.mark.parametrize("change, words", [
    ({"ks": [3] * 19}, "ks: found 19 entries, expected 20"), ({"d": [2] * 6}, "d: found 6 entries, expected 5"),
    ({"e": None}, "e: found None"), ({"d": [0] * 5}, r"depth\[1\]: found 0"), ({"x": 1}, "unknown keys x"),
    ({"r": [128, 160]}, "r: found 2 entries, expected 1"), ({"ks": ["3"] * 20}, "ks: found '3'"),
])
def test_a_form_that_cannot_be_is_named(change, words):
    with pytest.raises(ValueError, match=words):
        SPACES["ofa_mbv3_w1.0"].read({"ks": 3, "e": 3, "d": 2, "r": 128} | change)


def test_a_form_that_lacks_a_key_is_named():
    with pytest.raises(ValueError, match="missing keys r"):
        SPACES["ofa_mbv3_w1.0"].read({"ks": 3, "e": 3, "d": 2})
