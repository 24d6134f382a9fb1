"""Every member sampler x loss x strategy x space family: each cell a step, an evaluation, and a search of 8.

A sampler, a loss, a strategy and a family of one's own stand beside those of the package, each named as
`package.module:Class`.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from test_own_family import SPACE as OWN_SPACE
from tiny import relative_error

from bignas_jax.config.options import Optimizer, Search
from bignas_jax.errors import ConfigError
from bignas_jax.evaluation import Evaluator
from bignas_jax.ops.losses import cross_entropy
from bignas_jax.programs.buckets import Bucket, shared
from bignas_jax.programs.compile import compile_ahead, lowering
from bignas_jax.programs.devices import batch_sharding, make_mesh
from bignas_jax.programs.weights import build
from bignas_jax.search.problem import Budget, Problem
from bignas_jax.search.strategies.registry import STRATEGIES, make_strategy
from bignas_jax.search.strategies.strategy import Proposal
from bignas_jax.spaces.cost import count
from bignas_jax.spaces.registry import FAMILIES, space_of
from bignas_jax.step.losses import LOSSES, loss_class
from bignas_jax.step.members.protocol import Member, Part, Target
from bignas_jax.step.members.registry import MEMBERS, make_members
from bignas_jax.step.optimizer import optimizer
from bignas_jax.step.recipe import Recipe
from bignas_jax.step.train_step import TrainStep
from configs import digits, ofa_resnet50

CLASSES, BATCH, SIDE = 5, 16, 8


class Hardest:
    """The biggest, and of two random architectures the one that does worse on the batch."""

    scores = True
    names = ("biggest", "hardest")

    def __init__(self, space, recipe):
        self.space, self.seed, self.seen = space, recipe.seed, []
        self.first = Part(Bucket(space.biggest, masked=False), Target.LABELS, first=True)

    def programs(self, space):
        return (self.first, *(Part(shared(space, r), Target.TEACHER) for r in space.resolutions))

    def choose(self, step, score):
        rng = np.random.default_rng((self.seed, step))
        drawn = [self.space.sample(rng) for _ in range(2)]
        losses = score(drawn)
        worst = drawn[int(np.argmax(losses))]
        self.seen.append((drawn, losses, worst))
        return Member(self.space.biggest, self.first), Member(worst, Part(shared(self.space, worst.resolution),
                                                                          Target.TEACHER))  # fmt: skip


class HalfAndHalf:
    """Students learn half from the labels; the divergence from the teacher is logged."""

    metrics = ("from_teacher",)

    def __init__(self, recipe):
        self.smoothing = recipe.label_smoothing

    def __call__(self, logits, targets, teacher_logits):
        own = cross_entropy(logits, targets)
        if teacher_logits is None:
            return own, {"from_teacher": 0.0 * own}
        soft = cross_entropy(logits, jax.nn.softmax(teacher_logits))
        return 0.5 * own + 0.5 * soft, {"from_teacher": soft}


class Cheapest:
    """Goes through the space from its cheap end."""

    front = False

    def __init__(self, problem, options):
        self.left = sorted(problem.space.enumerate(), key=problem.cost_of)

    def ask(self, count, pool=1):
        asked, self.left = self.left[:count], self.left[count:]
        return [Proposal(arch, "cheapest", screen=False) for arch in asked]

    def tell(self, scores):
        pass


def tiny_mobilenet():
    config = digits.get_config().space
    stage = dict(depth=(1, 2), kernel_size=(3,), expand_ratio=(2,), se=True)
    config.update(resolution=(8,), stem_width=(8,), head_width=(16,))
    config.stages = ConfigDict(dict(mb1=dict(stage, width=(8, 16), stride=2)))
    return space_of(config)


def tiny_ofa():
    config = tiny_mobilenet().to_dict() | {"family": "ofa", "epsilon": 1e-3, "kernel_transforms": True}
    stage = dict(config["stages"]["mb1"], kernel_size=[[3, 5], [3, 5]], activation="relu6", width=[8])
    return space_of(config | {"stages": {"mb1": stage}})


def tiny_resnet():
    config = ofa_resnet50.get_config().space.to_dict() | dict(resolution=(8,), stem_width=(8,), stem_pool=False)
    stages = {name: dict(config["stages"][name], depth=(1, 2), width=(8, 16)) for name in ("rb0", "rb1")}
    stages["rb1"].update(expand_ratio=((0.5, 1.0),) * 2, stride=1)
    return space_of(config | {"stages": stages})


SAMPLERS = [*MEMBERS, f"{__name__}:Hardest"]
KINDS_OF_LOSS = [*LOSSES, f"{__name__}:HalfAndHalf"]
# Slices learn from the labels alone here, where all losses but one of one's own are the same.
PAIRS = [(members, loss) for members in SAMPLERS for loss in KINDS_OF_LOSS
         if members != "slices" or loss in (KINDS_OF_LOSS[0], KINDS_OF_LOSS[-1])]  # fmt: skip
EACH_STRATEGY = [*STRATEGIES, f"{__name__}:Cheapest"]
SPACES = {"mobilenet": tiny_mobilenet, "ofa": tiny_ofa, "resnet": tiny_resnet, "own": lambda: OWN_SPACE}


def batch_on(mesh):
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.integers(0, 256, (BATCH, SIDE, SIDE, 3), np.uint8),
        "label": rng.integers(0, CLASSES, BATCH).astype(np.int32),
        "weight": np.ones(BATCH, np.float32),
    }
    return jax.device_put(batch, batch_sharding(mesh))


@pytest.fixture(scope="module", autouse=True)
def programs_end_with_their_module():
    yield
    for kept in (COMPILED.clear, trained.cache_clear, evaluator_of.cache_clear, network_of.cache_clear):
        kept()
    jax.clear_caches()


@functools.cache
def network_of(family):
    """The space, the graphdef and fresh weights: to draw weights takes a compile."""
    space = SPACES[family]()
    return space, *build(space, CLASSES)


@functools.cache
def evaluator_of(family):
    # One family on two devices: the cells of the others compile a sixth faster, and there are many.
    (space, graphdef, params), mesh = network_of(family), make_mesh(2 if family == "own" else 1, {})
    evaluator = Evaluator(space, graphdef, mesh, (0.5,) * 3, (0.25,) * 3)
    buckets = [shared(space, resolution) for resolution in space.resolutions]
    evaluator.compile(params, buckets, SIDE, BATCH, BATCH, progress=False)
    return evaluator


COMPILED = {}


def compiled(step, state, family):
    """The executables of a step. Cells share them: no sampler changes what a part is, and no loss what a score is."""
    jobs, loss, members = step.programs(state, batch_on(step.mesh)), step.recipe.loss, len(step.members.names)
    keys = {}
    for key in jobs:
        is_score = isinstance(key, tuple) and key[0] == "score"
        keys[key] = family, key, "" if is_score else loss, members if key == "update" else 0
    new = {keys[key]: job for key, job in jobs.items() if keys[key] not in COMPILED}
    COMPILED.update(compile_ahead(lowering(new), progress=False))
    return {key: COMPILED[full] for key, full in keys.items()}


@functools.cache
def trained(family, members, loss):
    """One step: the sampler, the weights after it, and its metrics."""
    evaluator = evaluator_of(family)
    space, mesh = evaluator.space, evaluator.mesh
    recipe = Recipe(num_random=1, members=members, loss=loss, mean=(0.5,) * 3, std=(0.25,) * 3)
    step = TrainStep(space, evaluator.graphdef, recipe, optimizer(Optimizer(), lambda _: 0.05), mesh)
    state = step.init(jax.tree.map(jnp.copy, network_of(family)[2]))
    step.executables = compiled(step, state, family)
    before = jax.tree.map(np.asarray, state.params)
    state, metrics = step(state, batch_on(mesh), 0)
    return step, before, state.params, jax.tree.map(np.asarray, metrics)


def test_every_family_is_here():
    assert set(FAMILIES) == set(SPACES) - {"own"}


@pytest.mark.parametrize("family", SPACES)
@pytest.mark.parametrize("members, loss", PAIRS)
def test_a_step_an_evaluation_and_a_search_with_each_strategy(members, loss, family):
    step, before, params, metrics = trained(family, members, loss)
    assert len(metrics["loss"]) == len(step.members.names) and np.isfinite(metrics["loss"]).all()
    moved = jax.tree.map(lambda a, b: not np.array_equal(a, b), before, jax.tree.map(np.asarray, params))
    assert any(jax.tree.leaves(moved))
    assert all(len(metrics[name]) == len(step.members.names) for name in step.loss.metrics)

    evaluator = evaluator_of(family)
    space, batch = evaluator.space, batch_on(evaluator.mesh)
    scores = {}

    def score(arch):
        if arch not in scores:
            archs = {arch: shared(space, arch.resolution)}
            statistics = evaluator.calibrate(params, archs, [batch], 1)
            scores[arch] = evaluator.score(params, archs, statistics, [batch])[arch].top1
        return scores[arch]

    assert 0 <= score(space.biggest) <= 1
    budget = Budget("half", macs=0.8 * count(space, space.biggest, CLASSES).macs)
    for name in EACH_STRATEGY:
        problem = Problem(space, CLASSES, [budget])
        strategy = make_strategy(Search(strategy=name, num_evaluations=8, population=4), problem)
        found = {}
        while len(found) < 8:
            asked = strategy.ask(min(4, 8 - len(found)))
            told = {p.arch: score(p.arch) for p in asked}
            strategy.tell(told)
            if not told.keys() - found.keys():
                break
            found |= told
        assert found and all(arch in space for arch in found), name


def test_scores_are_losses_and_the_sampler_acts_on_them():
    step, before, _, _ = trained("mobilenet", f"{__name__}:Hardest", "soft_cross_entropy")
    ((drawn, losses, worst),) = step.members.seen
    assert worst == drawn[int(np.argmax(losses))]
    again = step.score(before, batch_on(step.mesh), drawn)
    assert relative_error(again, losses) < 1e-5 and all(0 < loss < 10 for loss in losses)
    other = trained("mobilenet", "sandwich", "soft_cross_entropy")[0]
    with pytest.raises(RuntimeError, match="`scores` is True"):
        other.score(before, batch_on(step.mesh), drawn)


def test_a_loss_of_one_s_own_is_the_one_that_is_computed():
    _, _, _, ours = trained("mobilenet", "sandwich", f"{__name__}:HalfAndHalf")
    _, _, _, theirs = trained("mobilenet", "sandwich", "soft_cross_entropy")
    np.testing.assert_allclose(ours["from_teacher"][1:], theirs["loss"][1:], rtol=1e-5)
    assert ours["from_teacher"][0] == 0 and not np.allclose(ours["loss"][1:], theirs["loss"][1:], rtol=1e-4)


@pytest.mark.parametrize("find, field", [
    (lambda name: make_members(tiny_mobilenet(), Recipe(members=name)), "config.sandwich.members"),
    (loss_class, "config.sandwich.loss"),
    (lambda name: make_strategy(Search(strategy=name), None), "config.search.strategy"),
])
def test_what_is_not_there_is_named(find, field):
    with pytest.raises(ConfigError, match=f"{field}: cannot import 'nowhere'"):
        find("nowhere:Class")
    with pytest.raises(ConfigError, match=f"{field}: found no 'Nothing' in the module {__name__}"):
        find(f"{__name__}:Nothing")
