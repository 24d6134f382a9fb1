"""The notebook runs from its first cell to its last."""

import json
import subprocess
import sys

import xla_flags
from paths import ROOT
from run_lab import environment

NOTEBOOK = json.loads((ROOT / "docs" / "tour.ipynb").read_text())


def test_the_cells_of_the_notebook_run_in_order(tmp_path):
    code = ["".join(cell["source"]) for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]
    assert len(code) == 7
    (tmp_path / "tour.py").write_text("\n".join(code))
    surroundings = environment(tmp_path, flags=xla_flags.LEVEL) | {"MPLBACKEND": "Agg"}  # as users' XLA emits code
    command = [sys.executable, "-W", "error::DeprecationWarning:__main__", "tour.py"]
    done = subprocess.run(command, cwd=tmp_path, env=surroundings, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "macs-0.4M: " in done.stdout and "macs-0.8M: " in done.stdout
    child = tmp_path / "exp" / "tour" / "children" / "mine"
    assert json.loads((child / "export.json").read_text())["files"][0]["difference"] < 1e-4
    found = json.loads((tmp_path / "exp" / "tour" / "search" / "result.json").read_text())
    # Half of the digits at least are read, five times as many as by guessing: it did learn.
    assert max(row["top1"] for row in found["evaluations"]) > 0.5
