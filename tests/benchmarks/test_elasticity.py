"""The figures of elasticity's benchmark: on cases where they are known, and that it sees what it looks for."""

import json
import runpy
from pathlib import Path

import jax
import numpy as np
import pytest

from bignas_jax.programs import memory
from bignas_jax.programs.buckets import Bucket
from bignas_jax.spaces.cost import count
from bignas_jax.step.members.registry import make_members
from bignas_jax.step.recipe import Recipe

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "elasticity.py"


@pytest.fixture(scope="module")
def benchmark():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory, "keep_freed_memory", lambda: None)  # it would hold for all tests of this process
        yield runpy.run_path(str(BENCHMARK))


def test_a_ratio_of_steps_is_that_of_sums_over_their_members(benchmark, tiny, monkeypatch):
    space = tiny.space
    monkeypatch.setattr(Bucket, "executed", lambda self, *_: 100 if self.masked else 7)
    members = make_members(space, Recipe())
    exact = sum(count(space, arch, 1000).macs for step in range(3) for arch in members.architectures(step))
    assert benchmark["macs_ratio"](space, 3) == pytest.approx(3 * (2 * 100 + 2 * 7) / exact)


def test_a_compile_in_a_later_step_is_seen(benchmark, tiny, monkeypatch):
    TrainStep = benchmark["TrainStep"]
    step_of = TrainStep.__call__

    def call(self, state, batch, step):
        if step == 2:
            jax.jit(lambda x: x + 1)(np.zeros(step))
        return step_of(self, state, batch, step)

    assert benchmark["num_executables"](tiny.space) == 3 + len(tiny.space.resolution)
    monkeypatch.setattr(TrainStep, "__call__", call)
    assert benchmark["compiles_after_warmup"](tiny.space, 2) == 1


def test_quick_run_reports_its_figures(benchmark, tmp_path, monkeypatch):
    # The full run's own compile count is tested above.
    monkeypatch.setitem(benchmark["main"].__globals__, "compiles_after_warmup", lambda *_: 0)
    benchmark["main"](["--quick", "--json", str(tmp_path / "out.json")])
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["benchmark"] == "elasticity" and found["quick"] is True
    by_name = {row["name"]: row for row in found["results"]}
    assert len(benchmark["SPACES"]) == 6
    for name in benchmark["SPACES"]:
        macs = by_name[f"multiply-adds over exact slicing, {name}"]
        assert macs["target"] == 1.10 and macs["better"] == "lower" and 1.05 < macs["value"] <= 1.10
        assert by_name[f"executables, {name}"]["value"] == 7
    assert 0.5 < by_name["time masked over sliced, median of members"]["value"] < 4
