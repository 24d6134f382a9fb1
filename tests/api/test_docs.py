"""Every line of docs/api.md, as its reader would run it, on a run with random weights in the digits' own space."""

import contextlib
import io
import re
import shlex
import sys

import forks
import pytest
from data_folders import picture
from paths import ROOT
from run_lab import environment
from saved_run import save, tiny_config

TEXT = (ROOT / "docs" / "api.md").read_text()
PYTHON = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
COMMANDS = [line for block in re.findall(r"```bash\n(.*?)```", TEXT, re.DOTALL) for line in block.splitlines()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("docs")
    (folder / "exp").mkdir()
    save(folder / "exp" / "digits", tiny_config())
    picture(0).save(folder / "photo.jpg")
    return folder


def test_the_python_runs_as_it_stands(folder, monkeypatch):
    monkeypatch.chdir(folder)
    assert len(PYTHON) == 7
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        exec(compile("\n".join(PYTHON), "docs/api.md", "exec"), {})
    lines = said.getvalue().splitlines()
    assert lines[0] == "7 16 ('0', '1', '2', '3', '4', '5', '6', '7', '8', '9')"
    assert lines[-1].startswith("Cost(macs=219382144, ")  # 219.38 M, as the README says
    assert (folder / "exp/digits/children/mine/child.onnx").exists()


def test_the_commands_run(folder):
    (command,) = COMMANDS
    program, *arguments = shlex.split(command)
    assert program == "python"
    done = forks.run(
        [sys.executable, *arguments], cwd=folder, env=environment(folder), capture_output=True, text=True, timeout=400
    )
    assert done.returncode == 0, done.stderr[-2000:]
    head, _, row, *_ = done.stdout.splitlines()
    assert head.split()[:3] == ["image", "class", "%"] and re.fullmatch(r"photo\.jpg( +\d +\d+\.\d){3}", row)
