"""The benchmark of loss curves: both sides train the same thing, and what differs is told from rounding."""

import argparse
import dataclasses
import json
import re
import sys

import forks
import jax
import numpy as np
import pytest
import torch
from paths import ROOT
from run_lab import CONFIG, environment

from bignas_jax.config.recipes import load_recipe
from bignas_jax.errors import ConfigError
from bignas_jax.programs.weights import build

sys.path.insert(0, str(ROOT / "benchmarks"))
import curves  # noqa: E402

ARGUMENTS = ("--resolutions", "8", "--batch", "16", "--learning-rate", "0.1")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    path = tmp_path_factory.mktemp("recipe") / "tiny.py"
    path.write_text(CONFIG)
    return path


def test_a_tenth_more_learning_rate_is_told_from_rounding(recipe):
    args = argparse.Namespace(resolutions=(8,), batch=16, steps=30, learning_rate=0.1)
    training = curves.reduced(str(recipe), args)
    assert len(training.batches) == 30 and not np.array_equal(training.batches[0][0], training.batches[1][0])
    assert float(training.rate(29)) < float(training.rate(10)) < 0.1001  # the whole schedule, in these steps
    params = jax.device_get(build(training.space, training.classes)[1])
    faster = dataclasses.replace(training.options.optimizer, learning_rate=0.11)
    wrong = dataclasses.replace(training, options=dataclasses.replace(training.options, optimizer=faster))
    found = {name: np.array(curves.theirs(training, params, dtype)) for name, dtype in curves.DTYPES.items()}
    found[curves.OURS] = np.array(curves.theirs(wrong, params, torch.float32))
    assert found[curves.OURS].shape == (30, 3)
    assert curves.figures(found)["ratio"] > 5


@pytest.mark.parametrize(
    ("recipe", "changes", "told"),
    [
        ("configs/cifar10.py", {}, "found sandwich.loss='trusted_teacher', sandwich.student_weight=0.5, "
         "sandwich.student_ramp=1.0, expected 'soft_cross_entropy', 1.0, 0.0, as PyTorch's side trains"),
        ("configs/bignas.py", {"optimizer.momentum": 0.8, "data.augment.mixup": 0.2},
         "found optimizer.momentum=0.8, data.augment.mixup=0.2, expected 0.9, 0.0"),
        ("configs/bignas.py", {"optimizer.clip_value": 1.0}, "found optimizer.clip_value=1.0, expected 0.0"),
        ("configs/ofa_mbv3.py", {}, "found another family or phases, expected BigNAS's blocks and one phase"),
    ],
)  # fmt: skip
def test_a_recipe_that_pytorchs_side_does_not_train_is_refused(monkeypatch, recipe, changes, told):
    config = load_recipe(recipe)
    config.update_from_flattened_dict(changes)
    if "ofa" in recipe:
        config.update_from_flattened_dict({name: value for name, value in curves.EXPECTED.items()})
    monkeypatch.setattr(curves, "load_recipe", lambda path: config)
    with pytest.raises(ConfigError, match=re.escape(told)):
        curves.reduced(recipe, argparse.Namespace())  # it is refused before any of them is read


def test_a_gradient_that_is_not_clipped_stays(recipe):
    """As ours does with a clip_norm of 0."""
    args = argparse.Namespace(resolutions=(8,), batch=16, steps=3, learning_rate=0.1)
    training = curves.reduced(str(recipe), args)
    params = jax.device_get(build(training.space, training.classes)[1])
    losses = {}
    for norm in (0.0, 1e9):
        optimizer = dataclasses.replace(training.options.optimizer, clip_norm=norm)
        changed = dataclasses.replace(training, options=dataclasses.replace(training.options, optimizer=optimizer))
        losses[norm] = curves.theirs(changed, params, torch.float32)
    assert losses[0.0] == losses[1e9] and losses[0.0][0] != losses[0.0][2]


def test_what_one_side_ended_with_is_kept_while_the_others_train(recipe, tmp_path, monkeypatch):
    args = argparse.Namespace(resolutions=(8,), batch=16, steps=2, learning_rate=0.1, workdir=tmp_path)

    def broken(training, params):
        raise KeyboardInterrupt

    whole = dict(curves.SIDES)
    monkeypatch.setattr(curves, "SIDES", {curves.OURS: lambda training, params: [[1.0]], curves.SINGLE: broken})
    with pytest.raises(KeyboardInterrupt):
        curves.compared(str(recipe), args)
    monkeypatch.setattr(curves, "SIDES", {name: lambda training, params: [[2.0]] for name in whole})
    assert curves.compared(str(recipe), args)["curves"] == {
        curves.OURS: [[1.0]], curves.SINGLE: [[2.0]], curves.DOUBLE: [[2.0]]
    }  # fmt: skip
    kept = tmp_path / "tiny.json"
    saved = json.loads(kept.read_text())
    del saved["curves"][curves.DOUBLE]
    kept.write_text(json.dumps(saved))
    monkeypatch.setattr(curves, "package", lambda: "other sources")  # nothing of theirs stands beside what is new
    assert curves.compared(str(recipe), args)["curves"] == dict.fromkeys(whole, [[2.0]])


def test_distances_are_root_mean_squares():
    zero = np.zeros((2, 2))
    single = zero + [[1.0, 1.0], [0.0, 0.0]]
    found = curves.figures({curves.OURS: zero + 3.0, curves.SINGLE: single, curves.DOUBLE: zero})
    assert found == pytest.approx({"ours": 3.0, "noise": 0.5**0.5, "ratio": 3.0 / 0.5**0.5})
    np.testing.assert_allclose(curves.smooth(np.arange(12.0)), [4.5, 5.5, 6.5])
    np.testing.assert_allclose(curves.smooth(np.arange(3.0)), [1.0])


def test_both_sides_train_alike_and_what_is_there_is_not_run_again(recipe, tmp_path):
    command = [sys.executable, "benchmarks/curves.py", "--configs", str(recipe), *ARGUMENTS,
               "--workdir", str(tmp_path / "curves"), "--json", str(tmp_path / "found.json")]  # fmt: skip

    def run(steps: int):
        return forks.run([*command, "--steps", str(steps)], cwd=ROOT, env=environment(tmp_path), capture_output=True,
                         text=True, timeout=300)  # fmt: skip

    first, again, other = run(5), run(5), run(6)
    assert first.returncode == again.returncode == 0, first.stderr[-2000:] + again.stderr[-2000:]
    assert "tiny: ours" in first.stdout and "tiny: ours" not in again.stdout
    assert first.stdout.splitlines()[-1] == again.stdout.splitlines()[-1]
    assert other.returncode == 2 and "'steps': 5" in other.stderr and "take another --workdir" in other.stderr
    saved = json.loads((tmp_path / "curves" / "tiny.json").read_text())
    sides = [np.array(saved["curves"][name]) for name in (curves.OURS, *curves.DTYPES)]
    assert saved["members"] == ["biggest", "random1", "smallest"] and sides[0].shape == (5, 3)
    for side in sides[1:]:
        np.testing.assert_allclose(sides[0], side, rtol=1e-4)
    assert np.ptp(sides[0][:, 0]) > 0.01  # it does learn
    (row,) = json.loads((tmp_path / "found.json").read_text())["results"]
    assert row["name"] == "tiny: distance to PyTorch's curves over rounding's" and row["value"] > 0
    assert (tmp_path / "curves" / "curves.png").stat().st_size > 5000
