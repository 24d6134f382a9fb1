"""Whole runs of search.py in processes of their own, on a run that was trained for a few steps."""

import json
import shutil
import signal
import subprocess
import sys
import time

import forks
import pytest
from paths import ROOT
from run_lab import CONFIG, environment

from bignas_jax.cli import flags, searching
from bignas_jax.errors import CheckpointError, ConfigError
from bignas_jax.search import run

EVALUATIONS = 12
# 128 architectures.
CONFIG = CONFIG.replace("kernel_size=(3,), expand_ratio=(2,)", "kernel_size=(3, 5), expand_ratio=(2, 3)")
SEARCH = (
    f"--config.search.num_evaluations={EVALUATIONS}",
    "--config.search.population=4",
    "--config.search.first_part=0.3",
    "--config.search.confidence=0.5",
)


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A folder with a config, a trained run, and a cache of compiled programs that the processes share."""
    folder = tmp_path_factory.mktemp("search")
    (folder / "tiny.py").write_text(CONFIG)
    finish(folder, "train.py", folder / "trained", "--config.max_steps=40")
    return folder


@pytest.fixture
def workdir(lab, tmp_path):
    """A copy of the run, and of nothing that an earlier search left."""
    shutil.copytree(lab / "trained", tmp_path / "run")
    return tmp_path / "run"


def start(lab, script, workdir, *arguments):
    command = [sys.executable, str(ROOT / script), "--config", str(lab / "tiny.py"), "--workdir", str(workdir)]
    return forks.Popen(
        [*command, *arguments], env=environment(lab), cwd=lab, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(lab, script, workdir, *arguments, code=0) -> tuple[str, str]:
    process = start(lab, script, workdir, *arguments)
    out, err = process.communicate(timeout=300)
    assert process.returncode == code, err[-3000:]
    return out, err


def result(workdir) -> dict:
    """What was found, without times."""
    found = json.loads((workdir / "search" / "result.json").read_text())
    del found["run"]["seconds"], found["run"]["workdir"]
    for row in found["evaluations"]:
        del row["seconds"]
    return found


def records(workdir) -> list[dict]:
    path = workdir / "search" / "evaluations.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()[1:]] if path.exists() else []


def one_line(err: str) -> str:
    lines = [line for line in err.splitlines() if line.strip() and "Warning" not in line]
    assert len(lines) == 1, err
    return lines[0]


@pytest.fixture(scope="module")
def whole(lab, tmp_path_factory):
    """A search that nothing stopped."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    shutil.copytree(lab / "trained", workdir)
    out, _ = finish(lab, "search.py", workdir, *SEARCH)
    return workdir, out


def test_what_a_search_leaves(whole):
    workdir, out = whole
    found = result(workdir)
    assert len(found["evaluations"]) == EVALUATIONS + 2 == len({json.dumps(r["architecture"]) for r in
                                                               found["evaluations"]})
    assert [b["name"] for b in found["budgets"]] == [row["name"] for row in found["final"][:-2]]
    most = max(row["macs"] for row in found["evaluations"])
    for budget, part in zip(found["budgets"], (0.3, 0.5, 0.7), strict=True):
        winner = found["evaluations"][budget["winner"]]
        within = [r for r in found["evaluations"] if r["complete"] and r["macs"] <= part * most]
        assert winner["top1"] == max(r["top1"] for r in within) and winner in within
        assert json.loads((workdir / budget["file"]).read_text()) == winner["architecture"]
    for row in found["final"]:
        assert row["name"] in out and f"{100 * row['top1']:.2f}" in out
    images = found["run"]["images"]
    assert (images["holdout"], images["val"]) == (200, 359)
    for name in ("report.html", "front.png"):
        assert (workdir / "search" / name).stat().st_size > 1000


def test_eval_gives_the_figures_again(whole, lab):
    workdir, _ = whole
    found = result(workdir)
    files = [argument for b in found["budgets"] for argument in ("--arch", str(workdir / b["file"]))]
    finish(lab, "eval.py", workdir, *files, "--arch", "max", "--arch", "min")
    rows = json.loads((workdir / "evaluation_val.json").read_text())["rows"]
    by_arch = {json.dumps(row["architecture"]): row for row in rows}
    for row in found["final"]:
        again = by_arch[json.dumps(row["architecture"])]
        assert (again["top1"], again["top5"], again["images"]) == (row["top1"], row["top5"], row["images"])


def test_the_validation_split_is_scored_once_and_for_the_winners_alone(whole, lab):
    workdir, _ = whole
    found, before = result(workdir), records(workdir)
    scored = [json.dumps(r["architecture"]) for r in before if r["part"] == "val"]
    assert sorted(scored) == sorted({json.dumps(row["architecture"]) for row in found["final"]})
    finish(lab, "search.py", workdir, *SEARCH)
    assert records(workdir) == before and result(workdir) == found


PREDICTED = ("--config.search.strategy=pareto", "--config.search.predictor=True",
             "--config.search.num_evaluations=44", "--config.search.predictor_min_tau=0.0")


@pytest.mark.parametrize("kind, numbers, more", [(signal.SIGKILL, (3, 60), PREDICTED), (signal.SIGTERM, (9,), ())])
def test_a_search_that_was_stopped_ends_as_one_that_was_not(kind, numbers, more, whole, lab, workdir, tmp_path):
    arguments, other = (*SEARCH, *more), whole[0]
    if more:
        other = tmp_path / "other"
        shutil.copytree(workdir, other)
        finish(lab, "search.py", other, *arguments)
    for number in numbers:
        process = start(lab, "search.py", workdir, *arguments)
        deadline = time.monotonic() + 200
        while len(records_of_now(workdir)) < number:
            assert process.poll() is None and time.monotonic() < deadline, process.communicate()[1][-2000:]
            time.sleep(0.002)
        process.send_signal(kind)
        _, err = process.communicate(timeout=100)
        if kind == signal.SIGTERM:
            assert process.returncode == 128 + kind and "goes on from there" in err
    _, err = finish(lab, "search.py", workdir, *arguments)
    assert "going on with the evaluations" in err
    assert result(workdir) == result(other)
    assert any(entry["used"] for entry in result(workdir)["predictor"]) == bool(more)
    keys = [(json.dumps(r["architecture"]), r["part"]) for r in records(workdir)]
    assert len(keys) == len(set(keys))


def records_of_now(workdir) -> list[str]:
    """Whole lines of a journal that is being written, without its first."""
    path = workdir / "search" / "evaluations.jsonl"
    return path.read_text().splitlines(keepends=True)[1:] if path.exists() else []


def test_streaming_gives_the_same_result_and_says_so(whole, lab, workdir):
    _, err = finish(lab, "search.py", workdir, *SEARCH, "--config.search.resident_gb=1e-6")
    assert "stay in the host's memory" in err
    ours, theirs = result(workdir), result(whole[0])
    assert ours["evaluations"] == theirs["evaluations"] and ours["final"] == theirs["final"]


@pytest.mark.parametrize("arguments, message", [
    (("--config.search.max_macs=1000",), "^config.search.max_macs: found 1000, expected at least"),
    (("--config.search.max_resolution=4",), "config.search.max_resolution: found 4, expected at least 8"),
    (("--config.space.head_width=(32,)",), "was trained with another config .config.space.head_width: "),
    (("--config.space.activation=relu",), "config.space.activation: 'swish' -> 'relu'.: leave these as they were"),
    (("--config.data.holdout=300",), "config.data.holdout: 200 -> 300"),
    (("--checkpoint=9999",), "--checkpoint: found 9999, expected newest, best or one of"),
    (("--config.data.holdout=0",), "config.data.holdout: found 0, expected some"),
])
def test_what_cannot_work_is_one_clear_line(arguments, message, lab, workdir):
    argv = ["search.py", "--config", str(lab / "tiny.py"), "--workdir", str(workdir), *SEARCH, *arguments]
    options, found = flags.parse(argv, "", searching.define, of_run=True)
    with pytest.raises((ConfigError, CheckpointError), match=message) as error:
        run.search(options, found.workdir, found.checkpoint)
    assert "\n" not in str(error.value)
    assert not (workdir / "search" / "evaluations.jsonl").exists()


def test_without_a_checkpoint(lab, tmp_path):
    _, err = finish(lab, "search.py", tmp_path / "none", code=2)
    assert "no checkpoint under" in one_line(err) and "train first" in err
    assert not (tmp_path / "none").exists()


def test_one_search_at_a_time(whole, lab):
    import fcntl

    workdir, _ = whole
    with open(workdir / "search" / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        _, err = finish(lab, "search.py", workdir, *SEARCH, code=2)
    assert "another search is at work in it" in one_line(err)


def test_a_latency_budget(lab, workdir):
    arguments = (*SEARCH, "--config.search.max_latency_ms=1000", "--config.search.cost=latency_ms")
    out, _ = finish(lab, "search.py", workdir, *arguments)
    found = result(workdir)
    assert found["latency"]["blocks"] > 0 and found["latency"]["error"] >= 0
    assert all(row["latency_ms"] > 0 for row in found["evaluations"])
    assert " ms " in out
    table = (workdir / "search" / "latency.jsonl").read_text()
    finish(lab, "search.py", workdir, *arguments)
    assert (workdir / "search" / "latency.jsonl").read_text() == table and result(workdir) == found
