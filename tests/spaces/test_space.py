"""Choices by stage and by block: genes and architectures, and what moves them. Properties of drawn spaces."""

import dataclasses
import itertools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bignas_jax.config.files import from_json, to_json
from bignas_jax.search.problem import Budget, Problem
from bignas_jax.search.strategies.coarse_to_fine import CoarseToFine, skeletons
from bignas_jax.search.strategies.evolution import Evolution
from bignas_jax.search.strategies.pareto import Pareto
from bignas_jax.spaces.architecture import Architecture
from bignas_jax.spaces.cost import count, executed
from bignas_jax.spaces.mobilenet import SearchSpace, Stage
from bignas_jax.spaces.predictor import Predictor
from bignas_jax.spaces.registry import space_of
from configs import digits


def some(values):
    return st.lists(st.sampled_from(values), min_size=1, unique=True).map(lambda found: tuple(sorted(found)))


@st.composite
def stages(draw, number):
    depth = draw(some((1, 2, 3)))

    def by_stage_or_block(values):
        if draw(st.booleans()):
            return draw(some(values))
        return tuple(draw(some(values)) for _ in range(depth[-1]))

    return Stage(f"mb{number}", width=draw(some((8, 16))), depth=depth, kernel_size=by_stage_or_block((3, 5)),
                 expand_ratio=by_stage_or_block((2, 3)), stride=draw(st.sampled_from((1, 2))),
                 se=draw(st.booleans()))  # fmt: skip


@st.composite
def spaces(draw):
    return SearchSpace(resolution=draw(some((8, 12))), stem_width=draw(some((8, 16))), stem_stride=1,
                       stages=tuple(draw(stages(n + 1)) for n in range(draw(st.integers(1, 2)))),
                       head_width=draw(some((16, 24))), v3_head=draw(st.booleans()), activation="swish")  # fmt: skip


BY_BLOCK = SearchSpace(
    resolution=(8, 12), stem_width=(8,), stem_stride=1, head_width=(16,), v3_head=False, activation="relu",
    stages=(Stage("mb1", (8, 16), (1, 2, 3), ((3, 5), (3,), (3, 5, 7)), (2,), 1, False),
            Stage("mb2", (16,), (1, 2), (3, 5), ((2, 3), (2, 3, 4)), 2, True)),
)  # fmt: skip


def brute_force_size(space):
    """Different networks, by all genes."""
    return len({space.at(genes) for genes in itertools.product(*(range(len(c)) for c in space.choices))})


@settings(max_examples=60, deadline=None)
@given(spaces(), st.integers(0, 2**32 - 1))
def test_an_architecture_has_one_form(space, seed):
    arch = space.sample(np.random.default_rng(seed))
    assert space.at(space.indices(arch)) == arch and arch in space
    assert Architecture.from_json(arch.to_json()) == arch
    assert space_of(json.loads(json.dumps(space.to_dict()))) == space
    assert space_of(space.to_dict() | {"family": "mobilenet"}) == space
    active = space.active(space.indices(arch))
    assert all(gene == 0 for gene, runs in zip(space.indices(arch), active, strict=True) if not runs)


@settings(max_examples=25, deadline=None)
@given(spaces())
def test_size_counts_networks_and_enumerate_gives_each_once(space):
    if space.size > 2000:
        space = space.restricted(largest={"width": 1, "resolution": 1, "depth": 2})
    if space.size > 2000:
        return
    archs = list(space.enumerate())
    assert len(archs) == len(set(archs)) == space.size
    assert archs[0] == space.smallest and archs[-1] == space.biggest


def test_the_size_of_a_space_by_block_is_what_brute_force_counts():
    assert BY_BLOCK.size == brute_force_size(BY_BLOCK) == 2 * 2 * (2 + 2 + 2 * 3) * 2 * (2 + 2 * 3)


@settings(max_examples=60, deadline=None)
@given(spaces(), st.integers(0, 2**32 - 1))
def test_moves_stay_in_the_space_and_mix_their_parents(space, seed):
    rng = np.random.default_rng(seed)
    a, b = space.sample(rng), space.sample(rng)
    assert space.mutate(a, rng, 0.5) in space and space.mutate(a, rng, 0.0) == a
    child = space.crossover(a, b, rng)
    mixed = zip(space.indices(child), space.indices(a), space.indices(b), space.active(space.indices(child)),
                strict=True)  # fmt: skip
    assert all(gene in (first, second) for gene, first, second, runs in mixed if runs)
    assert space.crossover(a, a, rng) == a


def test_a_block_that_begins_to_run_draws_all_of_its_values():
    shallow = BY_BLOCK.at([0] * len(BY_BLOCK.choices))
    rng = np.random.default_rng(0)
    mutants = [BY_BLOCK.mutate(shallow, rng, 0.3) for _ in range(400)]
    third = {a.kernel_size[0][2] if isinstance(a.kernel_size[0], tuple) else a.kernel_size[0]
             for a in mutants if a.depth[0] == 3}  # fmt: skip
    assert third == {3, 5, 7}


@settings(max_examples=60, deadline=None)
@given(spaces(), st.integers(0, 2**32 - 1))
def test_costs_grow_with_every_choice_but_the_kernel_of_an_idle_block(space, seed):
    """In exact integers; and a program that is shared computes no less than the slice, and no more than the bucket."""
    arch = space.sample(np.random.default_rng(seed))
    genes = list(space.indices(arch))
    own = count(space, arch, 5)
    for position, runs in enumerate(space.active(genes)):
        if runs and genes[position] + 1 < len(space.choices[position]):
            larger = space.at([gene + (n == position) for n, gene in enumerate(genes)])
            if space.choices[position].kind != "width":  # a wider stage may lose the projection of its shortcut
                assert count(space, larger, 5).macs > own.macs
    bucket = dataclasses.replace(space.biggest, resolution=arch.resolution)
    assert own.macs <= executed(space, bucket, arch, 5)


@settings(max_examples=40, deadline=None)
@given(spaces(), st.integers(0, 2**32 - 1))
def test_one_child_is_a_space_of_one(space, seed):
    arch = space.sample(np.random.default_rng(seed))
    alone = space.restricted(only=arch)
    assert (alone.biggest, alone.smallest, alone.size) == (arch, arch, 1)
    assert count(alone, arch, 5) == count(space, arch, 5)
    assert space_of(json.loads(json.dumps(alone.to_dict()))) == alone


def test_limits_leave_the_largest_values():
    left = BY_BLOCK.restricted(largest={"depth": 2, "kernel_size": 1}, max_resolution=8)
    assert left.resolution == (8,) and [stage.depth for stage in left.stages] == [(2, 3), (1, 2)]
    assert left.stages[0].kernel_size == ((5,), (3,), (7,)) and left.stages[1].kernel_size == (5,)
    assert left.biggest == dataclasses.replace(BY_BLOCK.biggest, resolution=8)
    for largest, words in (({"colour": 1}, "largest: found colour"), ({"depth": 0}, "fewer than 1 value of depth")):
        with pytest.raises(ValueError, match=words):
            BY_BLOCK.restricted(largest=largest)


@pytest.mark.parametrize("change, words", [
    ({"kernel_size": ((3, 5),)}, r"space.stages.mb.kernel_size: found choices of 1 blocks, expected 2"),
    ({"kernel_size": ((3, 5), (4,))}, r"space.stages.mb.kernel_size\[1\]: found \(4,\), expected a tuple of odd"),
    ({"expand_ratio": ((1,), (1, 4))}, r"space.stages.mb.expand_ratio: found \(1, 4\), expected 1 to stand alone"),
    ({"kernel_size": ((3, 5), 3)}, "space.stages.mb.kernel_size: found"),
])
def test_malformed_choices_of_blocks_are_named(change, words):
    values = dict(width=(8,), depth=(1, 2), kernel_size=(3,), expand_ratio=(4,), stride=1, se=False)
    with pytest.raises(ValueError, match=words):
        Stage("mb", **(values | change))


def test_a_config_with_choices_by_block_comes_back_from_json():
    config = digits.get_config()
    config.space.stages.mb2.kernel_size = ((3, 5), (3,))
    again = from_json(to_json(config))
    assert space_of(again.space) == space_of(config.space)
    assert space_of(again.space).choices[5].label == "stage mb1 expand_ratio"
    assert "stage mb2 kernel_size of block 2" in [choice.label for choice in space_of(again.space).choices]


def test_every_strategy_searches_choices_by_block():
    """Against a score that rises with the sum of genes, so that it pays to move every one of them."""
    largest = count(BY_BLOCK, BY_BLOCK.biggest, 3).macs
    problem = Problem(BY_BLOCK, 3, [Budget("all", macs=largest)])
    for strategy in (CoarseToFine(problem, 0, 60), Evolution(problem, 0, 12, 0.2), Pareto(problem, 0, 14, 0.2)):
        seen = {}
        for _ in range(12):
            asked = strategy.ask(8)
            assert all(p.arch in BY_BLOCK for p in asked)
            scores = {p.arch: sum(BY_BLOCK.indices(p.arch)) / 30 for p in asked}
            seen |= scores
            strategy.tell(scores)
        assert max(seen.values()) >= 0.8 * sum(BY_BLOCK.indices(BY_BLOCK.biggest)) / 30, type(strategy).__name__
    assert all(arch in BY_BLOCK for arch in skeletons(problem))


def test_the_predictor_tells_blocks_apart_that_run_from_those_that_do_not():
    predictor = Predictor(BY_BLOCK)
    archs = list(BY_BLOCK.enumerate())
    features = predictor.features(archs)
    assert features.min() == 0 and features.max() == 1
    assert len(np.unique(features, axis=0)) == BY_BLOCK.size
