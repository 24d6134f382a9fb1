"""A teacher from outside the run: its logits and a step that learns from it, against PyTorch."""

import jax
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sandwich_cases import BATCH, MEAN, RATE, SGD, STD, batches, torch_images
from tiny import CLASSES, run_child

from bignas_jax.nets.slicing import single, slice_params, slice_statistics
from bignas_jax.programs.devices import make_mesh
from bignas_jax.step.members.registry import make_members
from bignas_jax.step.optimizer import optimizer
from bignas_jax.step.recipe import Recipe
from bignas_jax.step.teacher import Network
from bignas_jax.step.train_step import TrainStep

RECIPE = Recipe(num_random=0, label_smoothing=0.1, mean=MEAN, std=STD, seed=3, sync_batch_norm=True,
                teacher_weight=0.5, label_weight=2.0)  # fmt: skip


def network(tiny, mesh, parts=1):
    """The smallest slice of other weights, on the statistics that come with them."""
    arch = tiny.space.smallest
    params = jax.tree.map(np.ascontiguousarray, slice_params(tiny.space, tiny.params, arch))
    statistics = slice_statistics(tiny.space, tiny.statistics, arch)
    return Network(single(tiny.space, arch), CLASSES, "float32", params, statistics, MEAN, STD, mesh, parts)


def torch_logits(tiny, batch):
    arch = tiny.space.smallest
    child, leaves = tiny.child(arch)
    with torch.no_grad():
        return run_child(child.eval(), leaves, torch_images(batch, arch.resolution))


def placed(mesh, batch):
    return jax.device_put(batch, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data")))


@pytest.fixture(scope="module")
def made(tiny):
    mesh = make_mesh(2, {"batch_size": BATCH})
    step = TrainStep(tiny.space, tiny.graphdef, RECIPE, optimizer(SGD, lambda step: RATE), mesh, lambda step: RATE,
                     teacher=network(tiny, mesh))  # fmt: skip
    step.compile(step.init(tiny.params), batches()[0], progress=False)
    return step


def test_its_logits_are_pytorchs_in_evaluation_on_any_number_of_devices_and_parts(tiny, made):
    batch = batches()[1]
    seen = made.seen(placed(made.mesh, batch), 0)
    np.testing.assert_allclose(seen["teacher"], torch_logits(tiny, batch), rtol=1e-4, atol=1e-4)
    mesh = make_mesh(1, {"batch_size": BATCH})
    other = network(tiny, mesh, parts=4)
    image = placed(mesh, batch["image"])
    programs = {key: trace().lower().compile() for key, trace in other.programs(image).items()}
    np.testing.assert_allclose(other.logits(programs, image), seen["teacher"], rtol=1e-4, atol=1e-4)


def test_the_biggest_learns_from_labels_and_teacher_and_the_others_from_the_biggest(tiny, made):
    batch = batches()[0]
    _, leaves = tiny.child(tiny.space.biggest)
    label, outside, soft, losses = torch.tensor(batch["label"]).long(), torch_logits(tiny, batch), None, []
    for arch in make_members(tiny.space, RECIPE).architectures(0):
        logits = run_child(tiny.child(arch)[0].statistics("batch"), leaves, torch_images(batch, arch.resolution))
        if soft is None:
            soft = logits.detach().softmax(-1)
            loss = 2.0 * F.cross_entropy(logits, label, label_smoothing=0.1)
            loss = loss + 0.5 * F.cross_entropy(logits, outside.softmax(-1))
            losses.append(loss.item() / 2.5)
        else:
            loss = F.cross_entropy(logits, soft)
            losses.append(loss.item())
        loss.backward()
    norm = torch.nn.utils.get_total_norm([leaf.grad for leaf in leaves.values() if leaf.grad is not None])
    _, metrics = made(made.init(tiny.params), placed(made.mesh, batch), 0)
    np.testing.assert_allclose(metrics["loss"], losses, rtol=1e-4)
    np.testing.assert_allclose(metrics["gradient_norm"], norm, rtol=1e-4)
