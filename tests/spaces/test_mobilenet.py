"""Properties of search spaces, over random small spaces and the recipes' own."""

import dataclasses
import itertools
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ml_collections import ConfigDict

from bignas_jax.spaces.architecture import Architecture
from bignas_jax.spaces.cost import count
from bignas_jax.spaces.mobilenet import SearchSpace, Stage, blocks, head_mid_width, make_divisible
from configs import attentive_nas, bignas, cifar10, digits

RECIPES = {module.__name__: SearchSpace.from_config(module.get_config().space)
           for module in (attentive_nas, bignas, cifar10, digits)}


def choices(values):
    drawn = st.lists(st.sampled_from(values), min_size=1, max_size=2, unique=True)
    return drawn.map(lambda v: tuple(sorted(v)))


def named(stages):
    return tuple(dataclasses.replace(stage, name=f"mb{i + 1}") for i, stage in enumerate(stages))


STRIDES = st.sampled_from((1, 2))
STAGES = st.builds(
    Stage, name=st.just("mb1"), width=choices((8, 16, 24)), depth=choices((1, 2, 3)),
    kernel_size=choices((3, 5)),
    expand_ratio=st.one_of(st.just((1,)), choices((3, 5, 6))), stride=STRIDES, se=st.booleans())
SPACES = st.builds(
    SearchSpace, resolution=choices((8, 9, 16)), stem_width=choices((8, 16)), stem_stride=STRIDES,
    stages=st.lists(STAGES, min_size=1, max_size=2).map(named), head_width=choices((16, 24)),
    v3_head=st.booleans(), activation=st.sampled_from(("swish", "h_swish", "relu")))
ANY_SPACE = st.one_of(SPACES, st.sampled_from(list(RECIPES.values())))
SEEDS = st.integers(0, 2**32 - 1)


@given(ANY_SPACE, SEEDS, st.floats(0, 1))
def test_what_is_drawn_is_in_the_space(space, seed, probability):
    rng = np.random.default_rng(seed)
    a, b = space.sample(rng), space.sample(rng)
    mutant, mixed = space.mutate(a, rng, probability), space.crossover(a, b, rng)
    for arch in (a, b, mutant, mixed, space.biggest, space.smallest):
        assert arch in space
        assert Architecture.from_json(arch.to_json()) == arch
    assert mixed.resolution in (a.resolution, b.resolution)
    for field in ("width", "depth", "kernel_size", "expand_ratio"):
        for child, *parents in zip(*(getattr(arch, field) for arch in (mixed, a, b)), strict=True):
            assert child in parents


@given(SPACES)
@settings(max_examples=40)
def test_enumeration_gives_every_architecture_once(space):
    if space.size > 3000:
        space = dataclasses.replace(space, stages=space.stages[:1])
    everything = list(space.enumerate())
    assert len(everything) == len(set(everything)) == space.size
    assert all(arch in space for arch in everything)
    assert everything[0] == space.smallest and everything[-1] == space.biggest


@given(ANY_SPACE, SEEDS)
def test_smallest_and_biggest_bound_the_cost(space, seed):
    low, cost, high = (count(space, arch, 10)
                       for arch in (space.smallest, space.sample(np.random.default_rng(seed)), space.biggest))
    assert cost.macs <= high.macs + shortcut_macs(space) and low.macs <= cost.macs + shortcut_macs(space)
    if not shortcut_macs(space):
        assert low.params <= cost.params <= high.params


def shortcut_macs(space):
    """A bound on the shortcut convolutions, or 0 where none comes or goes as neighbouring widths meet."""
    widths = [max(space.stem_width), *(max(stage.width) for stage in space.stages)]
    fixed = [space.stem_width, *(stage.width for stage in space.stages)]
    if all(set(a).isdisjoint(b) for a, b in itertools.pairwise(fixed)):
        return 0
    return sum(a * b for a, b in itertools.pairwise(widths)) * space.biggest.resolution ** 2


@given(ANY_SPACE)
def test_the_plain_form_reads_back(space):
    assert SearchSpace.from_config(json.loads(json.dumps(space.to_dict()))) == space
    assert SearchSpace.from_config(ConfigDict(space.to_dict())) == space
    assert hash(SearchSpace.from_config(space.to_dict())) == hash(space)


def test_sizes_of_the_published_spaces():
    stages = (2 * 2) * (2 * 2) * (2 * 2 * 2) * (2 * 3 * 2) * (3 * 5 * 2) * (4 * 5 * 2) * (2 * 2 * 2)
    by_hand = 4 * 2 * stages * 2
    assert RECIPES["configs.bignas"].size == by_hand
    assert math.log10(RECIPES["configs.attentive_nas"].size) == pytest.approx(11.64, abs=0.01)


def test_sampling_is_uniform_over_each_choice():
    space = RECIPES["configs.bignas"]
    rng = np.random.default_rng(0)
    drawn = [space.sample(rng) for _ in range(2000)]
    for values, allowed in (([a.resolution for a in drawn], space.resolution),
                            ([a.width[0] for a in drawn], space.stem_width),
                            ([a.width[-1] for a in drawn], space.head_width),
                            ([a.depth[5] for a in drawn], space.stages[5].depth),
                            ([a.width[6] for a in drawn], space.stages[5].width)):
        shares = np.array([values.count(v) for v in allowed]) / len(drawn)
        np.testing.assert_allclose(shares, 1 / len(allowed), atol=0.05)
    assert space.sample(np.random.default_rng(7)) == space.sample(np.random.default_rng(7))


def test_mutation_moves_as_often_as_asked():
    space = RECIPES["configs.attentive_nas"]
    rng = np.random.default_rng(0)
    start = space.sample(rng)
    assert space.mutate(start, rng, 0.0) == start
    moved = space.mutate(start, rng, 1.0)
    assert moved.resolution != start.resolution
    assert all(a != b for a, b in zip(moved.width, start.width, strict=True))
    rate = np.mean([space.mutate(start, rng, 0.3).resolution != start.resolution for _ in range(2000)])
    assert rate == pytest.approx(0.3, abs=0.04)
    moved = [space.mutate(start, rng, 1.0).resolution for _ in range(900)]
    others = [r for r in space.resolution if r != start.resolution]
    np.testing.assert_allclose([moved.count(r) / 900 for r in others], 1 / len(others), atol=0.06)
    with pytest.raises(ValueError, match="probability 1.5"):
        space.mutate(start, rng, 1.5)


def test_crossover_takes_from_both_parents():
    space = RECIPES["configs.bignas"]
    rng = np.random.default_rng(0)
    children = [space.crossover(space.biggest, space.smallest, rng) for _ in range(400)]
    share = np.mean([child.resolution == space.biggest.resolution for child in children])
    assert share == pytest.approx(0.5, abs=0.08)


@pytest.mark.parametrize("change, words", [
    ({"resolution": 200}, "resolution: found 200, allowed 192, 224, 288, 320"),
    ({"depth": (1, 2, 2, 2, 7, 2, 1)}, "stage mb5 depth: found 7, allowed 2, 3, 4, 5, 6"),
    ({"kernel_size": (3, 5, 3, 3, 3, 3, 3)}, "stage mb2 kernel_size: found 5, allowed 3"),
    ({"width": (24, 16, 24, 40, 80, 112, 192, 320, 1280)}, "stem width: found 24, allowed 32, 40"),
    ({"width": (32, 16, 24, 40, 80, 112, 192, 320, 1300)}, "head width: found 1300, allowed 1280, 1408"),
    ({"kernel_size": (3, 3, (3, 5), 3, 3, 3, 3)}, r"stage mb3 kernel_size: found \(3, 5\), allowed 3, 5"),
])
def test_what_is_not_in_the_space_has_a_reason(change, words):
    space = RECIPES["configs.bignas"]
    arch = dataclasses.replace(space.smallest, **change)
    assert arch not in space
    with pytest.raises(ValueError, match=words):
        space.check(arch)


def test_another_number_of_stages_is_refused():
    arch = RECIPES["configs.digits"].smallest
    with pytest.raises(ValueError, match="found 3 stages, the space has 7"):
        RECIPES["configs.bignas"].check(arch)
    with pytest.raises(ValueError, match="found 3 stages, the space has 7"):
        blocks(RECIPES["configs.bignas"], arch)


def test_stages_sort_naturally():
    stage = RECIPES["configs.digits"].to_dict()["stages"]["mb1"]
    config = {**RECIPES["configs.digits"].to_dict(), "stages": {f"mb{i}": stage for i in (10, 9, 2, 1)}}
    assert [s.name for s in SearchSpace.from_config(config).stages] == ["mb1", "mb2", "mb9", "mb10"]


@pytest.mark.parametrize("value, expected", [
    (3, 8), (11, 16), (12, 16), (20, 24), (19, 24), (18, 24), (100, 104), (36, 40), (35, 32), (17, 16)])
def test_make_divisible_rounds_half_up_but_never_below_nine_tenths(value, expected):
    assert make_divisible(value) == expected


def test_blocks_of_a_published_architecture():
    space = RECIPES["configs.attentive_nas"]
    arch = space.smallest
    found = blocks(space, arch)
    assert len(found) == sum(arch.depth)
    first, second = found[0], found[1]
    assert (first.in_width, first.mid_width, first.out_width) == (16, 16, 16)
    assert (first.se_width, first.stride) == (0, 1)
    assert (second.stage, second.index, second.mid_width, second.stride) == (1, 0, 64, 2)
    third = found[2]
    assert (third.stage, third.index, third.in_width, third.mid_width, third.stride) == (1, 1, 24, 96, 1)
    assert found[-1].se_width == 288
    assert head_mid_width(arch) == 1296


def test_blocks_may_differ_inside_a_stage():
    space = RECIPES["configs.attentive_nas"]
    arch = dataclasses.replace(space.smallest, kernel_size=(3, (3, 5, 3), 3, 3, 3, 3, 3),
                               expand_ratio=(1, (4, 6, 5), 4, 4, 4, 6, 6))
    stage = [block for block in blocks(space, arch) if block.stage == 1]
    assert [block.kernel_size for block in stage] == [3, 5, 3]
    assert [block.mid_width for block in stage] == [64, 144, 120]


@pytest.mark.parametrize("path, value, words", [
    ("resolution", (320, 192), "space.resolution: found (320, 192)"),
    ("resolution", (2, 16), "space.resolution: found (2, 16), expected a tuple of integers >= 4"),
    ("resolution", (), "space.resolution: found ()"),
    ("stem_width", (12,), "space.stem_width: found (12,), expected a tuple of multiples of 8"),
    ("stem_stride", 3, "space.stem_stride: found 3, expected 1 or 2"),
    ("head_width", (64, 64), "space.head_width: found (64, 64)"),
    ("v3_head", 1, "space.v3_head: found 1, expected True or False"),
    ("activation", "gelu", "space.activation: found 'gelu', expected one of swish, h_swish, relu"),
    ("stages", {}, "space.stages: found none"),
    ("stages.mb2.kernel_size", (4,), "space.stages.mb2.kernel_size: found (4,), expected a tuple of odd"),
    ("stages.mb2.depth", (0, 1), "space.stages.mb2.depth: found (0, 1)"),
    ("stages.mb2.expand_ratio", (1.5,), "space.stages.mb2.expand_ratio: found (1.5,)"),
    ("stages.mb2.expand_ratio", (1, 4), "space.stages.mb2.expand_ratio: found (1, 4), expected 1 to"),
    ("stages.mb2.width", 16, "space.stages.mb2.width: found 16, expected a tuple"),
    ("stages.mb2.stride", 4, "space.stages.mb2.stride: found 4"),
    ("stages.mb2.se", "yes", "space.stages.mb2.se: found 'yes'"),
    ("stages.mb2.sse", True, "space.stages.mb2.sse: found an unknown field"),
    ("groups", 2, "space.groups: found an unknown field"),
])
def test_malformed_spaces_are_refused_by_field(path, value, words):
    config = RECIPES["configs.digits"].to_dict()
    *owners, last = path.split(".")
    owner = config
    for name in owners:
        owner = owner[name]
    owner[last] = value
    with pytest.raises(ValueError) as error:
        SearchSpace.from_config(config)
    assert str(error.value).startswith(words) and "\n" not in str(error.value)


def test_a_missing_field_is_named():
    config = RECIPES["configs.digits"].to_dict()
    del config["stages"]["mb3"]["depth"]
    with pytest.raises(ValueError, match="space.stages.mb3.depth: found nothing"):
        SearchSpace.from_config(config)
