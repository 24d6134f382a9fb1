"""Files that a kill leaves whole."""

import json
import os
import signal
import subprocess
import sys

import pytest
from paths import ROOT

from bignas_jax.errors import ConfigError
from bignas_jax.files import add_line, locked, whole_lines, write_json, write_text, write_with


def test_a_write_that_fails_leaves_what_was_there(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"a": [1, None]}, indent=2)
    before = path.read_text()
    assert json.loads(before) == {"a": [1, None]} and before.endswith("\n")

    def broken(temporary):
        temporary.write_text("half")
        raise OSError(28, "No space left on device", str(temporary))

    with pytest.raises(OSError, match="No space left"):
        write_with(path, broken)
    with pytest.raises(ValueError):
        write_json(path, float("nan"))
    assert path.read_text() == before and os.listdir(tmp_path) == ["a.json"]


def test_a_kill_in_the_middle_of_a_write_leaves_what_was_there(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "old")
    code = (
        "import os, pathlib, signal; from bignas_jax.files import write_with; "
        "write_with(pathlib.Path(os.sys.argv[1]), lambda t: (t.write_text('ne'), os.kill(os.getpid(), signal.SIGKILL)))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], cwd=ROOT)
    assert done.returncode == -signal.SIGKILL and path.read_text() == "old"
    write_text(path, "new")
    assert path.read_text() == "new" and os.listdir(tmp_path) == ["a.txt"]


def test_lines_that_were_cut_short_are_dropped(tmp_path):
    path = tmp_path / "lines.jsonl"
    assert whole_lines(path) == []
    with open(path, "a") as file:
        add_line(file, {"n": 1})
        add_line(file, {"n": 2}, sync=False)
        with pytest.raises(ValueError):
            add_line(file, {"n": float("inf")})
    path.write_bytes(path.read_bytes() + b'{"n": 3')
    assert [json.loads(line)["n"] for line in whole_lines(path)] == [1, 2]
    assert path.read_bytes() == b'{"n": 1}\n{"n": 2}\n'


def test_a_lock_ends_with_its_process(tmp_path):
    code = (
        "import pathlib, sys, time; from bignas_jax.files import locked\n"
        "with locked(pathlib.Path(sys.argv[1]), 'training'):\n    print('held', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(ConfigError, match="another training is at work in it; wait for its end, or stop it"):
        with locked(tmp_path, "training"):
            pass
    holder.kill()
    holder.wait()
    with locked(tmp_path, "training") as folder:
        assert folder == tmp_path
