"""`make results`: what it runs, in which order, what it skips, and what a failure leaves. Nothing is trained."""

import json
import os
import subprocess
import sys

import pytest
from paths import ROOT

STUB = """#!{python}
import json, os, pathlib, sys
script, *rest = sys.argv[1:]
if script == "benchmarks/report.py":
    os.execv({python!r}, [{python!r}, *sys.argv[1:]])
name = pathlib.Path(script).stem
with open({log!r}, "a") as log:
    log.write(" ".join(sys.argv[1:]) + "\\n")
if name == os.environ.get("FAILS"):
    sys.exit(3)
if "--json" in rest:
    row = dict(name=name + " figure", value=1.0, unit="x", target=None, better="higher", shown=True)
    pathlib.Path(rest[-1]).write_text(json.dumps(dict(benchmark=name, quick=False, results=[row])))
"""
FIGURES = ("curves", "claim", "ablations-digits", "ablations", "relatives", "datasets")


@pytest.fixture
def results(tmp_path):
    """Runs benchmarks/results.sh with a Python that only notes what it is told: the exit status and what it ran."""
    stub, log = tmp_path / "python", tmp_path / "log"
    stub.write_text(STUB.format(python=sys.executable, log=str(log)))
    stub.chmod(0o755)

    def run(*names, fails=""):
        log.write_text("")
        environment = os.environ | {"PYTHON": str(stub), "EXP": str(tmp_path / "exp"), "CIFAR10": "/images",
                                    "RESULTS": str(tmp_path / "found"), "FAILS": fails}  # fmt: skip
        command = ["benchmarks/results.sh", *names]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        return done, [line.split()[0].removeprefix("benchmarks/") for line in log.read_text().splitlines()]

    run.folder = tmp_path
    return run


def kept(folder) -> dict:
    (path,) = (folder / "found").glob("*.json")
    return {run["name"]: run["status"] for run in json.loads(path.read_text())["runs"]}


def test_everything_runs_once(results):
    done, ran = results()
    assert done.returncode == 0, done.stderr
    assert ran == ["curves.py", "train.py", "search.py", "claim.py", "ablations.py", "ablations.py", "relatives.py",
                   "datasets.py"]
    assert kept(results.folder) == dict.fromkeys(FIGURES, "done")
    again, ran = results()
    assert again.returncode == 0 and ran == [] and again.stdout.count("is there") == 8
    assert len(kept(results.folder)) == 6


def test_a_failure_is_told_and_run_again_alone(results):
    done, ran = results(fails="claim")
    assert done.returncode == 1 and "== claim: failed" in done.stderr and ran[-1] == "datasets.py"
    assert kept(results.folder) == dict.fromkeys(FIGURES, "done") | {"claim": "failed"}
    done, ran = results()
    assert done.returncode == 0 and ran == ["claim.py"]
    assert set(kept(results.folder).values()) == {"done"} and len(kept(results.folder)) == 6


def test_names_select(results):
    done, ran = results("curves")
    assert done.returncode == 0 and ran == ["curves.py"] and kept(results.folder) == {"curves": "done"}
