"""A signal at moments that a run passes in a blink: the function that is at work then sends it to its own process."""

import os
import re
import signal
import sys

import forks
from run_lab import environment, records, steps_of

# The place of a function, the call of it that sends the signal, the signal, a module of `cli`, then its command line.
PROGRAM = """
import importlib, os, pkgutil, signal, sys
from bignas_jax.cli import stopping
place, call, kind, cli, *sys.argv = sys.argv[1:]

def main():
    owner, _, name = place.rpartition(".")
    owner, calls = pkgutil.resolve_name(owner), []
    work = getattr(owner, name)

    def marked(*arguments, **named):
        calls.append(name)
        if len(calls) == int(call):
            os.kill(os.getpid(), int(kind))
        return work(*arguments, **named)

    setattr(owner, name, marked)
    return importlib.import_module(f"bignas_jax.cli.{cli}").main()

stopping.script(main)
"""
SCORE = "bignas_jax.evaluation:Evaluator.score"


def interrupted(lab, place, call, kind, cli="train", arguments=()) -> str:
    """The last line of a script that a signal ended."""
    command = [sys.executable, "-c", PROGRAM, place, str(call), str(int(kind)), cli, f"{cli}.py", "--config",
               str(lab / "tiny.py"), "--workdir", str(lab / "run"), "--config.max_steps=6", *arguments]  # fmt: skip
    surroundings = environment(lab, cache=lab / "cache")
    done = forks.run(command, env=surroundings, cwd=lab, capture_output=True, text=True, timeout=300)
    assert done.returncode == 128 + kind and "Traceback" not in done.stderr, done.stderr[-2000:]
    return [line for line in re.split(r"[\r\n]", done.stderr) if line.strip()][-1]


def test_while_programs_compile_then_in_an_evaluation_then_in_the_last_scoring_then_in_an_export(lab):
    told = "the same command goes on from the last state on disk"
    line = interrupted(lab, "bignas_jax.programs.kept:Program.compile", 1, signal.SIGINT)
    assert line == f"train.py: stopped by SIGINT; {told}" and steps_of(lab / "run") == []

    line = interrupted(lab, SCORE, 1, signal.SIGTERM)  # that of step 6, which is saved without it
    assert line == "train.py: stopped by SIGTERM at step 6; the same command goes on from there"
    assert steps_of(lab / "run") == [6] and not any("holdout_top1/max" in row for row in records(lab / "run"))

    line = interrupted(lab, SCORE, 2, signal.SIGINT)  # after the evaluation that was missed
    assert line == f"train.py: stopped by SIGINT; {told}"
    assert [row["step"] for row in records(lab / "run") if "holdout_top1/max" in row] == [6]
    assert not (lab / "run" / "evaluation_val.json").exists()

    place = "bignas_jax.interop.exports.export.write_child"
    line = interrupted(lab, place, 1, signal.SIGTERM, "export", ("--arch=min", "--format=safetensors"))
    assert line == f"export.py: stopped by SIGTERM; {told}"
    assert os.listdir(lab / "run" / "children") == [".lock"]
