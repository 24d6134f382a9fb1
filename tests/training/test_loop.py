"""Whole runs of train.py and eval.py in processes of their own, on digits and a space of two stages."""

import json
import re
import signal
import socket
import subprocess

import numpy as np
import pytest
from run_lab import (
    STEPS,
    assert_same_bits,
    finish,
    last_checkpoint,
    records,
    signal_at,
    start,
    steps_of,
    without_speed,
)


@pytest.fixture(scope="module")
def whole(lab):
    """A run that was never stopped: its folder and what it printed. It has another seed of hashes than the others."""
    workdir = lab / "whole"
    return workdir, finish(start(lab, workdir, popen=subprocess.Popen))


def test_run_leaves_everything(whole):
    workdir, (out, err) = whole
    rows = json.loads((workdir / "evaluation_val.json").read_text())["rows"]
    assert [row["name"] for row in rows] == ["MAX", "MIN"]
    assert all(0.1 < row["top1"] <= row["top5"] <= 1 and row["images"] == 359 for row in rows)
    assert f"{100 * rows[0]['top1']:.2f}" in out and "MACs" in out
    assert json.loads((workdir / "config.json").read_text())["batch_size"] == 48
    logged = records(workdir)
    losses = [row for row in logged if "loss/biggest" in row]
    assert [row["step"] for row in losses] == list(range(1, STEPS + 1))
    assert {"loss/random1", "loss/smallest", "accuracy/biggest", "learning_rate"} <= losses[0].keys()
    assert np.mean([r["loss/biggest"] for r in losses[-5:]]) < losses[0]["loss/biggest"] - 0.3
    evaluated = [row["step"] for row in logged if "holdout_top1/max" in row]
    assert evaluated == [25, 40]
    assert list(workdir.glob("events.out.tfevents.*"))
    # The newest two, and the best of those that were evaluated.
    best = max((r["holdout_top1/max"] + r["holdout_top1/min"], r["step"]) for r in logged if "holdout_top1/max" in r)[1]
    assert set(steps_of(workdir)) == {32, 40, best}
    assert "images/s" in err and "smallest" in err


def test_tensorboard_holds_a_curve_a_member_and_images(whole):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(whole[0]))
    board.Reload()
    tags = board.Tags()
    assert {"loss/biggest", "loss/random1", "loss/smallest", "learning_rate", "holdout_top1/max"} <= set(
        tags["scalars"]
    )
    assert tags["images"]


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM])
def test_stopped_run_goes_on_to_the_same_bits(lab, whole, signum):
    """Stopped in mid-epoch: by SIGKILL between checkpoints, by the others at the step they come."""
    workdir = lab / signum.name
    process = start(lab, workdir)
    signal_at(process, workdir, 17, signum)
    _, err = finish(process, -signum if signum == signal.SIGKILL else 128 + signum)
    assert "Traceback" not in err
    assert steps_of(workdir)[-1] < STEPS
    if signum != signal.SIGKILL:
        assert re.search(rf"stopped by {signum.name} at step {steps_of(workdir)[-1]}; the same command", err)
    out, _ = finish(start(lab, workdir))
    assert f"going on from step {records_step(out)}" in out and 0 < records_step(out) < STEPS
    assert_same_bits(last_checkpoint(workdir), last_checkpoint(whole[0]))
    assert without_speed(records(workdir)) == without_speed(records(whole[0]))


def records_step(out: str) -> int:
    return int(re.search(r"going on from step (\d+)", out)[1])


def test_finished_run_only_evaluates(lab, whole):
    before = last_checkpoint(whole[0])
    out, _ = finish(start(lab, whole[0]))
    assert f"going on from step {STEPS} of {STEPS}" in out and "MAX" in out
    assert_same_bits(last_checkpoint(whole[0]), before)


def test_another_space_is_refused(lab, whole):
    config = (lab / "tiny.py").read_text().replace("width=(8, 16)", "width=(8, 24)")
    (lab / "other.py").write_text(config)
    _, err = finish(start(lab, whole[0], config="other.py"), code=2)
    assert err.count("\n") == 1
    assert "config.space.stages.mb1.width: (8, 16) -> (8, 24)" in err and "another --workdir" in err
    assert json.loads((whole[0] / "config.json").read_text())["space"]["stages"]["mb1"]["width"] == [8, 16]


def test_a_finished_run_keeps_its_config(lab, whole):
    out, _ = finish(start(lab, whole[0], "--config.optimizer.learning_rate=0.05"))
    assert "finished and is not changed by config.optimizer.learning_rate: 0.1 -> 0.05" in out
    assert json.loads((whole[0] / "config.json").read_text())["optimizer"]["learning_rate"] == 0.1


def test_loss_that_is_not_finite_ends_the_run_at_its_last_good_checkpoint(lab):
    workdir = lab / "overflow"
    often = "--config.checkpoint.every_steps=1"
    finish(start(lab, workdir, "--config.max_steps=10"))
    # An update this large leaves finite weights that no loss is finite with.
    arguments = ["--config.optimizer.learning_rate=1e30", "--config.max_nonfinite_steps=4", often]
    _, err = finish(start(lab, workdir, *arguments, "--config.optimizer.clip_norm=0"), code=1)
    last_line = err.strip().splitlines()[-1]
    assert "not finite in 4 steps in a row, from step 12 on" in last_line and "Traceback" not in err
    assert f"that of step {steps_of(workdir)[-1]} in" in last_line and steps_of(workdir)[-1] == 10
    rows = {row["step"]: row for row in records(workdir) if "loss/biggest" in row}
    assert rows[15]["skipped_updates"] == 4 and rows[12]["loss/biggest"] is None
    finish(start(lab, workdir, "--config.max_steps=20"))
    rows = [row for row in records(workdir) if "loss/biggest" in row]
    assert len(rows) == 20 and all(np.isfinite(row["loss/biggest"]) for row in rows)


def test_a_corrupt_image_ends_the_run_in_one_line_and_loses_nothing(lab):
    from PIL import Image

    rng = np.random.default_rng(0)
    for split, count in (("train", 60), ("val", 12)):
        for name in ("a", "b"):
            folder = lab / "images" / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 256, (10, 10, 3), np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")
    settings = [f"--config.data.root={lab / 'images'}", "--config.data.source=folder", "--config.data.holdout=0"]
    settings += ["--config.model.num_classes=2", "--config.batch_size=24", "--config.evaluation.batch_size=24"]
    settings += ["--config.calibration.num_images=24", "--config.calibration.batch_size=24"]
    settings += ["--config.data.num_workers=1", "--config.checkpoint.every_steps=1000"]
    settings += ["--config.evaluation.every_epochs=9"]
    workdir = lab / "folder"
    bad = lab / "images" / "train" / "a" / "7.png"
    good = bad.read_bytes()
    bad.write_bytes(good[: len(good) // 2])
    _, err = finish(start(lab, workdir, *settings), code=2)
    assert str(bad) in err.splitlines()[-1] and "Traceback" not in err
    (saved,) = steps_of(workdir)
    assert f"step {saved} is saved" in err
    out, err = finish(start(lab, workdir, *settings, "--config.data.on_corrupt=skip"))
    assert f"going on from step {saved} of 15" in out
    assert "corrupt images replaced" in err
    assert [row["step"] for row in records(workdir) if "loss/biggest" in row] == list(range(1, 16))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config.batch_size=2000"], "config.batch_size"),
        (["--config.calibration.num_images=5000"], "config.calibration.num_images"),
        (["--config.data.source=folder", "--config.data.root=nowhere"], "nowhere"),
        (["--config.data.source=cifar10", "--config.data.root=nowhere"], "nowhere"),
    ],
)
def test_bad_input_ends_in_one_line_before_work_starts(lab, arguments, message):
    _, err = finish(start(lab, lab / "refused", *arguments), code=2)
    assert message in err and err.count("\n") == 1, err
    assert not (lab / "refused").exists()


def test_eval_gives_the_figures_again(lab, whole):
    final = json.loads((whole[0] / "evaluation_val.json").read_text())
    out, _ = finish(start(lab, whole[0], script="eval.py"))
    again = json.loads((whole[0] / "evaluation_val.json").read_text())
    assert again["step"] == STEPS
    for a, b in zip(final["rows"], again["rows"], strict=True):
        assert {k: v for k, v in a.items() if k not in ("images_per_second", "loss")} == {
            k: v for k, v in b.items() if k not in ("images_per_second", "loss")
        }
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)
    assert "MAX" in out and "evaluation_val.json" in out


def test_eval_takes_files_json_and_splits(lab, whole):
    smallest = json.loads((whole[0] / "evaluation_val.json").read_text())["rows"][1]["architecture"]
    deeper = smallest | {"depth": [2, 1]}
    child = lab / "children" / "deep"
    child.mkdir(parents=True)
    (child / "architecture.json").write_text(json.dumps(deeper))
    arguments = ["--arch", str(child / "architecture.json"), "--arch", json.dumps(smallest), "--arch", "max"]
    finish(start(lab, whole[0], *arguments, "--split", "holdout", "--checkpoint", "best", script="eval.py"))
    rows = json.loads((whole[0] / "evaluation_holdout.json").read_text())["rows"]
    assert [row["name"] for row in rows] == ["deep", "given1", "MAX"]
    assert rows[0]["architecture"] == deeper and rows[0]["images"] == 200
    assert rows[1]["macs"] < rows[0]["macs"] < rows[2]["macs"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--arch", "nowhere.json"], "--arch: cannot read nowhere.json"),
        (["--arch", '{"resolution": 8}'], "--arch"),
        (["--checkpoint", "999"], "--checkpoint: found 999, expected newest, best or one of"),
    ],
)
def test_eval_refuses_in_one_line(lab, whole, arguments, message):
    _, err = finish(start(lab, whole[0], *arguments, script="eval.py"), code=2)
    assert message in err and err.count("\n") == 1, err


def test_eval_without_a_run_says_so(lab):
    _, err = finish(start(lab, lab / "never", script="eval.py"), code=2)
    assert "no checkpoint under" in err and err.count("\n") == 1
    assert not (lab / "never").exists()


@pytest.mark.parametrize("count", [2, 4])
def test_several_processes_do_what_one_does(lab, count):
    """Two processes of two devices each, or four of one, against one process of four: the same bits."""
    settings = ["--config.max_steps=6", "--config.model.sync_batch_norm=True", "--config.calibration.batch_size=48",
                "--config.data.augment.mixup=0.4", "--config.data.augment.cutmix=1.0"]  # fmt: skip
    if not (lab / "one").exists():
        finish(start(lab, lab / "one", *settings, devices=4))
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    settings += [f"--config.distributed.coordinator=localhost:{port}", f"--config.distributed.num_processes={count}"]
    workdir = lab / f"of {count}"
    all_ = [
        start(lab, workdir, *settings, f"--config.distributed.process_id={rank}", devices=4 // count)
        for rank in range(count)
    ]
    first, *others = [finish(process)[0] for process in all_]
    assert "MAX" in first and not any("MAX" in out for out in others)
    assert_same_bits(last_checkpoint(workdir), last_checkpoint(lab / "one"))
    assert without_speed(records(workdir)) == without_speed(records(lab / "one"))
    scores = [json.loads((run / "evaluation_val.json").read_text())["rows"] for run in (lab / "one", workdir)]
    assert scores[0][0]["images"] == 359 and without_speed(scores[0]) == without_speed(scores[1])
