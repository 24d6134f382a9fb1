"""The parts of a space: all of them, found without looking at every architecture, and their names."""

import dataclasses
import re

import numpy as np
import pytest
from ofa_cases import SPACES
from tiny import tiny_space

from bignas_jax.spaces.parts import distinct_parts, draw_networks, network_of, parts_of

CLASSES = 7
TINY = tiny_space()
SMALL = dataclasses.replace(TINY, stages=TINY.stages[1:], resolution=(20,), stem_width=(8, 16))


def by_block():
    """Each block has its own kernel and ratio: 2 stages of Once-for-All's, 1 or 2 blocks in the last."""
    stages = tuple(
        dataclasses.replace(stage, kernel_size=((3, 5),) * stage.depth[-1], expand_ratio=((2, 3),) * stage.depth[-1])
        for stage in TINY.stages[1:]
    )
    return dataclasses.replace(SMALL, stages=stages, stem_width=(8,), head_width=(32,))


@pytest.mark.parametrize("space", [
    dataclasses.replace(SMALL, resolution=(20, 26), head_width=(32,)),
    dataclasses.replace(SMALL, v3_head=True),
    by_block(),
], ids=["by stage", "v3 head", "by block"])  # fmt: skip
def test_they_are_those_of_all_architectures(space):
    """Against every architecture of the space, one by one."""
    expected = {part.key for arch in space.enumerate() for part in parts_of(space, arch, CLASSES)}
    found = [part.key for part in distinct_parts(space, CLASSES)]
    assert set(found) == expected and len(found) == len(expected)


def test_no_drawn_architecture_of_a_resnet_has_another():
    space = SPACES["ofa_resnet50"]
    space = dataclasses.replace(space, resolution=(64,), stages=space.stages[:2])
    found = {part.key for part in distinct_parts(space, 10)}
    rng = np.random.default_rng(0)
    for arch in (space.smallest, space.biggest, *(space.sample(rng) for _ in range(12))):
        assert {part.key for part in parts_of(space, arch, 10)} <= found


def test_names_are_of_one_part_each_and_say_what_it_is():
    parts = distinct_parts(TINY, CLASSES)
    names = {part.name for part in parts}
    assert len(names) == len(parts)
    assert all(re.fullmatch(r"[a-z0-9-]+", name, re.IGNORECASE) for name in names)
    stem, *blocks, head = parts_of(TINY, TINY.biggest, CLASSES)
    assert stem.name.startswith("stem-26px-3to16-mid16-k3-s2-") and head.name.startswith("head-4px-32to7-mid40-k1-s1-")
    assert blocks[2].name.startswith("mbconv-13px-16to24-mid48-k5-s2-se16-")


def test_a_name_stays():
    """Tables that were measured before would be lost with it."""
    stem, *_ = parts_of(TINY, TINY.smallest, CLASSES)
    assert stem.name == "stem-20px-3to8-mid8-k3-s2-71357ab0e7"
    assert network_of(TINY, TINY.smallest, CLASSES).name == "network-20px-cee81b860d"


def test_networks_are_drawn_alike_and_once():
    fitted, held_back = draw_networks(TINY, 3, 4)
    assert fitted[:2] == [TINY.biggest, TINY.smallest] and len(fitted) == 5 and len(held_back) == 4
    assert len({*fitted, *held_back}) == 9 and draw_networks(TINY, 3, 4) == (fitted, held_back)
