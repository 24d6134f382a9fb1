"""Attentive sampling: the table of budgets, the candidates, and the choice against the same by PyTorch."""

import dataclasses
import json

import jax
import jax.monitoring
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sandwich_cases import BATCH, MEAN, RATE, SGD, STD, batches, torch_images
from tiny import CLASSES, flat, run_child, tiny_space

from bignas_jax.errors import ConfigError
from bignas_jax.programs.compile import compile_ahead, lowering
from bignas_jax.programs.devices import batch_sharding, make_mesh
from bignas_jax.programs.weights import build
from bignas_jax.spaces.cost import count
from bignas_jax.spaces.mobilenet import SearchSpace, Stage
from bignas_jax.step.members import budgets
from bignas_jax.step.members.attentive import BestUp, WorstUp
from bignas_jax.step.members.registry import make_members
from bignas_jax.step.optimizer import optimizer
from bignas_jax.step.recipe import Recipe
from bignas_jax.step.state import TrainState
from bignas_jax.step.train_step import TrainStep
from bignas_jax.training.curves import curves
from bignas_jax.training.prepared import keep, prepared

RECIPE = Recipe(num_random=2, label_smoothing=0.1, sync_batch_norm=True, mean=MEAN, std=STD, seed=3, members="best_up",
                num_classes=CLASSES)  # fmt: skip
SPACE = tiny_space()


@pytest.fixture(scope="module")
def table():
    return budgets.make(SPACE, CLASSES, 3, budgets.width_of(SPACE, CLASSES, 0))


@pytest.fixture(scope="module")
def by_budget():
    """All architectures of the space by budget, counted one by one."""
    width, found = budgets.width_of(SPACE, CLASSES, 0), {}
    for arch in SPACE.enumerate():
        # round() of Python, half to even, as the released code rounds
        found.setdefault(round(count(SPACE, arch, CLASSES).macs / width) * width, []).append(arch)
    return found


def test_table_holds_the_shares_of_the_whole_space(table, by_budget):
    """Every count is within 5 deviations of its expectation, which an enumeration of the space gives."""
    draws = sum(row["draws"] for row in table["budgets"])
    assert draws == 100_000
    assert {row["macs"] for row in table["budgets"]} <= by_budget.keys()
    met = {row["macs"]: row for row in table["budgets"]}
    assert all(len(archs) / SPACE.size < 1e-3 for macs, archs in by_budget.items() if macs not in met)
    assert len(met) > 30
    for macs, row in met.items():
        share = len(by_budget[macs]) / SPACE.size
        assert abs(row["draws"] - draws * share) < 5 * np.sqrt(draws * share * (1 - share)) + 1
        genes = np.array([SPACE.indices(arch) for arch in by_budget[macs]])
        for own, counts in zip(genes.T, row["counts"], strict=True):
            assert sum(counts) == row["draws"]  # every choice matters in every architecture of this space
            expected = np.bincount(own, minlength=len(counts)) / len(own)
            assert np.all(np.abs(counts - row["draws"] * expected)
                          < 5 * np.sqrt(row["draws"] * expected * (1 - expected)) + 1)  # fmt: skip


def test_choices_of_idle_blocks_do_not_count():
    by_block = Stage("mb1", (8,), depth=(1, 2), kernel_size=((3,), (3, 5)), expand_ratio=(2,), stride=2, se=False)
    space = SearchSpace((8,), (8,), 1, (by_block,), (16,), False, "relu")
    rows = budgets.make(space, 5, 0, budgets.width_of(space, 5, 0))["budgets"]
    second = next(n for n, choice in enumerate(space.choices) if choice.block == 1)
    depth = next(n for n, choice in enumerate(space.choices) if choice.kind == "depth")
    assert [sum(row["counts"][second]) for row in rows] == [row["counts"][depth][1] for row in rows]
    members = budgets.Budgets(space, 5, {"made_for": {"width": budgets.width_of(space, 5, 0)}, "budgets": rows})
    assert members.candidate(0, np.random.default_rng(0)) == space.smallest  # a choice that was never met is drawn, too


def test_budgets_are_drawn_by_their_share_or_uniformly(table):
    made, rng, number = budgets.Budgets(SPACE, CLASSES, table), np.random.default_rng(0), 20_000
    for uniform, expected in ((False, made.share), (True, np.full(len(made.macs), 1 / len(made.macs)))):
        drawn = np.bincount([made.draw(rng, uniform) for _ in range(number)], minlength=len(made.macs))
        assert np.all(np.abs(drawn - number * expected) < 5 * np.sqrt(number * expected) + 1)
    assert abs(made.share - 1 / len(made.macs)).max() > 0.01


def test_candidates_lie_in_the_budget_and_follow_the_table(table, by_budget):
    made, rng = budgets.Budgets(SPACE, CLASSES, table), np.random.default_rng(0)
    drawn = [made.draw(rng) for _ in range(300)]
    width = table["made_for"]["width"]
    fits = [budgets.nearest(count(SPACE, made.candidate(b, rng), CLASSES).macs, width) == made.macs[b] for b in drawn]
    assert np.mean(fits) > 0.97
    # In a budget, a value is drawn as often as the budget's architectures have it, apart from what the tries change.
    budget = int(np.argmax(made.share))
    members = np.array([SPACE.indices(arch) for arch in by_budget[made.macs[budget]]])
    genes = np.array([SPACE.indices(made.candidate(budget, rng)) for _ in range(400)])
    for own, found, choice in zip(members.T, genes.T, SPACE.choices, strict=True):
        shares = [np.bincount(column, minlength=len(choice)) / len(column) for column in (own, found)]
        assert np.abs(shares[0] - shares[1]).max() < 0.25
        assert not np.any((shares[0] == 0) & (shares[1] > 0))


def test_a_candidate_that_never_fits_is_taken_as_it_is(table):
    rows = table["budgets"]
    moved = {"made_for": table["made_for"], "budgets": [rows[0] | {"macs": -1.0, "counts": rows[-1]["counts"]}]}
    made = budgets.Budgets(SPACE, CLASSES, moved)
    genes = SPACE.indices(made.candidate(0, np.random.default_rng(0)))
    assert all(counts[gene] for gene, counts in zip(genes, rows[-1]["counts"], strict=True))


def test_candidates_follow_from_seed_and_step(table):
    first, again = BestUp(SPACE, RECIPE, table), WorstUp(SPACE, RECIPE)  # the second one makes the table itself
    backwards = [again.candidates(step) for step in reversed(range(5))]
    assert [first.candidates(step) for step in range(5)] == backwards[::-1]
    other = BestUp(SPACE, dataclasses.replace(RECIPE, seed=4))
    assert first.candidates(0) != other.candidates(0)
    assert [len(own) for own in first.candidates(0)] == [3, 3]
    assert first.names == ("biggest", "best1", "best2", "smallest") and again.names[1] == "worst1"


@pytest.mark.parametrize("sampler, losses, position", [
    (BestUp, [3.0, 1.0, 2.0], 1), (WorstUp, [3.0, 1.0, 2.0], 0),
    (BestUp, [2.0, 1.0, 1.0], 1), (WorstUp, [1.0, 2.0, 2.0], 1),
    (BestUp, [np.nan, 9.0, np.inf], 1), (WorstUp, [np.inf, 1.0, np.nan], 1),
    (BestUp, [np.nan] * 3, 0), (WorstUp, [np.nan] * 3, 0),
])  # fmt: skip
def test_which_candidate_is_taken(table, sampler, losses, position):
    assert sampler(SPACE, RECIPE, table).best(losses) == position


def test_one_candidate_is_taken_without_a_score(table):
    members = BestUp(SPACE, dataclasses.replace(RECIPE, candidates=1), table)
    assert not members.scores
    chosen = members.choose(7, None)
    assert [member.arch for member in chosen[1:-1]] == [own[0] for own in members.candidates(7)]
    alone = BestUp(SPACE, dataclasses.replace(RECIPE, num_random=0), table)
    assert [member.arch for member in alone.choose(0, None)] == [SPACE.biggest, SPACE.smallest]


def test_budgets_too_narrow_are_refused():
    with pytest.raises(ConfigError, match=r"config.sandwich.budget_macs: found 25, expected at least .* or 0 for 64"):
        make_members(SPACE, dataclasses.replace(RECIPE, budget_macs=25.0))
    assert len(BestUp(SPACE, dataclasses.replace(RECIPE, budget_macs=1e5))._budgets.macs) < 64


def scorer(tiny, devices):
    """The programs of scores alone, and the weights."""
    mesh = make_mesh(devices, {"batch_size": BATCH})
    step = TrainStep(tiny.space, tiny.graphdef, RECIPE, optimizer(SGD, lambda step: RATE), mesh)
    state = step.init(tiny.params)
    jobs = {key: job for key, job in step.programs(state, batches()[0]).items() if "score" in str(key)}
    assert len(jobs) == len(tiny.space.resolutions)
    step.executables = compile_ahead(lowering(jobs), progress=False)
    return step, state.params


def test_the_choice_is_that_of_pytorch_on_one_device_and_on_eight(tiny):
    """By hand: each candidate in PyTorch on the whole batch, with its own statistics; then the least or most loss."""
    leaves, found = tiny.child(tiny.space.biggest)[1], {}
    steps = {devices: scorer(tiny, devices) for devices in (1, 8)}
    for number, batch in enumerate(batches()):
        label = torch.tensor(batch["label"]).long()
        drawn = steps[1][0].members.candidates(number)
        losses = []
        for arch in (arch for own in drawn for arch in own):
            child = tiny.child(arch)[0].statistics("batch")
            with torch.no_grad():
                logits = run_child(child, leaves, torch_images(batch, arch.resolution))
            losses.append(F.cross_entropy(logits, label, label_smoothing=0.1).item())
        for (step, params) in steps.values():
            on_devices = jax.device_put(batch, batch_sharding(step.mesh))

            def score(archs, step=step, params=params, on_devices=on_devices):
                return step.score(params, on_devices, archs)

            np.testing.assert_allclose(score([arch for own in drawn for arch in own]), losses, rtol=1e-4)
            for sampler, pick in ((BestUp, min), (WorstUp, max)):
                chosen = sampler(tiny.space, RECIPE).choose(number, score)
                by_hand = [own[row.index(pick(row))] for own, row in zip(drawn, (losses[:3], losses[3:]), strict=True)]
                assert [m.arch for m in chosen] == [tiny.space.biggest, *by_hand, tiny.space.smallest]
                found.setdefault(sampler, []).append(by_hand)
    assert all(a != b for a, b in zip(found[BestUp], found[WorstUp], strict=True))


SMALL = SearchSpace((8,), (8,), 1, (Stage("mb1", (8, 16), (1, 2), (3,), (2, 3), stride=2, se=False),), (16,), False,
                    "relu")  # fmt: skip


def small_step(folder, members):
    recipe = dataclasses.replace(RECIPE, members=members, sync_batch_norm=False)
    graphdef, params = build(SMALL, CLASSES)
    mesh, made = make_mesh(4, {"batch_size": BATCH}), prepared(folder, SMALL, recipe)
    keep(folder, made)
    step = TrainStep(SMALL, graphdef, recipe, optimizer(SGD, lambda step: RATE), mesh, prepared=made)
    return step, step.init(params)


def run(step, state, first, stop):
    seen = []
    for number in range(first, stop):
        batch = jax.device_put(batches(number)[0], batch_sharding(step.mesh))
        state, metrics = step(state, batch, number)
        seen.append((tuple(member.arch for member in step.chosen), curves(step, metrics, CLASSES)))
    return state, seen


def test_a_run_that_goes_on_chooses_the_same_and_ends_with_the_same_bits(tmp_path):
    """It goes on in a new step with the table from the run's folder. Nothing compiles after the first step."""
    durations = []

    def listen(event, duration, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            durations.append(duration)

    step, state = small_step(tmp_path, "best_up")
    step.compile(state, batches()[0], progress=False)
    # Biggest, smallest, one resolution to train and to score, and the update.
    assert len(step.executables) == 5
    state, seen = run(step, state, 0, 1)
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        state, more = run(step, state, 1, 2)
        kept = jax.tree.map(np.asarray, state)
        end, rest = run(step, state, 2, 6)
        assert durations == []
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)

    written = (tmp_path / "members.json").read_bytes()
    again, fresh = small_step(tmp_path, "best_up")
    again.executables = step.executables
    restored = jax.tree.map(lambda a, like: jax.device_put(a, like.sharding), kept, fresh)
    assert isinstance(restored, TrainState)
    end_again, rest_again = run(again, restored, 2, 6)
    assert (tmp_path / "members.json").read_bytes() == written
    assert rest_again == rest and len({archs for archs, _ in seen + more + rest}) > 3
    assert {"macs/best1", "macs/best2", "loss/best1", "accuracy/smallest"} <= rest[0][1].keys()
    assert rest[0][1]["macs/best1"] == count(SMALL, rest[0][0][1], CLASSES).macs
    found, expected = flat(end_again), flat(end)
    assert all(found[name].tobytes() == value.tobytes() for name, value in expected.items())


def test_the_folder_s_table_is_the_one_that_a_run_goes_on_with(tmp_path):
    recipe = dataclasses.replace(RECIPE, members="best_up")

    def kept(recipe):
        made = prepared(tmp_path, SMALL, recipe)
        keep(tmp_path, made)
        return made

    made, path = kept(recipe), tmp_path / "members.json"
    assert json.loads(path.read_text()) == made
    of_older_code = made | {"budgets": made["budgets"][:3]}
    path.write_text(json.dumps(of_older_code))
    assert kept(recipe) == of_older_code == json.loads(path.read_text())
    damaged = [json.dumps(made)[:-9], "[]", json.dumps(made | {"budgets": []}),
               json.dumps(made | {"budgets": [made["budgets"][0] | {"counts": [[1]]}]})]  # fmt: skip
    for text in damaged:
        path.write_text(text)
        assert kept(recipe) == made == json.loads(path.read_text())
    other = kept(dataclasses.replace(recipe, seed=9))
    assert other != made and other == json.loads(path.read_text())
    keep(tmp_path / "none", prepared(tmp_path / "none", SMALL, Recipe()))
    assert not (tmp_path / "none").exists()


def searched(folder, archs):
    """A run's folder with a search whose accuracies rise with the depth and the width alone."""
    rows = [{"architecture": arch.to_dict(), "top1": sum(arch.depth) / 10 + sum(arch.width) / 1000} for arch in archs]
    (folder / "search").mkdir(parents=True, exist_ok=True)
    (folder / "search" / "result.json").write_text(json.dumps({"evaluations": rows}))


def test_a_predictor_chooses_what_it_predicts_best_or_worst(tmp_path):
    rng = np.random.default_rng(0)
    searched(tmp_path / "run", [SPACE.sample(rng) for _ in range(60)])
    recipe = dataclasses.replace(RECIPE, predictor=str(tmp_path / "run"))
    keep(tmp_path, prepared(tmp_path, SPACE, recipe))
    (tmp_path / "run/search/result.json").unlink()  # a run goes on with what its own folder holds
    made = prepared(tmp_path, SPACE, recipe)
    samplers = [sampler(SPACE, recipe, made) for sampler in (BestUp, WorstUp)]
    found = []
    for step in range(15):
        drawn = samplers[0].candidates(step)
        for own, *chosen in zip(drawn, *(sampler.choose(step, None)[1:-1] for sampler in samplers), strict=True):
            true = {arch: sum(arch.depth) / 10 + sum(arch.width) / 1000 for arch in own}
            best, worst = (true[member.arch] for member in chosen)
            found.append((best - min(true.values()), max(true.values()) - best, worst - min(true.values())))
    above, missed, wrong = np.mean(found, axis=0)
    assert missed < 0.2 * above and wrong < 0.2 * above and not samplers[0].scores
    loss_again = prepared(tmp_path, SPACE, RECIPE)
    assert "evaluations" not in loss_again and loss_again == budgets.make(SPACE, CLASSES, 3, made["made_for"]["width"])


@pytest.mark.parametrize("prepare, message", [
    (lambda folder: None, "cannot read .*result.json .*expected the folder of a run that search.py has searched"),
    (lambda folder: searched(folder, [SPACE.smallest] * 7), "found 7 evaluations, expected at least 8"),
    (lambda folder: searched(folder, [SMALL.smallest] * 9), "found an evaluation of another search space"),
])  # fmt: skip
def test_a_predictor_without_evaluations_is_refused(tmp_path, prepare, message):
    prepare(tmp_path)
    with pytest.raises(ConfigError, match=f"config.sandwich.predictor: .*{message}"):
        prepared(tmp_path, SPACE, dataclasses.replace(RECIPE, predictor=str(tmp_path)))
