"""Spaces inside others: which ones are, and the reason where one is not."""

import dataclasses

import pytest
from ofa_cases import SPACES

from bignas_jax.spaces.mobilenet import SearchSpace
from bignas_jax.spaces.nesting import middle_widths, why_not_within
from bignas_jax.spaces.space import Space


@pytest.mark.parametrize("name", SPACES)
def test_restricted_spaces_nest(name):
    whole = SPACES[name]
    kinds = ("width", "depth", "kernel_size", "expand_ratio")
    parts = [whole.restricted(largest=dict.fromkeys(kinds, n)) for n in (1, 2)]
    for smaller, larger in ((parts[0], parts[1]), (parts[1], whole), (whole, whole), (parts[0], whole)):
        assert why_not_within(smaller, larger) is None
    for smaller, larger in ((parts[1], parts[0]), (whole, parts[1])):
        assert ", there (" in why_not_within(smaller, larger)


def test_other_resolutions_do_not_matter():
    whole = SPACES["ofa_mbv3_w1.0"]
    assert why_not_within(dataclasses.replace(whole, resolution=(96, 288)), whole) is None


def test_one_value_for_a_stage_is_a_part_of_one_for_each_block_and_not_the_reverse():
    whole = SPACES["ofa_mbv3_w1.0"]
    by_stage = changed(whole, 1, expand_ratio=(3, 4, 6))
    assert why_not_within(by_stage, whole) is None
    assert why_not_within(whole.restricted(only=whole.biggest), whole) is None, "a network that was trained alone"
    assert why_not_within(whole, by_stage) == "stage mb1 expand_ratio of block 1: (), there (3, 4, 6)"


def changed(space: SearchSpace, stage: int, **fields) -> Space:
    stages = list(space.stages)
    stages[stage] = dataclasses.replace(stages[stage], **fields)
    return dataclasses.replace(space, stages=tuple(stages))


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        (lambda s: changed(s, 1, depth=(2, 4)), r"stage mb1 depth: (2, 4), there (2, 3, 4)"),
        (lambda s: changed(s, 1, width=(24, 32)), r"stage mb1 width: (24, 32), there (24,)"),
        (lambda s: changed(s, 2, stride=1), "stages.mb2.stride: 1, there 2"),
        (lambda s: dataclasses.replace(s, epsilon=1e-3), "epsilon: 0.001, there 1e-05"),
        (lambda s: SPACES["ofa_resnet50"], "stem width: (24, 32), there (16,)"),
    ],
)
def test_what_differs_is_named(other, reason):
    whole = SPACES["ofa_mbv3_w1.0"]
    assert why_not_within(whole, other(whole)) == reason


def test_the_numbers_of_middle_channels_are_those_of_the_choices():
    space = SPACES["ofa_resnet50"]
    # make_divisible(round(width x ratio)) of (168, 208, 256) by (0.2, 0.25, 0.35)
    assert middle_widths(space)["blocks", 2] == {32, 40, 48, 56, 64, 72, 88}
    part = space.restricted(largest={"width": 1, "expand_ratio": 2})
    assert middle_widths(part)["blocks", 2] == {64, 88}
    assert middle_widths(SPACES["ofa_mbv3_w1.0"])["blocks", 1] == {48, 64, 96}
