"""Whole runs in which the biggest trains alone at first, in processes of their own."""

import json
import signal

import pytest
from run_lab import STEPS, assert_same_bits, finish, last_checkpoint, records, signal_at, start, without_speed

EPOCH = (1797 - 359 - 200) // 48  # steps: digits without the validation images and those that tiny.py holds out
FIRST = 18  # the first step with students, of three epochs
FLAGS = (f"--config.sandwich.student_start={FIRST / (3 * EPOCH)}", "--config.sandwich.student_ramp=0.2",
         "--config.sandwich.student_weight=0.5")  # fmt: skip


@pytest.fixture(scope="module")
def whole(lab):
    workdir = lab / "whole"
    finish(start(lab, workdir, *FLAGS))
    return workdir


def test_the_biggest_is_alone_in_the_log_until_students_train(whole):
    logged = [row for row in records(whole) if "loss/biggest" in row]
    assert [row["step"] for row in logged] == list(range(1, STEPS + 1))
    for row in logged:
        trained = {name.removeprefix("loss/") for name in row if name.startswith("loss/")}
        assert trained == ({"biggest"} if row["step"] <= FIRST else {"biggest", "random1", "smallest"})
        assert ("macs/random1" in row) == ("random1" in trained)
    assert [row["name"] for row in json.loads((whole / "evaluation_val.json").read_text())["rows"]] == ["MAX", "MIN"]


def test_a_run_that_ends_before_students_train_says_so(lab):
    out, _ = finish(start(lab, lab / "short", *FLAGS, "--config.max_steps=3"))
    assert f"the run ends at step 3: no student trains before {FIRST} steps (sandwich.student_start)" in out


@pytest.mark.parametrize("step", [10, FIRST + 6])
def test_a_run_that_is_stopped_before_or_after_that_goes_on_to_the_same_bits(lab, whole, step):
    workdir = lab / f"stopped-{step}"
    process = start(lab, workdir, *FLAGS)
    signal_at(process, workdir, step, signal.SIGTERM)
    finish(process, 128 + signal.SIGTERM)
    finish(start(lab, workdir, *FLAGS))
    assert_same_bits(last_checkpoint(workdir), last_checkpoint(whole))
    assert without_speed(records(workdir)) == without_speed(records(whole))
