"""Where architectures run, and that nothing compiles once the executables are there."""

import dataclasses
import math
import threading
import time

import jax
import jax.monitoring
import numpy as np
import pytest
from flax import nnx
from tiny import CLASSES

from bignas_jax.config.options import Optimizer
from bignas_jax.evaluation import Evaluator
from bignas_jax.kernels import native
from bignas_jax.kernels.depthwise.choice import using
from bignas_jax.nets.sizes import sizes
from bignas_jax.programs.buckets import Bucket, bucket_for, shared
from bignas_jax.programs.compile import compile_ahead
from bignas_jax.programs.devices import batch_sharding, make_mesh, replicate
from bignas_jax.spaces.cost import count
from bignas_jax.step.members.registry import make_members
from bignas_jax.step.optimizer import optimizer
from bignas_jax.step.recipe import Recipe
from bignas_jax.step.train_step import TrainStep

SIDE, BATCH = 24, 8
MEAN, STD = (0.5,) * 3, (0.25,) * 3
SGD = Optimizer(name="sgd", momentum=0.9, nesterov=True, weight_decay=0.01, clip_norm=1.0)


def test_bucket_of_an_architecture(tiny):
    space = tiny.space
    assert bucket_for(space, space.biggest) == Bucket(space.biggest, masked=False)
    assert bucket_for(space, space.smallest) == Bucket(space.smallest, masked=False)
    other = dataclasses.replace(space.smallest, resolution=26)
    assert bucket_for(space, other) == shared(space, 26) == Bucket(space.biggest, masked=True)
    rng = np.random.default_rng(0)
    found = {bucket_for(space, space.sample(rng)) for _ in range(200)}
    assert found == {Bucket(dataclasses.replace(space.biggest, resolution=r), masked=True) for r in (20, 26)}


def test_an_architecture_outside_the_space_is_refused(tiny):
    with pytest.raises(ValueError, match="resolution: found 23, allowed 20, 26"):
        bucket_for(tiny.space, dataclasses.replace(tiny.space.smallest, resolution=23))


def test_what_an_executable_is_told(tiny):
    space = tiny.space
    sliced = Bucket(space.smallest, masked=False)
    assert sliced.sampled(space, space.smallest) is None
    with pytest.raises(ValueError, match="has no place in the sliced bucket"):
        sliced.sampled(space, space.biggest)
    told, expected = shared(space, 20).sampled(space, space.smallest), sizes(
        space, dataclasses.replace(space.biggest, resolution=20), space.smallest)
    np.testing.assert_array_equal(told, expected)


def run_by(jaxpr, operands) -> int:
    """Multiply-adds of a traced program, of a conditional only the branch that is taken.

    Args:
      operands: their values; None where unknown. What decides a conditional must be known.
    """
    values = dict(zip(jaxpr.jaxpr.constvars, jaxpr.consts, strict=True))
    values |= dict(zip(jaxpr.jaxpr.invars, operands, strict=True))
    total = 0
    for eqn in jaxpr.jaxpr.eqns:
        inputs = [v.val if hasattr(v, "val") else values[v] for v in eqn.invars]
        name, params = eqn.primitive.name, eqn.params
        inner = [p for p in params.values() if hasattr(p, "jaxpr") and hasattr(p, "consts")]
        outputs = [None] * len(eqn.outvars)
        if name == "cond":
            total += run_by(params["branches"][int(inputs[0])], inputs[1:])
        elif name == "dot_general":
            (contracted, _), _ = params["dimension_numbers"]
            total += eqn.outvars[0].aval.size * math.prod(eqn.invars[0].aval.shape[d] for d in contracted)
        elif name == "conv_general_dilated":
            kernel = eqn.invars[1].aval
            total += eqn.outvars[0].aval.size * kernel.size // kernel.shape[params["dimension_numbers"].rhs_spec[0]]
        elif inner and all(v is not None for v in inputs):
            outputs = jax.core.eval_jaxpr(inner[0].jaxpr, inner[0].consts, *inputs)
        elif inner:
            total += run_by(inner[0], inputs)
        elif all(v is not None for v in inputs):
            outputs = eqn.primitive.bind(*inputs, **params)
            outputs = outputs if eqn.primitive.multiple_results else [outputs]
        values |= dict(zip(eqn.outvars, outputs, strict=True))
    return total


@pytest.mark.parametrize("variant", ["tiny", "tiny_v3"])
def test_multiply_adds_are_those_that_the_traced_program_runs(variant, request):
    made = request.getfixturevalue(variant)
    space, rng = made.space, np.random.default_rng(0)
    archs = [space.biggest, space.smallest, *(space.sample(rng) for _ in range(8))]
    ratios = []
    for arch in archs:
        for bucket in (shared(space, arch.resolution), Bucket(arch, masked=False)):
            def forward(params, image, sampled, bucket=bucket):
                return nnx.merge(made.graphdef, params)(image, bucket.arch, sampled)[0]

            sampled = bucket.sampled(space, arch)
            image = jax.ShapeDtypeStruct((1, arch.resolution, arch.resolution, 3), np.float32)
            with native.off(), using("grouped"):
                jaxpr = jax.make_jaxpr(forward)(made.params, image, sampled)
            operands = [None] * (len(jax.tree.leaves(made.params)) + 1) + jax.tree.leaves(sampled)
            assert run_by(jaxpr, operands) == bucket.executed(space, arch, CLASSES)
            ratios.append(bucket.executed(space, arch, CLASSES) / count(space, arch, CLASSES).macs)
    masked, sliced = ratios[::2], ratios[1::2]
    assert set(sliced) == {1.0} and min(masked) > 1 and len(set(masked)) > 5


class Lowered:
    """Stands for a lowered program: its compile takes a while, and says what ran beside it."""

    running, most, lock = 0, 0, threading.Lock()

    def __init__(self, key):
        self.key = key

    def compile(self):
        with self.lock:
            Lowered.running += 1
            Lowered.most = max(Lowered.most, Lowered.running)
        time.sleep(0.2)
        with self.lock:
            Lowered.running -= 1
        if self.key == "bad":
            raise RuntimeError("out of memory")
        return f"compiled {self.key}"


def test_programs_compile_side_by_side(monkeypatch, capfd):
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    keys = ["a", "b", "c", "d"]
    found = compile_ahead({key: lambda key=key: Lowered(key) for key in keys}, "some programs")
    assert found == {key: f"compiled {key}" for key in keys}
    assert Lowered.most == 4
    output = capfd.readouterr()
    assert "some programs: 100%" in output.err and "4/4" in output.err and not output.out
    compile_ahead({"a": lambda: Lowered("a")}, progress=False)
    assert not capfd.readouterr().err


def test_a_failed_compile_is_not_lost():
    with pytest.raises(RuntimeError, match="out of memory"):
        compile_ahead({key: lambda key=key: Lowered(key) for key in ("a", "bad")}, progress=False)


@pytest.fixture(scope="module")
def compiles():
    """A list that grows with every program that JAX builds."""
    found = []

    def listen(event, duration, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            found.append(duration)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield found
    jax.monitoring.unregister_event_duration_listener(listen)


def data(mesh):
    rng = np.random.default_rng(0)
    batch = {"image": rng.integers(0, 256, (BATCH, SIDE, SIDE, 3), np.uint8),
             "label": rng.integers(0, 7, BATCH).astype(np.int32), "weight": np.ones(BATCH, np.float32)}
    return jax.device_put(batch, batch_sharding(mesh))


def test_two_hundred_architectures_train_without_a_compile(tiny, compiles):
    mesh = make_mesh(2, {})
    recipe = Recipe(num_random=10, mean=MEAN, std=STD)
    sandwich = TrainStep(tiny.space, tiny.graphdef, recipe, optimizer(SGD, lambda step: 0.01), mesh)
    state, batch = sandwich.init(tiny.params), data(mesh)
    compiles.clear()
    sandwich.compile(state, batch, progress=False)
    # Biggest, smallest, one a resolution, and the update.
    assert len(sandwich.executables) == 3 + len(tiny.space.resolution) == len(compiles)
    compiles.clear()
    seen = set()
    for step in range(20):
        state, metrics = sandwich(state, batch, step)
        seen |= set(make_members(tiny.space, recipe).architectures(step)[1:-1])
    assert np.isfinite(metrics["loss"]).all() and len(metrics["loss"]) == 12
    assert len(seen) > 150
    assert compiles == []
    jax.jit(lambda x: x + 1.5)(1.0)
    assert compiles, "the listener is deaf"


def test_two_hundred_architectures_are_evaluated_without_a_compile(tiny, compiles):
    mesh = make_mesh(2, {})
    evaluator = Evaluator(tiny.space, tiny.graphdef, mesh, MEAN, STD)
    params, batch, rng = replicate(mesh, tiny.params), data(mesh), np.random.default_rng(0)
    archs = {arch: bucket_for(tiny.space, arch) for arch in (tiny.space.sample(rng) for _ in range(200))}
    compiles.clear()
    evaluator.compile(params, set(archs.values()), SIDE, BATCH, BATCH, progress=False)
    assert len(evaluator.executables) == 2 * len(tiny.space.resolution) == len(compiles)
    compiles.clear()
    evaluator.compile(params, set(archs.values()), SIDE, BATCH, BATCH, progress=False)
    statistics = evaluator.calibrate(params, archs, [batch], 1)
    scores = evaluator.score(params, archs, statistics, [batch])
    assert len(scores) > 150 and all(score.images == BATCH for score in scores.values())
    assert compiles == []
