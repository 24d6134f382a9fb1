"""Every line of docs/extending.md, as its reader would run it."""

import json
import os
import re
import shlex
import sys

import forks
import pytest
from paths import ROOT
from run_lab import environment

TEXT = (ROOT / "docs" / "extending.md").read_text()
PYTHON = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
COMMANDS = [line for block in re.findall(r"```bash\n(.*?)```", TEXT, re.DOTALL) for line in block.splitlines()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    found = tmp_path_factory.mktemp("extending")
    *mine, recipe = PYTHON
    (found / "mine.py").write_text("\n\n".join(mine))
    (found / "plain.py").write_text(recipe)
    return found


def test_the_commands_run(folder):
    surroundings = environment(folder) | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(folder)])}
    assert len(COMMANDS) == 4
    for command in COMMANDS:
        program, *arguments = shlex.split(command)
        assert program == "python"
        if "train" in arguments:  # every resolution has programs of its own to compile
            arguments.append("--config.space.resolution=(6,16)")
        command_line = [sys.executable, *arguments]
        done = forks.run(command_line, cwd=folder, env=surroundings, capture_output=True, text=True, timeout=400)
        assert done.returncode == 0, (command, done.stderr[-2000:])
    last = json.loads((folder / "exp/mine/metrics.jsonl").read_text().splitlines()[0])
    assert {"loss/hardest", "from_teacher/hardest"} <= last.keys()
    result = json.loads((folder / "exp/mine/search/result.json").read_text())
    assert {row["phase"] for row in result["evaluations"]} == {"extremes", "climb"}
    (budget,) = result["budgets"]
    assert result["run"]["own_cost"]["name"] == "mine:peak_kib" and budget["name"] == "own-8"
    assert result["evaluations"][budget["winner"]]["own"] <= 8 < max(row["own"] for row in result["evaluations"])
    (child,) = (folder / "exp/plain/children").glob("[!.]*")
    assert json.loads((child / "export.json").read_text())["files"][0]["nodes"].get("Add", 0) == 0


def test_every_file_that_the_page_names_is_there():
    for target in re.findall(r"\]\(\.\./([^)]+)\)", TEXT):
        assert (ROOT / target).exists(), target
