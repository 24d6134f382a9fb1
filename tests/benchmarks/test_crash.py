"""The crash test in its short form, and that it finds what it looks for."""

import json
import pathlib
import shutil
import subprocess
import sys

import numpy as np
from paths import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
import crash  # noqa: E402


def test_runs_that_are_killed_end_as_undisturbed_ones(tmp_path):
    command = [sys.executable, str(ROOT / "benchmarks" / "crash.py"), "--kills=2", "--workdir", str(tmp_path / "lab"),
               "--what=train", "--json", str(tmp_path / "found.json")]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    found = {row["name"]: row["value"] for row in json.loads((tmp_path / "found.json").read_text())["results"]}
    assert found["crash: kills of train"] == 2 and found["crash: runs of train that ended"] >= 1
    assert found["crash: differences of train"] == 0
    assert_it_sees_what_differs(tmp_path / "lab" / "train", tmp_path / "other")


def assert_it_sees_what_differs(whole: pathlib.Path, other: pathlib.Path) -> None:
    shutil.copytree(whole, other)
    assert crash.differences("train", other, whole) == []
    lines = (other / "metrics.jsonl").read_text().splitlines()
    changed = json.loads(lines[3]) | {"learning_rate": 1.0}
    (other / "metrics.jsonl").write_text("\n".join([*lines[:3], json.dumps(changed), *lines[4:]]) + "\n")
    first, *_ = sorted((other / "checkpoints").iterdir())
    first.rename(other / "checkpoints" / "7.orbax-checkpoint-tmp")
    found = crash.differences("train", other, whole)
    assert "metrics.jsonl differs" in found and "left behind: 7.orbax-checkpoint-tmp" in found
    assert any(line.startswith("checkpoints: found") for line in found)
    (other / "checkpoints" / "7.orbax-checkpoint-tmp").rename(first)
    last = max((whole / "checkpoints").iterdir(), key=lambda path: int(path.name))
    held = crash.arrays(last)
    assert any(name.startswith("training") for name in held)
    assert np.frombuffer(held["params['stem.kernel']"], "f4").any()
