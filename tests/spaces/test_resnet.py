"""Once-for-All's ResNet50D space: its costs against its own counter's, its own form, and what cannot be."""

import pytest
from ofa_cases import CASES, SPACES

from bignas_jax.spaces.cost import count
from bignas_jax.spaces.registry import space_of
from bignas_jax.spaces.resnet import ResNetSpace

NAME = "ofa_resnet50"
SPACE = SPACES[NAME]

# Entry of the stem, of the stages, ratio, position of the width: millions of multiply-adds at 224 and 128, parameters.
UNIFORM = {
    (0, 0, 0.2, 0): (962.192, 315.080, 6539280),
    (2, 1, 0.25, 1): (2550.192, 833.820, 15866000),
    (2, 2, 0.35, 2): (7491.644, 2447.630, 48105992),
    (0, 2, 0.25, 2): (4649.951, 1519.731, 30099976),
}


@pytest.mark.parametrize("case", UNIFORM)
def test_costs_are_those_of_its_own_counter(case):
    stem, depth, ratio, width = case
    for resolution, millions in zip((224, 128), UNIFORM[case], strict=False):
        arch = SPACE.read({"d": [stem] + [depth] * 4, "e": ratio, "w": width, "r": resolution})
        SPACE.check(arch)
        cost = count(SPACE, arch, 1000)
        assert round(cost.macs / 1e6, 3) == millions and cost.params == UNIFORM[case][2]


def test_it_is_written_and_read_as_plain_values():
    assert space_of(SPACE.to_dict()) == SPACE and SPACE.to_dict()["family"] == "resnet"
    arch = SPACE.read(CASES[NAME]["r0"]["arch"])
    assert SPACE.read(arch.to_dict()) == arch == SPACE.at(SPACE.indices(arch))
    alone = SPACE.restricted(only=arch)
    assert isinstance(alone, ResNetSpace) and alone.biggest == alone.smallest == arch
    assert count(alone, arch, 1000) == count(SPACE, arch, 1000)


def test_its_own_form_is_read():
    # A single d leaves the residual of the stem out, unless it is 2.
    single = SPACE.read({"d": 1, "e": 0.25, "w": 1, "r": [160]})
    assert single.width == (24, 48, 208, 408, 816, 1640) and single.depth == (1, 3, 3, 5, 3)
    assert single.expand_ratio == (1, 0.25, 0.25, 0.25, 0.25)
    assert SPACE.read({"d": 2, "e": 0.35, "w": 2, "r": 224}) == SPACE.biggest
    assert SPACE.read({"d": 0, "e": 0.2, "w": 0, "r": 128}) == SPACE.smallest


@pytest.mark.parametrize("change, words", [
    ({"e": [0.2] * 17}, "e: found 17 entries, expected 18"), ({"w": 3}, "w: found 3, expected a position from 0 to 2"),
    ({"w": [0.5] * 6}, "w: found 0.5, expected an integer"),
    ({"d": [0, -1, 0, 0, 0]}, "d: found -1, expected at least"),
    ({"ks": 3}, "unknown keys ks"), ({"e": ["x"] * 18}, "e: found 'x', expected a number"),
])
def test_a_form_that_cannot_be_is_named(change, words):
    with pytest.raises(ValueError, match=words):
        SPACE.read({"d": 0, "e": 0.2, "w": 0, "r": 128} | change)


def test_an_architecture_with_a_head_is_refused():
    values = SPACE.smallest.to_dict()
    values["width"].append(1280)
    assert "width: found 7 entries, expected 6: the space has no head" in SPACE.why_not(SPACE.read(values))


@pytest.mark.parametrize("stage, field, value, words", [
    ("rb1", "expand_ratio", (0.35, 0.2), "rb1.expand_ratio: found"), ("rb1", "stride", 3, "rb1.stride: found 3"),
    ("rb1", "kernel_size", (3, 5), "rb1.kernel_size: found"), ("rb0", "depth", (1, 2, 3), "rb0.depth: found"),
    ("rb0", "expand_ratio", (0.5,), "rb0: found expand_ratio"), (None, "epsilon", 0.0, "space.epsilon: found 0.0"),
    (None, "stem_pool", 1, "space.stem_pool: found 1"), (None, "resolution", (16,), "product of all strides"),
])
def test_what_cannot_be_is_named(stage, field, value, words):
    values = SPACE.to_dict()
    where = values if stage is None else values["stages"][stage]
    where[field] = value
    with pytest.raises(ValueError, match=words):
        space_of(values)
