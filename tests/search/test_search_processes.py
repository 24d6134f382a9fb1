"""Searches on several processes: the first one's journal and result are those of one process with as many devices."""

import json
import pathlib
import re
import shutil
import subprocess
import sys
import time

import forks
import pytest
from paths import ROOT
from process_lab import ends, free_port
from run_lab import CONFIG, environment, finish
from run_lab import start as start_one

SEARCH = (
    "--config.search.num_evaluations=12", "--config.search.population=4", "--config.search.first_part=0.3",
    "--config.search.confidence=0.5", "--config.search.preview",
)  # fmt: skip


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A folder with a config, a trained run, and the same run searched by one process with two devices."""
    folder = tmp_path_factory.mktemp("search")
    # 128 architectures.
    config = CONFIG.replace("kernel_size=(3,), expand_ratio=(2,)", "kernel_size=(3, 5), expand_ratio=(2, 3)")
    (folder / "tiny.py").write_text(config)
    finish(start_one(folder, folder / "trained", "--config.max_steps=20", devices=2))
    shutil.copytree(folder / "trained", folder / "one")
    finish(start_one(folder, folder / "one", *SEARCH, script="search.py", devices=2))
    return folder


@pytest.fixture
def workdir(lab, tmp_path):
    shutil.copytree(lab / "trained", tmp_path / "run")
    return tmp_path / "run"


def start(lab, workdir, *arguments, each=((), ()), script="search.py") -> list[forks.Popen]:
    """Two processes with a device each."""
    port = free_port()
    command = [sys.executable, str(ROOT / script), "--config", str(lab / "tiny.py"), "--workdir", str(workdir)]
    joined = {"BIGNAS_COORDINATOR": f"localhost:{port}", "BIGNAS_NUM_PROCESSES": "2"}
    return [
        forks.Popen(
            [*command, *arguments, *each[index]],
            env=environment(lab) | joined | {"BIGNAS_PROCESS_ID": str(index)},
            cwd=lab, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for index in (0, 1)
    ]  # fmt: skip


def quiet(value):
    """JSON values without what no two runs have alike."""
    if isinstance(value, dict):
        return {key: quiet(v) for key, v in value.items() if key not in ("seconds", "workdir", "distributed")}
    return [quiet(v) for v in value] if isinstance(value, list) else value


def journal(workdir: pathlib.Path) -> list[dict]:
    path = workdir / "search" / "evaluations.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return quiet([json.loads(line) for line in lines if line.endswith("\n")])


def until_evaluated(processes, workdir, number) -> None:
    end = time.monotonic() + 300
    while len(journal(workdir)) < number:
        for process in processes:
            assert process.poll() is None, process.communicate()[1][-3000:]
        assert time.monotonic() < end
        time.sleep(0.01)


def own_lines(err: str) -> list[str]:
    """What is said besides progress bars."""
    lines = [line.strip() for line in re.split(r"[\r\n]", err)]
    return [line for line in lines if line.startswith("search.py")]


def assert_as_one(workdir, one) -> None:
    assert journal(workdir) == journal(one)
    found, expected = (quiet(json.loads((w / "search/result.json").read_text())) for w in (workdir, one))
    assert found == expected
    for budget in expected["budgets"]:
        assert (workdir / budget["file"]).read_bytes() == (one / budget["file"]).read_bytes()


def test_two_find_in_8_bits_what_one_finds(lab, workdir, tmp_path):
    shutil.copytree(lab / "trained", tmp_path / "one")
    quantized = "--config.search.num_evaluations=6", "--config.search.population=3", "--config.search.quantized=True"
    finish(start_one(lab, tmp_path / "one", *quantized, script="search.py", devices=2))
    for process in start(lab, workdir, *quantized):
        finish(process)
    assert_as_one(workdir, tmp_path / "one")
    assert journal(workdir)[0]["identity"]["quantized"] is True


def test_two_find_what_one_finds_even_where_one_of_them_was_killed(lab, workdir):
    both = start(lab, workdir, *SEARCH)
    until_evaluated(both, workdir, 8)
    both[0].kill()
    code, _, err, _ = ends(both[1], within=30)
    (line,) = own_lines(err)
    assert code == 1 and re.match(r"search.py: process 0 of 2 \(.*\) was lost: .* go on from", line)
    both[0].communicate()
    assert 8 <= len(journal(workdir)) < len(journal(lab / "one"))
    first, other = (finish(process) for process in start(lab, workdir, *SEARCH))
    assert "going on with the evaluations" in first[1] and "macs-50pct" in first[0]
    assert "macs-50pct" not in other[0] and other[1] == ""
    assert_as_one(workdir, lab / "one")
