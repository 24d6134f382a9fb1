"""Gradients that are summed over micro-batches, against those of the whole batch, and what each micro-batch draws.

A batch in which each image stands twice has the same batch statistics as each of its two micro-batches. So batch norm
does not tell the sum over the micro-batches from the gradient of the whole batch. The labels of the two copies differ.
"""

import dataclasses

import jax
import numpy as np
import pytest
from sandwich_cases import BATCH, MEAN, RATE, SGD, STD, batches
from tiny import CLASSES, assert_close

from bignas_jax.programs.devices import make_mesh
from bignas_jax.step.optimizer import optimizer
from bignas_jax.step.recipe import Recipe
from bignas_jax.step.train_step import TrainStep

RECIPE = Recipe(num_random=0, label_smoothing=0.1, mean=MEAN, std=STD, seed=3, sync_batch_norm=True)


def twice(batch):
    """The batch with the second of each two images replaced by the first. Labels stay."""
    image = batch["image"].copy()
    image[1::2] = image[::2]
    return batch | {"image": image}


class Fixed:
    """A teacher from outside the run that thinks differently of two equal images."""

    identity = "fixed"

    def __init__(self, mesh):
        self.mesh = mesh

    def programs(self, image):
        return {}

    def logits(self, executables, image):
        return placed(self, np.random.default_rng(0).normal(size=(BATCH, CLASSES)).astype(np.float32))


def step_of(tiny, devices, **changes):
    mesh = make_mesh(devices, {"batch_size": BATCH})
    recipe = dataclasses.replace(RECIPE, **changes)
    rate, teacher = (lambda step: RATE), Fixed(mesh) if recipe.resolve_conflicts_from is None else None
    made = TrainStep(tiny.space, tiny.graphdef, recipe, optimizer(SGD, rate), mesh, rate, teacher=teacher)
    made.compile(made.init(tiny.params), batches()[0], progress=False)
    return made


def placed(made, batch):
    return jax.device_put(batch, jax.sharding.NamedSharding(made.mesh, jax.sharding.PartitionSpec("data")))


def test_two_micro_batches_on_four_devices_make_the_step_of_the_whole_batch_on_one(tiny):
    batch = twice(batches()[0])
    assert np.any(batch["label"][::2] != batch["label"][1::2])
    results = []
    for devices, count in ((1, 1), (4, 2)):
        made = step_of(tiny, devices, micro_batches=count)
        state, metrics = made(made.init(tiny.params), placed(made, batch), 0)
        results.append(jax.tree.map(np.asarray, (state.params, metrics)))
    assert_close(results[1], results[0], rtol=1e-4, atol=1e-5)  # also what the teacher from outside teaches
    moved = [np.abs(a - b).max() for a, b in zip(*map(jax.tree.leaves, (results[0][0], tiny.params)), strict=True)]
    assert np.median(moved) > 3e-4


@pytest.fixture(scope="module")
def apart(tiny):
    """The same on one device, with dropout, and with the biggest's gradient apart from the smallest's."""
    return step_of(tiny, 1, micro_batches=2, dropout=0.5, resolve_conflicts_from=1)


def test_each_micro_batch_draws_its_own_dropout_and_learns_from_its_own_teacher(tiny, apart):
    params = apart.init(tiny.params).params
    batch = placed(apart, twice(batches()[0]) | {"label": np.zeros(BATCH, np.int32)})  # two equal micro-batches
    biggest, smallest = apart.members.choose(0, lambda archs: [])
    zeros = apart.executables["zeros"]
    found = [apart.learn(params, batch, biggest, 0, None, zeros(), 0, micro) for micro in (0, 1, 1)]
    losses, teachers = [float(metrics[0, 0]) for _, metrics, _ in found], [logits for *_, logits in found]
    assert losses[0] != losses[1] and losses[1] == losses[2]
    assert teachers[0].shape[0] == BATCH // 2
    learnt = [float(apart.learn(params, batch, smallest, 0, t, zeros(), 1, 1)[1][0, 0]) for t in teachers]
    assert learnt[0] != learnt[1] == learnt[2]


def test_a_step_sums_all_members_of_all_micro_batches(tiny, apart):
    """The update from gradients that are added by hand; before the step that resolves conflicts, it takes their sum."""
    batch, start = placed(apart, batches()[2]), apart.init(tiny.params)
    total, metrics = apart.executables["zeros"](), []
    for micro in (0, 1):
        teacher = None
        for number, member in enumerate(apart.members.choose(0, lambda archs: [])):
            total, found, logits = apart.learn(start.params, batch, member, 0, teacher, total, number, micro)
            teacher, metrics = teacher if teacher is not None else logits, [*metrics, found]
    expected, means = apart.executables["update"](start, (total, apart.executables["zeros"]()), metrics)
    state, named = apart(apart.init(tiny.params), batch, 0)
    assert_close(state.params, expected.params, rtol=1e-5, atol=1e-6)
    losses = np.array([float(found[0, 0]) for found in metrics]).reshape(2, 2)
    np.testing.assert_allclose(named["loss"], losses.mean(0), rtol=1e-5)
