"""The sandwich step: against the same in plain PyTorch, one device against eight, what a run relies on."""

import dataclasses
import re

import jax
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sandwich_cases import BATCH, MEAN, RATE, SGD, STD, batches, torch_images
from tiny import CLASSES, assert_close, flat, run_child

from bignas_jax.config.options import Options
from bignas_jax.programs.devices import make_mesh
from bignas_jax.step.members.registry import make_members
from bignas_jax.step.optimizer import optimizer
from bignas_jax.step.recipe import Recipe
from bignas_jax.step.train_step import TrainStep

RECIPE = Recipe(num_random=2, label_smoothing=0.1, sync_batch_norm=True, mean=MEAN, std=STD, seed=3)


def sandwich_of(tiny, recipe, devices, config=SGD, rate=RATE):
    mesh = make_mesh(devices, {"batch_size": BATCH})
    made = TrainStep(tiny.space, tiny.graphdef, recipe, optimizer(config, lambda step: rate), mesh)
    state = made.init(tiny.params)
    made.compile(state, batches()[0], progress=False)
    return made


@pytest.fixture(scope="module")
def one(tiny):
    return sandwich_of(tiny, RECIPE, 1)


@pytest.fixture(scope="module")
def eight(tiny):
    return sandwich_of(tiny, RECIPE, 8)


@pytest.fixture(scope="module")
def plain(tiny):
    """Eight devices without synchronised batch norm, with dropout, drop-connect and an EMA."""
    recipe = dataclasses.replace(RECIPE, sync_batch_norm=False, dropout=0.2, drop_connect=0.2, ema_decay=0.9)
    return sandwich_of(tiny, recipe, 8)


def put(sandwich, batch):
    sharding = jax.sharding.NamedSharding(sandwich.mesh, jax.sharding.PartitionSpec("data"))
    return jax.device_put(batch, sharding)


def run(sandwich, tiny, inputs, first=0):
    """The state after the batches, and each step's metrics."""
    state, metrics = sandwich.init(tiny.params), []
    for step, batch in enumerate(inputs, first):
        state, found = sandwich(state, put(sandwich, batch), step)
        metrics.append(jax.tree.map(np.asarray, found))
    return state, metrics


def torch_step(tiny, leaves, batch, archs, student_weight=1.0):
    """Losses of the members; their gradients, those of students by their weight, stand summed in the leaves."""
    label, soft, losses = torch.tensor(batch["label"]).long(), None, []
    for arch in archs:
        child = tiny.child(arch)[0].statistics("batch")
        logits = run_child(child, leaves, torch_images(batch, arch.resolution))
        if soft is None:
            loss, soft = F.cross_entropy(logits, label, label_smoothing=0.1), logits.detach().softmax(-1)
        else:
            loss = F.cross_entropy(logits, soft)
        (loss if not losses else student_weight * loss).backward()
        losses.append(loss.item())
    return losses


def test_some_steps_equal_the_same_steps_in_pytorch(tiny, one):
    state, metrics = run(one, tiny, batches())
    leaves = tiny.child(tiny.space.biggest)[1]
    weights = {name: leaf for name, leaf in leaves.items() if leaf.requires_grad}
    decay = [leaf for leaf in weights.values() if leaf.ndim > 1]
    rest = [leaf for leaf in weights.values() if leaf.ndim == 1]
    sgd = torch.optim.SGD([dict(params=decay, weight_decay=SGD.weight_decay), dict(params=rest)], RATE, 0.9,
                          nesterov=True)
    for step, batch in enumerate(batches()):
        sgd.zero_grad()
        losses = torch_step(tiny, leaves, batch, make_members(tiny.space, RECIPE).architectures(step))
        norm = torch.nn.utils.clip_grad_norm_(list(weights.values()), SGD.clip_norm)
        assert norm > 1.2 * SGD.clip_norm, "the clip is not exercised"
        # PyTorch passes over a weight that no member used; here its gradient is zero, and it decays.
        for leaf in weights.values():
            leaf.grad = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
        sgd.step()
        np.testing.assert_allclose(metrics[step]["loss"], losses, rtol=1e-4)
        np.testing.assert_allclose(metrics[step]["gradient_norm"], norm, rtol=1e-4)
    expected = tiny.weights_of({name: leaf.detach().numpy() for name, leaf in leaves.items()})
    assert_close(state.params, expected, rtol=1e-4)
    moved = flat(jax.tree.map(lambda a, b: np.abs(a - b).max(), expected, tiny.params))
    # The head's batch norm takes a constant away again: that bias has no gradient.
    assert [path for path, by in moved.items() if by < 1e-4] == ["blocks.4.project_norm.bias"]


@pytest.mark.parametrize("micro_batches", (1, 2))
def test_students_count_their_weight_and_log_their_loss_without_it(tiny, micro_batches):
    ramp = {"student_weight": 0.5, "student_ramp": 4}  # half of the way in its second step
    recipe = dataclasses.replace(RECIPE, num_random=0, micro_batches=micro_batches, **ramp)
    _, metrics = run(sandwich_of(tiny, recipe, 2), tiny, batches()[:1], first=1)
    leaves = tiny.child(tiny.space.biggest)[1]
    parts = [{name: rows[m::micro_batches] for name, rows in batches()[0].items()} for m in range(micro_batches)]
    archs = make_members(tiny.space, recipe).architectures(1)
    losses = [torch_step(tiny, leaves, part, archs, 0.25) for part in parts]
    grads = [leaf.grad for leaf in leaves.values() if leaf.grad is not None]
    norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in grads])) / micro_batches
    np.testing.assert_allclose(metrics[0]["loss"], np.mean(losses, 0), rtol=1e-4)
    np.testing.assert_allclose(metrics[0]["gradient_norm"], norm, rtol=1e-4)


@pytest.mark.parametrize("resolve", (None, 0))
def test_before_students_train_a_step_is_the_biggests_alone(tiny, resolve):
    parts = 1 if resolve is None else 2
    recipe = dataclasses.replace(RECIPE, num_random=0, student_start=1, resolve_conflicts_from=resolve,
                                 micro_batches=parts)  # fmt: skip
    sandwich = sandwich_of(tiny, recipe, 2)
    _, metrics = run(sandwich, tiny, batches()[:2])
    assert [len(found["loss"]) for found in metrics] == [1, 2] and len(sandwich.chosen) == 2
    leaves = tiny.child(tiny.space.biggest)[1]
    split = [{name: rows[m::parts] for name, rows in batches()[0].items()} for m in range(parts)]
    losses = [torch_step(tiny, leaves, part, [tiny.space.biggest]) for part in split]
    grads = [leaf.grad for leaf in leaves.values() if leaf.grad is not None]
    norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in grads])) / parts
    np.testing.assert_allclose(metrics[0]["loss"], np.mean(losses, 0), rtol=1e-4)
    np.testing.assert_allclose(metrics[0]["gradient_norm"], norm, rtol=1e-4)


def test_a_sampler_without_students_waits_for_none(tiny):
    recipe = dataclasses.replace(RECIPE, members="slices", student_start=5)
    sandwich = sandwich_of(tiny, recipe, 1)
    _, metrics = run(sandwich, tiny, batches()[:1])
    assert len(metrics[0]["loss"]) == 2 and "update alone" not in sandwich.executables


def test_eight_devices_equal_one(tiny, one, eight):
    (a, metrics_a), (b, metrics_b) = (run(sandwich, tiny, batches()) for sandwich in (one, eight))
    assert_close(b.params, a.params, rtol=1e-4, atol=1e-5)
    assert_close(b.opt_state, a.opt_state, rtol=1e-3, atol=1e-4)
    assert_close(metrics_b, metrics_a, rtol=1e-4)


def first_of(step):
    """The program of the first member."""
    return next(part for part in step.members.programs(step.space) if part.first)


def collectives(executable):
    """Names of the communicating operations of a compiled program; a pair of start and done counts once."""
    kinds = "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute|collective-broadcast"
    return re.findall(rf"= .*?\b({kinds})(?:-start)?\(", executable.as_text())


def test_one_all_reduce_a_step(plain, tiny):
    found = {key: collectives(program) for key, program in plain.executables.items()}
    assert found.pop("update") == ["all-reduce"]
    assert len(found) == 2 + len(tiny.space.resolution)
    assert not any(found.values())


def test_synchronised_batch_norm_is_counted_by_the_same_measure(eight):
    assert collectives(eight.executables[first_of(eight)]).count("all-reduce") > 10
    assert collectives(eight.executables["update"]) == ["all-reduce"]


def test_members_follow_seed_and_step_alone(tiny):
    def drawn(seed):
        recipe = dataclasses.replace(RECIPE, seed=seed)
        return [make_members(tiny.space, recipe).architectures(step) for step in range(20)]

    np.random.seed(0)
    first = drawn(3)
    np.random.seed(1)
    assert first[::-1] == [make_members(tiny.space, RECIPE).architectures(step) for step in reversed(range(20))]
    assert first != drawn(4)
    assert len({step[1:3] for step in first}) > 15
    for step in first:
        assert len(step) == len(make_members(tiny.space, RECIPE).names) == 4
        assert step[0] == tiny.space.biggest and step[-1] == tiny.space.smallest
        assert all(arch in tiny.space for arch in step)


def test_repeated_runs_are_equal_to_the_bit(tiny, plain):
    first, second = (flat(run(plain, tiny, batches())[0]) for _ in range(2))
    assert all(np.array_equal(first[path], second[path]) for path in first)


def test_a_step_that_is_not_finite_changes_nothing_but_the_counters(tiny, plain):
    state, _ = run(plain, tiny, batches()[:1])
    before = jax.tree.map(np.asarray, state)
    linear = before.params["classifier"]["conv"] | {"bias": np.full(CLASSES, np.nan, np.float32)}
    poisoned = before.params | {"classifier": {"conv": linear}}
    broken = plain.init(poisoned)
    broken = dataclasses.replace(broken, opt_state=jax.device_put(before.opt_state, broken.step.sharding),
                                 ema=jax.device_put(before.ema, broken.step.sharding), step=broken.step + 1)
    for count in (1, 2):
        broken, metrics = plain(broken, put(plain, batches()[count]), count)
        assert not metrics["finite"]
        assert (metrics["skipped"], metrics["skipped_in_row"]) == (count, count)
    pairs = (broken.params, poisoned), (broken.opt_state, before.opt_state), (broken.ema, before.ema)
    for kept, old in pairs:
        kept, old = flat(kept), flat(old)
        assert kept.keys() == old.keys()
        assert all(np.array_equal(kept[path], old[path], equal_nan=True) for path in old)
    assert broken.step == 3

    healthy = dataclasses.replace(broken, params=jax.device_put(before.params, broken.step.sharding))
    healthy, metrics = plain(healthy, put(plain, batches()[0]), 3)
    assert metrics["finite"]
    assert (metrics["skipped"], metrics["skipped_in_row"]) == (2, 0)
    assert not np.array_equal(healthy.params["classifier"]["conv"]["bias"], before.params["classifier"]["conv"]["bias"])


def test_ema_follows_the_weights(tiny, plain):
    state, ema = plain.init(tiny.params), tiny.params
    for step, batch in enumerate(batches()):
        state, _ = plain(state, put(plain, batch), step)
        decay = min(0.9, (1 + step) / (10 + step))
        ema = jax.tree.map(lambda e, p, d=decay: d * e + (1 - d) * np.asarray(p), ema, state.params)
    assert_close(state.ema, ema, rtol=1e-5, atol=1e-6)
    assert state.weights is state.ema
    assert not np.array_equal(state.ema["classifier"]["conv"]["kernel"], state.params["classifier"]["conv"]["kernel"])


def test_without_ema_the_weights_are_evaluated(tiny, one):
    state = one.init(tiny.params)
    assert state.ema is None and state.weights is state.params


def test_a_step_donates_its_state(tiny, one):
    state = one.init(tiny.params)
    one(state, put(one, batches()[0]), 0)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.params))


def test_regularisation_is_a_function_of_step_and_device(tiny, plain):
    state = plain.init(tiny.params)
    batch = put(plain, batches()[0])
    member = plain.members.around([])[0]
    runs = [plain.learn(state.params, batch, member, step) for step in (0, 1, 1)]
    losses = [np.asarray(metrics)[:, 0] for _, metrics, _ in runs]
    assert np.all(losses[0] != losses[1]) and np.array_equal(losses[1], losses[2])
    # Devices draw their own masks: on equal images their losses differ.
    same = put(plain, jax.tree.map(lambda a: np.concatenate([a[:2]] * 8), batches()[0]))
    _, metrics, _ = plain.learn(state.params, same, member, 0)
    assert len(np.unique(np.asarray(metrics)[:, 0])) == 8


def test_recipe_reads_the_options():
    from configs import digits

    config = digits.get_config()
    config.seed, config.model.drop_connect, config.optimizer.ema_decay, config.remat = 5, 0.3, 0.99, True
    config.model.dropout, config.model.sync_batch_norm = 0.1, True
    config.sandwich.num_random, config.sandwich.label_smoothing = 3, 0.2
    config.sandwich.candidates, config.sandwich.budget_macs, config.sandwich.uniform_budgets = 5, 2e4, True
    config.sandwich.predictor, config.sandwich.student_weight = "exp/a", 0.5
    expected = Recipe(3, 0.2, 0.1, 0.3, True, 0.99, True, config.data.mean, config.data.std, 5, candidates=5,
                      budget_macs=2e4, uniform_budgets=True, predictor="exp/a", num_classes=10, student_weight=0.5)
    assert Recipe.of(Options.of(config)) == expected


def test_the_weight_of_students_rises_over_a_part_of_the_training():
    from configs import digits

    config = digits.get_config()
    assert not Recipe.of(Options.of(config), 16).weighs_students
    config.epochs, config.sandwich.student_weight, config.sandwich.student_ramp = 10, 0.5, 0.25
    recipe = Recipe.of(Options.of(config), steps_per_epoch=16)
    weights = [recipe.student_weight_at(step) for step in range(160)]
    assert np.allclose(weights[:40], 0.5 * np.arange(1, 41) / 40) and set(weights[40:]) == {0.5}
    config.sandwich.student_weight = 1.0
    assert Recipe.of(Options.of(config), 16).weighs_students
    config.sandwich.student_start = 0.5
    recipe = Recipe.of(Options.of(config), 16)
    assert recipe.student_start == 80
    assert [recipe.student_weight_at(step) for step in (80, 99, 119, 159)] == [1 / 40, 0.5, 1, 1]
    config.sandwich.student_start = 0.0
    config.sandwich.student_weight, config.sandwich.student_ramp = 0.5, 0.0
    assert {Recipe.of(Options.of(config), 16).student_weight_at(step) for step in range(160)} == {0.5}


def test_no_random_member(tiny):
    recipe = dataclasses.replace(RECIPE, num_random=0)
    assert make_members(tiny.space, recipe).architectures(0) == (tiny.space.biggest, tiny.space.smallest)
    assert make_members(tiny.space, recipe).names == ("biggest", "smallest")
