"""Drawn slices: what they are drawn from, and what a step does with them against PyTorch."""

import dataclasses

import jax
import numpy as np
import torch
import torch.nn.functional as F
from sandwich_cases import MEAN, RATE, SGD, STD, batches, torch_images
from tiny import run_child

from bignas_jax.programs.devices import make_mesh
from bignas_jax.step.members.protocol import Target
from bignas_jax.step.members.registry import make_members
from bignas_jax.step.optimizer import optimizer
from bignas_jax.step.recipe import Recipe
from bignas_jax.step.train_step import TrainStep

RECIPE = Recipe(num_random=2, label_smoothing=0.1, mean=MEAN, std=STD, seed=3, members="slices")


def test_slices_are_drawn_evenly_at_one_resolution_a_step_and_without_extremes(tiny):
    members = make_members(tiny.space, dataclasses.replace(RECIPE, num_random=4))
    steps = [members.choose(step, lambda archs: []) for step in range(200)]
    assert members.names == ("slice1", "slice2", "slice3", "slice4")
    parts = members.programs(tiny.space)
    for step in steps:
        assert len(step) == 4 and len({member.arch.resolution for member in step}) == 1
        assert [member.part.first for member in step] == [True, False, False, False]
        for member in step:
            assert member.arch in tiny.space and member.part in parts
            assert member.part.target == Target.LABELS and member.part.regularised
    drawn = [member.arch for step in steps for member in step]
    at_first = sum(step[0].arch.resolution == tiny.space.resolutions[0] for step in steps)
    assert 70 < at_first < 130  # one of two
    assert 300 < sum(arch.depth[0] == 1 for arch in drawn) < 500  # one of two
    assert sum(arch in (tiny.space.biggest, tiny.space.smallest) for arch in drawn) < 40
    again = make_members(tiny.space, dataclasses.replace(RECIPE, num_random=4))
    assert [again.choose(step, lambda archs: []) for step in reversed(range(200))] == steps[::-1]


def test_one_slice_a_step_needs_no_further_programs(tiny):
    members = make_members(tiny.space, dataclasses.replace(RECIPE, num_random=1))
    assert len(members.programs(tiny.space)) == len(tiny.space.resolutions) and members.names == ("slice1",)


def test_gradients_of_slices_are_summed_and_each_learns_from_the_labels(tiny):
    made = TrainStep(tiny.space, tiny.graphdef, RECIPE, optimizer(SGD, lambda step: RATE), make_mesh(1, {}))
    batch, step = batches()[0], 5
    archs = make_members(tiny.space, RECIPE).architectures(step)
    shapes = made.programs(made.init(tiny.params), batch)
    used = {member.part for member in made.members.choose(step, lambda archs: [])} | {"update"}
    made.executables = {key: shapes[key]().lower().compile() for key in used}
    _, leaves = tiny.child(tiny.space.biggest)
    label, losses = torch.tensor(batch["label"]).long(), []
    for arch in archs:
        logits = run_child(tiny.child(arch)[0].statistics("batch"), leaves, torch_images(batch, arch.resolution))
        losses.append(F.cross_entropy(logits, label, label_smoothing=0.1))
        losses[-1].backward()
    norm = torch.nn.utils.get_total_norm([leaf.grad for leaf in leaves.values() if leaf.grad is not None])
    _, metrics = made(made.init(tiny.params), jax.device_put(batch), step)
    np.testing.assert_allclose(metrics["loss"], [loss.item() for loss in losses], rtol=1e-4)
    np.testing.assert_allclose(metrics["gradient_norm"], norm, rtol=1e-4)


def test_a_network_whose_resolution_alone_is_open_runs_without_masks(tiny):
    full = tiny.space.restricted(largest={"width": 1, "depth": 1, "kernel_size": 1, "expand_ratio": 1})
    members = make_members(full, dataclasses.replace(RECIPE, num_random=1))
    assert [part.bucket.masked for part in members.programs(full)] == [False] * len(full.resolutions)
    drawn = {member.arch: member.part.bucket for step in range(40) for member in members.choose(step, lambda archs: [])}
    assert {arch.resolution for arch in drawn} == set(full.resolutions)
    assert all(bucket.sampled(full, arch) is None for arch, bucket in drawn.items())
