"""Multiply-adds of many architectures at once, against those of each."""

import dataclasses

import numpy as np
import pytest
from test_own_family import SPACE as OWN_SPACE

from bignas_jax.config.recipes import load_recipe
from bignas_jax.spaces.cost import count
from bignas_jax.spaces.many import ManyMacs
from bignas_jax.spaces.mobilenet import SearchSpace
from bignas_jax.spaces.registry import space_of


class Entangled(SearchSpace):
    """Its last stage's depth adds a layer behind the blocks: its cost is no sum over blocks."""

    def layout(self, arch, num_classes=1):
        *layers, last = super().layout(arch, num_classes)
        more = [dataclasses.replace(last, path=("more",))] if arch.depth[-1] == 2 else []
        return (*layers, *more, last)


def recipe_space(name):
    return space_of(load_recipe(f"configs/{name}.py").space)


def check(space, many, number):
    genes = many.draw(np.random.default_rng(7), number)
    found = many(genes)
    assert found.tolist() == [count(space, space.at(own), 10).macs for own in genes]
    assert many(genes[::-1]).tolist() == found[::-1].tolist()  # once they are known
    return genes


@pytest.mark.parametrize("name", ["digits", "attentive_nas", "ofa_mbv3_cifar10", "ofa_resnet_cifar10", "own"])
def test_multiply_adds_of_many_are_those_of_each(name):
    space = OWN_SPACE if name == "own" else recipe_space(name)
    many = ManyMacs(space, 10)
    genes = check(space, many, 150)
    assert many.adds_up
    drawn = [set(own) for own in genes.T]
    assert drawn == [set(range(len(choice))) for choice in space.choices]
    ends = np.array([space.indices(space.smallest), space.indices(space.biggest)])
    assert many(ends).tolist() == [count(space, arch, 10).macs for arch in (space.smallest, space.biggest)]
    assert many(genes[:0]).shape == (0,)


def test_a_family_whose_cost_is_no_sum_over_blocks_is_counted_one_by_one():
    values = {field.name: getattr(recipe_space("digits"), field.name) for field in dataclasses.fields(SearchSpace)}
    space = Entangled(**values)
    many = ManyMacs(space, 10)
    check(space, many, 20)
    assert not many.adds_up
