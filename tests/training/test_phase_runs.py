"""A schedule of phases in processes of its own: killed in a phase, between two, in the hand-over, and in the last."""

import json
import pathlib
import signal
import sys

import forks
import numpy as np
from process_lab import free_port
from run_lab import (
    assert_same_bits,
    environment,
    finish,
    last_checkpoint,
    records,
    start,
    steps_of,
    without_speed,
)

# Its arguments are a run's folder and moments: a function, and the call of it that a signal comes in. After each moment
# the same run is started again. Only the last start comes to its end.
PROGRAM = """
import os, pkgutil, signal, sys
from bignas_jax.config.options import Options
from bignas_jax.config.recipes import load_recipe
from bignas_jax.errors import Interrupted
from bignas_jax.training import loop

options = Options.of(load_recipe("tiny.py"))
workdir, kind, *moments = sys.argv[1:]

def start(place=None, call=0):
    if place is None:
        return loop.train(options, workdir, progress=False)
    owner, _, name = place.rpartition(".")
    owner, calls = pkgutil.resolve_name(owner), []
    work = getattr(owner, name)

    def marked(*arguments, **named):
        calls.append(name)
        if len(calls) == int(call):
            if int(kind) == signal.SIGKILL:
                os.kill(os.getpid(), signal.SIGKILL)
            raise Interrupted(int(kind))
        return work(*arguments, **named)

    setattr(owner, name, marked)
    try:
        loop.train(options, workdir, progress=False)
    except Interrupted:
        print("interrupted in", name)
    else:
        raise AssertionError(f"{place} was not called {call} times")
    finally:
        setattr(owner, name, work)

for place, call in zip(moments[::2], moments[1::2]):
    start(place, call)
start()
"""
# A block with two kernels and two ratios; three steps a phase, of which the second is saved.
CONFIG = """
from ml_collections import ConfigDict
from configs import digits

def get_config():
    config = digits.get_config()
    stage = dict(width=(8,), depth=(1,), kernel_size=((3, 5),), expand_ratio=((2, 4),), stride=2, se=False,
                 activation="relu")
    config.space = ConfigDict(dict(
        family="ofa", resolution=(8,), stem_width=(8,), stem_stride=1, head_width=(16,), v3_head=False,
        activation="h_swish", epsilon=1e-5, kernel_transforms=True, stages=dict(mb1=stage),
    ))
    config.data.update(image_size=8, eval_resize=8, holdout=100)
    config.batch_size, config.epochs, config.max_steps, config.num_devices = 32, 2, 3, 0
    config.optimizer.warmup_epochs, config.optimizer.ema_decay = 0.0, 0.9
    config.sandwich.members = "slices"
    config.teacher.source = "phase:p1_full"
    config.phases = ConfigDict(dict(p1_full=dict(
        largest=dict(kernel_size=1, expand_ratio=1), epochs=1, sandwich=dict(num_random=1))))
    config.calibration.update(num_images=64, batch_size=32)
    config.checkpoint.every_steps, config.log.every_steps = 2, 1
    return config
"""
STEP, SAVE = "bignas_jax.training.loop:Run._after", "bignas_jax.runs.checkpoint:Checkpoints.save"
BETWEEN, SORT = "bignas_jax.training.phases._summary", "bignas_jax.training.origin.sort_for"


def run(lab, workdir, kind=signal.SIGTERM, *moments, code=0) -> str:
    command = [sys.executable, "-c", PROGRAM, str(workdir), str(int(kind)), *map(str, moments)]
    done = forks.run(command, env=environment(lab), cwd=lab, capture_output=True, text=True, timeout=300)
    assert done.returncode == code, done.stderr[-3000:]
    return done.stdout


def scores(workdir: pathlib.Path, name: str) -> dict:
    rows = json.loads((workdir / f"evaluation_{name}.json").read_text())["rows"]
    return {row["name"]: (row["top1"], row["loss"]) for row in rows}


def test_a_schedule_that_is_stopped_anywhere_ends_with_the_same_bits(tmp_path):
    (tmp_path / "tiny.py").write_text(CONFIG)
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    out = run(tmp_path, whole)
    assert "phase 1 of 2, p1_full: in " in out and "phase 2 of 2, the run itself: in " in out
    phase = whole / "phases" / "p1_full"
    assert json.loads((phase / "config.json").read_text())["space"]["stages"]["mb1"]["expand_ratio"] == [[4]]
    assert steps_of(phase) == steps_of(whole) == [2, 3]
    # The hand-over sorts channels and adds a matrix for the kernel of 3: the biggest network stays the same function.
    (_, before), (_, after) = scores(phase, "val")["CHILD"], scores(whole, "before")["MAX BEFORE"]
    np.testing.assert_allclose(after, before, rtol=1e-4)
    assert (whole / "teacher" / "weights.npz").is_file() and not (phase / "teacher").exists()
    assert {"loss/slice1", "loss/slice2"} <= records(whole)[1].keys()

    run(tmp_path, stopped, signal.SIGKILL, STEP, 3, code=-signal.SIGKILL)  # in the phase, before its last save
    assert steps_of(stopped / "phases" / "p1_full") in ([], [2]) and not (stopped / "config.json").exists()
    # Then between both, while channels are sorted, before the first save of the run itself, and behind it.
    out = run(tmp_path, stopped, signal.SIGTERM, BETWEEN, 1, SORT, 1, SAVE, 1, STEP, 3)
    assert out.count("interrupted in") == 4 and out.count("phase 2 of 2") == 3, out
    for folder in ("phases/p1_full", "."):
        assert_same_bits(last_checkpoint(stopped / folder), last_checkpoint(whole / folder))
        assert without_speed(records(stopped / folder)) == without_speed(records(whole / folder))
        assert scores(stopped / folder, "val") == scores(whole / folder, "val")


def test_two_processes_go_through_the_phases_with_the_bits_of_one(tmp_path):
    """The teacher of the second phase is the network of the first, which both processes read."""
    (tmp_path / "tiny.py").write_text(CONFIG)
    one, two = tmp_path / "one", tmp_path / "two"
    finish(start(tmp_path, one, devices=2))
    joined = [f"--config.distributed.coordinator=localhost:{free_port()}", "--config.distributed.num_processes=2"]
    both = [start(tmp_path, two, *joined, f"--config.distributed.process_id={rank}") for rank in (0, 1)]
    first, other = (finish(process)[0] for process in both)
    assert "phase 2 of 2, the run itself: in " in first and "phase" not in other
    for folder in ("phases/p1_full", "."):
        assert_same_bits(last_checkpoint(two / folder), last_checkpoint(one / folder))
        assert without_speed(records(two / folder)) == without_speed(records(one / folder))
