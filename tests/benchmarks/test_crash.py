"""The crash test in its short form, and that it finds what it looks for."""

import collections
import json
import pathlib
import shutil
import subprocess
import sys

import numpy as np
from paths import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
import crash  # noqa: E402
import same_run  # noqa: E402


def test_runs_that_are_killed_end_as_undisturbed_ones(tmp_path):
    command = [sys.executable, str(ROOT / "benchmarks" / "crash.py"), "--quick", "--workdir", str(tmp_path / "lab"),
               "--json", str(tmp_path / "found.json")]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    found = {row["name"]: row["value"] for row in json.loads((tmp_path / "found.json").read_text())["results"]}
    assert found["train: kills survived"] == 2 and found["train: kills lost"] == 0
    assert found["train: runs that ended and were compared"] >= 1 and found["train: differences"] == 0
    assert sum(value for name, value in found.items() if name.startswith("train: kills in ")) >= 1
    assert_it_sees_what_differs(tmp_path / "lab" / "train", tmp_path / "other")


def assert_it_sees_what_differs(whole: pathlib.Path, other: pathlib.Path) -> None:
    shutil.copytree(whole, other)
    assert same_run.differences(other, whole) == []
    lines = (other / "metrics.jsonl").read_text().splitlines()
    noisy = [json.dumps(json.loads(line) | {"images_per_second": 1}) for line in lines]
    changed = json.dumps(json.loads(lines[3]) | {"learning_rate": 1.0})
    for text, expected in ((noisy, []), ([*lines[:3], changed, *lines[4:]], ["metrics.jsonl differs"])):
        (other / "metrics.jsonl").write_text("\n".join(text) + "\n")
        assert same_run.differences(other, whole) == expected
    (other / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    first, *_ = sorted((other / "checkpoints").iterdir())
    first.rename(other / "checkpoints" / "7.orbax-checkpoint-tmp")
    (other / "evaluation_val.json").rename(other / "evaluation_val.json.tmp")
    assert same_run.differences(other, whole) == [
        "left behind: checkpoints/7.orbax-checkpoint-tmp", "left behind: evaluation_val.json.tmp",
        f"missing: checkpoints/{first.name}", "missing: evaluation_val.json",
    ]  # fmt: skip
    last = max((whole / "checkpoints").iterdir(), key=lambda path: int(path.name))
    held = same_run.arrays(last)
    assert {name.split("[")[0] for name in held} == {"params", "ema", "training", "score"}
    assert np.frombuffer(held["params['stem.kernel']"], "f4").any()


def test_one_bit_of_a_checkpoint_is_seen(tmp_path, monkeypatch):
    for run in ("found", "expected"):
        (tmp_path / run / "checkpoints" / "5").mkdir(parents=True)
        (tmp_path / run / "checkpoints" / "5" / "file").touch()
    value = np.float32(1)
    bits = {"expected": value, "found": np.nextafter(value, np.float32(2))}
    monkeypatch.setattr(same_run, "arrays", lambda step: {"training['trace']": bits[step.parts[-3]].tobytes()})
    assert same_run.differences(tmp_path / "found", tmp_path / "expected") == ["step 5: training['trace']"]


def test_an_empty_folder_beside_the_steps_is_seen(tmp_path):
    for run in ("found", "expected"):
        (tmp_path / run / "checkpoints").mkdir(parents=True)
        (tmp_path / run / "events.out.tfevents.1").write_text(run)  # a file for each process of a run
    (tmp_path / "found" / "checkpoints" / "5.orbax-checkpoint-tmp").mkdir()
    found = same_run.differences(tmp_path / "found", tmp_path / "expected")
    assert found == ["left behind: checkpoints/5.orbax-checkpoint-tmp"]


def test_the_kills_of_a_run_that_differs_are_lost():
    toll = crash.Toll()
    toll.add(collections.Counter({crash.Place.SAVE: 2, crash.Place.ELSEWHERE: 1}), differences=0)
    toll.add(collections.Counter({crash.Place.SAVE: 4}), differences=7)
    fault = toll.fault("child")
    assert (fault.tried, fault.lost) == (7, 4) and "6 in a save" in fault.fault and "1 of 2 runs" in fault.fault
    values = {result.name: result.value for result in toll.results("child")}
    assert values["child: kills survived"] == 3 and values["child: differences"] == 7
    assert [r.name for r in toll.results("child") if not r.reached] == [
        "child: kills survived", "child: kills lost", "child: differences",
    ]  # fmt: skip
