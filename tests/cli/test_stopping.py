"""Scripts that a signal ends: one line, exit code 128 + n, whatever they are at."""

import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest
from paths import ROOT

SCRIPT = """
import sys, time
from bignas_jax.cli import stopping
{patience}
def main():
    {started}
    print("ready", flush=True)
    {work}
    print("done", flush=True)
    return 7

stopping.script(main)
"""
DEAF = "import hashlib; hashlib.pbkdf2_hmac('sha256', b'x', b'y', 60_000_000)"  # in C, where no handler runs


def begin(tmp_path, work, started="stopping.working()", patience=""):
    script = tmp_path / "work.py"
    script.write_text(textwrap.dedent(SCRIPT.format(work=work, started=started, patience=patience)))
    process = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                               env=os.environ | {"PYTHONPATH": str(ROOT)})  # fmt: skip
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.5)  # until it is at its work
    return process


@pytest.mark.parametrize("kind", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("started", ["stopping.working()", "pass"], ids=["at work", "importing"])
def test_one_line_and_the_signal_s_code(kind, started, tmp_path):
    process = begin(tmp_path, "time.sleep(60)", started)
    process.send_signal(kind)
    out, err = process.communicate(timeout=20)
    assert process.returncode == 128 + kind and out == ""
    assert err == f"work.py: stopped by {kind.name}; the same command goes on from the last state on disk\n"


def test_what_is_open_is_closed_on_the_way(tmp_path):
    process = begin(tmp_path, "import contextlib\n    try: time.sleep(60)\n    finally: print('closed', flush=True)")
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=20)
    assert out == "closed\n"


def test_work_that_does_not_hear_is_ended_after_a_while(tmp_path):
    process = begin(tmp_path, DEAF, patience="stopping.PATIENCE = 0.5")
    start = time.monotonic()
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 143 and err.count("\n") == 1 and "stopped by SIGTERM" in err
    assert 0.4 < time.monotonic() - start < 10


def test_a_second_sigint_ends_it_at_once(tmp_path):
    process = begin(tmp_path, DEAF)
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=5)
    assert process.returncode == 130 and err.count("\n") == 1 and "stopped by SIGINT" in err


def test_a_signal_at_the_very_end_changes_nothing(tmp_path):
    late = "import atexit; atexit.register(time.sleep, 2)"
    process = begin(tmp_path, late)
    assert process.stdout.readline() == "done\n"
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 7 and err == ""
