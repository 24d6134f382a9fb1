"""The scripts of benchmarks: what they run, in which order, what is skipped, what a failure leaves. Nothing is run."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from paths import ROOT

STUB = """#!{python}
import json, os, pathlib, sys, time
script, *rest = sys.argv[1:]
if script == "benchmarks/report.py":
    os.execv({python!r}, [{python!r}, *sys.argv[1:]])
name = pathlib.Path(script).stem
with open({log!r}, "a") as log:
    log.write(" ".join(sys.argv[1:]) + "\\n")
if name == os.environ.get("SLEEPS"):
    time.sleep(100)
if name == os.environ.get("FAILS"):
    sys.exit(int(os.environ["STATUS"]))
if "--json" in rest:
    row = dict(name=name + " figure", value=1.0, unit="x", target=None, better="higher", shown=True)
    pathlib.Path(rest[-1]).write_text(json.dumps(dict(benchmark=name, quick=False, results=[row])))
"""
FIGURES = ("curves", "claim", "ablations-digits", "ablations", "relatives", "datasets")


@pytest.fixture
def results(tmp_path):
    """Runs a script with a Python that only notes what it is told: how the script ended, and what it ran."""
    stub, log = tmp_path / "python", tmp_path / "log"
    stub.write_text(STUB.format(python=sys.executable, log=str(log)))
    stub.chmod(0o755)

    def start(*arguments, script="results", **variables):
        log.write_text("")
        environment = os.environ | {
            "PYTHON": str(stub), "EXP": str(tmp_path / "exp"), "CIFAR10": "/images", "RESULTS": str(tmp_path / "found"),
            "PYTHONPATH": "",
        }  # fmt: skip
        command, pipes = [f"benchmarks/{script}.sh", *arguments], {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen(
            command, cwd=ROOT, env=environment | variables, text=True, start_new_session=True, **pipes
        )

    def ran():
        return [line.split()[0].removeprefix("benchmarks/") for line in log.read_text().splitlines()]

    def run(*arguments, fails="", status=3, script="results"):
        process = start(*arguments, script=script, FAILS=fails, STATUS=str(status))
        done = subprocess.CompletedProcess(process.args, process.wait(), *process.communicate())
        return done, ran()

    run.folder, run.start, run.ran = tmp_path, start, ran
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
    assert done.returncode == 1 and "== claim: exit status 3 after" in done.stderr and ran[-1] == "datasets.py"
    assert kept(results.folder) == dict.fromkeys(FIGURES, "done") | {"claim": "failed"}
    done, ran = results()
    assert done.returncode == 0 and ran == ["claim.py"]
    assert set(kept(results.folder).values()) == {"done"} and len(kept(results.folder)) == 6


def test_names_select(results):
    done, ran = results("curves")
    assert done.returncode == 0 and ran == ["curves.py"] and kept(results.folder) == {"curves": "done"}


def test_what_ended_before_an_interruption_is_kept_and_nothing_else_begins(results):
    done, ran = results(fails="relatives", status=130)
    assert done.returncode == 130 and ran[-1] == "relatives.py"
    assert done.stderr.splitlines()[-1] == "== relatives: stopped"
    assert kept(results.folder) == dict.fromkeys(FIGURES[:4], "done")
    done, ran = results()
    assert done.returncode == 0 and ran == ["relatives.py", "datasets.py"]
    assert kept(results.folder) == dict.fromkeys(FIGURES, "done")


def test_an_interrupted_training_begins_nothing_that_rests_on_it(results):
    done, ran = results(fails="train", status=143)
    assert done.returncode == 143 and ran == ["curves.py", "train.py"]


def test_figures_that_could_not_be_kept_are_not_taken_for_done(results):
    (results.folder / "found").write_text("no folder")
    done, ran = results("curves")
    assert done.returncode == 1 and ran == ["curves.py"] and "== curves: its figures could not be kept" in done.stderr
    (results.folder / "found").unlink()
    done, ran = results("curves")
    assert done.returncode == 0 and ran == ["curves.py"] and kept(results.folder) == {"curves": "done"}


def test_a_name_that_is_none_is_refused(results):
    for script in ("results", "reliability", "gpu"):
        done, ran = results("curve", script=script)
        assert done.returncode == 2 and not ran, script
        assert f"found no run named curve, expected some of those in benchmarks/{script}.sh" in done.stderr


@pytest.mark.parametrize(
    ("script", "arguments", "fails", "before"),
    [("gpu", ["--cpu"], "depthwise", ["step", "step-cifar10", "bandwidth"]),
     ("reliability", [], "soak", ["crash-train", "crash-child", "crash-search"])],
)  # fmt: skip
def test_the_other_scripts_stop_and_keep_what_ended(results, script, arguments, fails, before):
    done, ran = results(*arguments, fails=fails, status=130, script=script)
    assert done.returncode == 130 and ran[-1] == f"{fails}.py"
    assert kept(results.folder) == dict.fromkeys(before, "done")
    done, ran = results(*arguments, fails=fails, script=script)
    assert done.returncode == 0 and kept(results.folder)[fails] == "failed"
    assert f"== {fails}: exit status 3 after" in done.stderr


@pytest.mark.parametrize("whole_group", [True, False])
@pytest.mark.parametrize(
    ("script", "arguments", "sleeps", "before"),
    [("results", [], "ablations", ["curves", "claim"]),
     ("gpu", ["--cpu"], "bandwidth", ["step", "step-cifar10"]),
     ("reliability", [], "soak", ["crash-train", "crash-child", "crash-search"])],
)  # fmt: skip
def test_a_signal_ends_what_runs_and_the_script(results, script, arguments, sleeps, before, whole_group):
    """Ctrl-C at a terminal goes to the whole group of processes, a `kill` to the script alone."""
    process = results.start(*arguments, script=script, SLEEPS=sleeps)
    end = time.monotonic() + 60
    while f"{sleeps}.py" not in results.ran():
        assert time.monotonic() < end and process.poll() is None
        time.sleep(0.05)
    signum = signal.SIGINT if whole_group else signal.SIGTERM
    (os.killpg if whole_group else os.kill)(process.pid, signum)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 128 + signum and results.ran()[-1] == f"{sleeps}.py"
    assert "stopped" in err and kept(results.folder) == dict.fromkeys(before, "done")
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)  # nothing is left
