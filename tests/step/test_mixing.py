"""Mixed images and labels against NumPy's, on one device and on eight, and in a step against PyTorch."""

import dataclasses

import jax
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sandwich_cases import BATCH, MEAN, RATE, SGD, SIDE, STD, batches, torch_images
from scipy import stats
from tiny import CLASSES, run_child

from bignas_jax.programs.devices import make_mesh
from bignas_jax.step import mixing
from bignas_jax.step.optimizer import optimizer
from bignas_jax.step.recipe import Recipe
from bignas_jax.step.train_step import TrainStep

RECIPE = Recipe(num_random=0, label_smoothing=0.1, mean=MEAN, std=STD, seed=3, members="single", mixup=0.4, cutmix=1.0)


def placed(mesh, batch):
    return jax.device_put(batch, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data")))


def test_draws_are_of_the_published_distributions():
    """Mixup's share is Beta(a, a). CutMix's rectangle lies in the image and its area is what the labels say."""
    shares = [mixing.draw(0.4, 0.0, 1, step, 32)[4] for step in range(2000)]
    assert stats.kstest(shares, stats.beta(0.4, 0.4).cdf).pvalue > 0.01
    cuts = np.array([mixing.draw(0.0, 1.0, 1, step, 32) for step in range(2000)])
    top, bottom, left, right, inside, share = cuts.T
    assert np.all((top >= 0) & (top <= bottom) & (bottom <= 32) & (left >= 0) & (left <= right) & (right <= 32))
    assert np.all(inside == 0)
    np.testing.assert_allclose(share, 1 - (bottom - top) * (right - left) / 32**2, rtol=1e-6)
    whole = (top > 0) & (bottom < 32) & (left > 0) & (right < 32)  # not cut off by the border: Beta(1, 1) itself
    assert np.all((bottom - top == right - left)[whole]) and 200 < whole.sum()
    both = [mixing.draw(0.4, 1.0, 1, step, 32)[4] == 0 for step in range(1000)]
    assert 400 < sum(both) < 600, "each rule takes half of the steps"


def test_draws_follow_seed_and_step_alone():
    first = [mixing.draw(1.0, 0.0, 3, step, 8)[5] for step in range(5)]
    np.random.seed(0)
    assert first[::-1] == [mixing.draw(1.0, 0.0, 3, step, 8)[5] for step in reversed(range(5))]
    assert len({*first, *(mixing.draw(1.0, 0.0, 4, step, 8)[5] for step in range(5))}) == 10


@pytest.mark.parametrize("drawn", [(0, SIDE, 0, SIDE, 0.3, 0.3), (3, 9, 0, 11, 0.0, 1 - 66 / SIDE**2)])
@pytest.mark.parametrize("devices", [1, 8])
def test_a_batch_is_mixed_as_in_numpy(devices, drawn):
    batch, mesh = batches()[0], make_mesh(devices, {"batch_size": BATCH})
    images, labels = mixing.program(mesh, CLASSES)(*placed(mesh, (batch["image"], batch["label"])),
                                                   np.array(drawn, np.float32))  # fmt: skip
    top, bottom, left, right, inside, share = drawn
    x, y = batch["image"].astype(np.float32), np.eye(CLASSES)[batch["label"]]
    expected = x.copy()
    expected[:, top:bottom, left:right] *= np.float32(inside)
    expected[:, top:bottom, left:right] += (1 - np.float32(inside)) * x[::-1, top:bottom, left:right]
    assert images.dtype == np.uint8
    # A sum that lies between two integers may be rounded either way.
    assert np.abs(np.asarray(images) - expected).max() <= 0.5 + 1e-4
    np.testing.assert_allclose(labels, share * y + (1 - share) * y[::-1], atol=1e-6)


def step_on(tiny, devices, recipe=RECIPE):
    mesh = make_mesh(devices, {"batch_size": BATCH})
    made = TrainStep(tiny.space, tiny.graphdef, recipe, optimizer(SGD, lambda step: RATE), mesh)
    made.compile(made.init(tiny.params), batches()[0], progress=False)
    return made


@pytest.fixture(scope="module")
def one(tiny):
    return step_on(tiny, 1)


def test_one_device_and_eight_mix_to_the_same_bits(one):
    mesh, batch = make_mesh(8, {"batch_size": BATCH}), batches()[0]
    for step in range(4):
        expected = one.seen(placed(one.mesh, batch), step)
        drawn = mixing.draw(0.4, 1.0, 3, step, SIDE)
        found = mixing.program(mesh, CLASSES)(*placed(mesh, (batch["image"], batch["label"])), drawn)
        for name, array in zip(("image", "label"), found, strict=True):
            np.testing.assert_array_equal(array, expected[name])


def test_a_step_learns_from_mixed_labels_as_pytorch_does(tiny, one):
    batch, state = batches()[1], one.init(tiny.params)
    mixed = jax.tree.map(np.asarray, one.seen(placed(one.mesh, batch), 1))
    arch = tiny.space.biggest
    child, leaves = tiny.child(arch)
    logits = run_child(child.statistics("batch"), leaves, torch_images(mixed, arch.resolution))
    expected = F.cross_entropy(logits, torch.tensor(mixed["label"]), label_smoothing=0.1).item()
    right = np.mean(logits.detach().numpy().argmax(-1) == mixed["label"].argmax(-1))
    _, metrics = one(state, placed(one.mesh, batch), 1)
    np.testing.assert_allclose(metrics["loss"], [expected], rtol=1e-4)
    np.testing.assert_allclose(metrics["accuracy"], [right])


def test_nothing_is_mixed_without_a_recipe(tiny, one):
    batch = placed(one.mesh, batches()[0])
    plain = TrainStep(tiny.space, tiny.graphdef, dataclasses.replace(RECIPE, mixup=0.0, cutmix=0.0), one.optimizer,
                      one.mesh)  # fmt: skip
    assert plain.seen(batch, 0) is batch
    assert "mix" not in plain.programs(plain.init(tiny.params), batches()[0])
