"""`python -m bignas_jax`: the same commands as the scripts."""

import os
import sys

import forks
import pytest
from paths import ROOT

from bignas_jax.__main__ import COMMANDS, usage


def call(*arguments, cwd=ROOT, script=None):
    command = [sys.executable, *([str(ROOT / script)] if script else ["-m", "bignas_jax"]), *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = forks.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=120)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("arguments", [(), ("--help",)])
def test_without_a_command_it_lists_them(arguments):
    code, out, err = call(*arguments)
    assert (code, out.strip(), err) == (0, usage(), "")
    assert all(f"  {name} " in out for name in COMMANDS)


def test_an_unknown_command_is_refused_in_one_line():
    code, out, err = call("tune")
    assert (code, out) == (2, "") and err.count("\n") == 1
    assert err.startswith("bignas_jax: found the command 'tune', expected one of train, search, eval")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name):
    code, out, err = call(name, "--help")
    assert code == 0 and err == "" and len(out.splitlines()) > 2


@pytest.mark.parametrize("name, script", [("train", "train.py"), ("search", "search.py"), ("eval", "eval.py"),
                                          ("export", "export.py")])  # fmt: skip
def test_a_command_and_its_script_are_one(name, script, tmp_path):
    helps = call(name, "--help")[1], call("--help", script=script)[1]
    assert helps[0].replace(f"bignas_jax {name}", script) == helps[1]
    wrong = call(name, "--config.batch_size=0"), call("--config.batch_size=0", script=script)
    assert wrong[0][0] == wrong[1][0] == 2
    assert wrong[0][2] == wrong[1][2].replace(f"{script}: ", f"bignas_jax {name}: ", 1)


def test_recipes_are_found_from_another_folder(tmp_path):
    code, _, err = call("eval", "--config", "configs/cifar10.py", "--workdir", tmp_path, cwd=tmp_path)
    assert code == 2 and "no checkpoint under" in err


def test_a_report_needs_a_search(tmp_path):
    code, out, err = call("report", tmp_path)
    assert (code, out) == (2, "") and "bignas_jax report: " in err and "python -m bignas_jax search" in err
