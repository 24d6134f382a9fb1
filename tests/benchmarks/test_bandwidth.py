"""The benchmark of the device's ceilings runs, and reads what the step's benchmark writes."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from paths import ROOT

NAMES = dict(re.findall(r'^(ARITHMETIC|TRAFFIC) = "(.*)"$', (ROOT / "benchmarks/bandwidth.py").read_text(), re.M))


def run(step: Path, out: Path):
    command = [sys.executable, "benchmarks/bandwidth.py", "--quick", "--step", str(step), "--json", str(out)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_the_steps_rates_are_set_against_the_ceilings(tmp_path):
    text = (ROOT / "benchmarks/step.py").read_text()
    assert len(NAMES) == 2 and all(f'"{name}"' in text for name in NAMES.values())
    step, out = tmp_path / "step.json", tmp_path / "out.json"
    rows = [{"name": NAMES["ARITHMETIC"], "value": 0.01, "unit": "TFLOP/s"},
            {"name": NAMES["TRAFFIC"], "value": 2.0, "unit": "GB/s"}]  # fmt: skip
    step.write_text(json.dumps({"results": rows}))
    done = run(step, out)
    assert done.returncode == 0, done.stderr[-2000:]
    found = {row["name"]: row["value"] for row in json.loads(out.read_text())["results"]}
    for name, value, ceiling in ((NAMES["ARITHMETIC"], 0.01, "matrix product in float32"),
                                 (NAMES["TRAFFIC"], 2.0, "copy bandwidth")):
        assert found[f"{name} over {ceiling}"] == pytest.approx(value / found[ceiling])
    step.write_text(json.dumps({"results": rows[:1]}))
    assert "found no such figure" in run(step, out).stderr
