"""What BigNAS adds can be switched off: zero gammas at the start, and regularising the biggest member alone."""

import jax
import numpy as np
import pytest
from sandwich_cases import MEAN, RATE, SGD, STD, batches

from bignas_jax.programs.devices import make_mesh
from bignas_jax.programs.weights import draw_weights
from bignas_jax.step.members.registry import make_members
from bignas_jax.step.optimizer import optimizer
from bignas_jax.step.recipe import Recipe
from bignas_jax.step.train_step import TrainStep


def test_without_zero_gammas_all_scales_start_at_one_and_nothing_else_changes(tiny):
    zeros, ones = (draw_weights(tiny.space, 7, zero_gammas=kind) for kind in (True, False))
    changed = 0
    for (path, before), (_, after) in zip(*map(jax.tree_util.tree_leaves_with_path, (zeros, ones)), strict=True):
        if path[-1].key == "scale":
            assert np.all(after == 1)
            changed += not np.any(before)
        else:
            np.testing.assert_array_equal(before, after)
    assert changed > 0


@pytest.mark.parametrize("members", ["sandwich", "best_up"])
def test_the_biggest_alone_is_regularised_or_all_are(tiny, members):
    for all_ in (False, True):
        made = make_members(tiny.space, Recipe(members=members, all_regularised=all_, num_classes=7))
        first, *students = made.choose(0, lambda archs: [0.0] * len(archs))
        assert first.part.regularised and {member.part.regularised for member in students} == {all_}
        assert {member.part for member in (first, *students)} <= set(made.programs(tiny.space))


def test_dropout_reaches_the_smallest_only_where_all_are_regularised(tiny):
    batch, found = batches()[0], []
    for all_ in (False, True):
        recipe = Recipe(num_random=0, mean=MEAN, std=STD, dropout=0.8, all_regularised=all_)
        step = TrainStep(tiny.space, tiny.graphdef, recipe, optimizer(SGD, lambda step: RATE), make_mesh(1, {}))
        state = step.init(tiny.params)
        step.compile(state, batch)
        found.append(step(state, batch, 0)[1]["loss"].tolist())
    (teacher, student), (same_teacher, noisy_student) = found
    assert teacher == same_teacher and student != noisy_student
