"""Files that a kill leaves whole."""

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys

import pytest
from paths import ROOT

from bignas_jax.errors import ConfigError
from bignas_jax.files import (
    add_line,
    locked,
    open_lines,
    whole_lines,
    write_bytes,
    write_json,
    write_text,
    write_with,
)


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


def test_a_full_disk_is_an_error_that_names_the_file(tmp_path):
    """The system finds it in the middle of a write and names no file."""
    with pytest.raises(OSError) as error, open("/dev/full", "wb", buffering=0) as full:
        add_line(full, {"n": 1})
    assert error.value.filename == "/dev/full" and error.value.strerror == "No space left on device"

    def full(temporary):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(OSError) as error:
        write_with(tmp_path / "a.json", full)
    assert error.value.filename == str(tmp_path / "a.json") and error.value.errno == errno.ENOSPC
    with pytest.raises(FileNotFoundError) as error:
        write_text(tmp_path / "nowhere" / "a.txt", "")
    assert error.value.filename == str(tmp_path / "nowhere" / "a.txt")


def test_processes_that_write_one_file_do_not_meet(tmp_path):
    path, parts = tmp_path / "a.program", [bytes([n]) * 1000 for n in range(2)]

    def write(temporary):
        temporary.write_bytes(parts[0])
        write_bytes(path, parts[1], shared=True)  # another process, meanwhile
        assert temporary.read_bytes() == parts[0]

    write_with(path, write, shared=True)
    assert path.read_bytes() == parts[0] and os.listdir(tmp_path) == ["a.program"]
    assert path.stat().st_mode & 0o777 == 0o600


def test_lines_that_were_cut_short_are_dropped(tmp_path):
    path = tmp_path / "lines.jsonl"
    assert whole_lines(path) == []
    with open_lines(path) as file:
        add_line(file, {"n": 1})
        add_line(file, {"n": 2}, sync=False)
        with pytest.raises(ValueError):
            add_line(file, {"n": float("inf")})
    cut = path.read_bytes() + b'{"n": 3'
    path.write_bytes(cut)
    assert [json.loads(line)["n"] for line in whole_lines(path)] == [1, 2]
    assert path.read_bytes() == cut  # it may be a file of somebody else
    open_lines(path).close()
    assert path.read_bytes() == b'{"n": 1}\n{"n": 2}\n'
    path.write_bytes(b'{"n"')
    with open_lines(path) as file:
        add_line(file, {"n": 4})
    assert [json.loads(line) for line in whole_lines(path)] == [{"n": 4}]


def test_a_lock_ends_with_its_process(tmp_path):
    code = (
        "import pathlib, sys, time; from bignas_jax.files import locked\n"
        "with locked(pathlib.Path(sys.argv[1]), 'training'):\n    print('held', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    who = rf"another training is at work in it \(pid {holder.pid} on .+\); wait for its end, or stop it$"
    for work in ("training", "import"):
        with pytest.raises(ConfigError, match=who):
            with locked(tmp_path, work):
                pass
    holder.kill()
    holder.wait()
    with locked(tmp_path, "training") as folder:
        assert folder == tmp_path


def test_changes_of_a_file_wait_for_each_other(tmp_path):
    """Two processes that each add 200 times to a number in a file: none of it is lost."""
    path = tmp_path / "n.json"
    path.write_text("0")
    code = (
        "import pathlib, sys; from bignas_jax.files import in_turn, write_json\n"
        "path = pathlib.Path(sys.argv[1])\n"
        "for _ in range(200):\n    with in_turn(path): write_json(path, int(path.read_text()) + 1)"
    )
    both = [subprocess.Popen([sys.executable, "-c", code, str(path)], cwd=ROOT) for _ in range(2)]
    assert [process.wait(timeout=120) for process in both] == [0, 0]
    assert path.read_text() == "400\n"


def test_a_file_system_without_locks_is_said_and_no_reason_to_stop(tmp_path, monkeypatch, capsys):
    def no_locks(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with locked(tmp_path, "training") as folder:
        assert folder == tmp_path
    assert capsys.readouterr().err == (
        f"{tmp_path}: cannot be locked (No locks available); let no other training work in it\n"
    )
