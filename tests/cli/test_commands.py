"""The commands as people give them: what they write and where, mistakes, and values that are pasted back."""

import json
import os
import re
import sys

import forks
import numpy as np
import pytest
import xla_flags
from bad_files import HOSTILE, listing, spoiled
from data_folders import picture
from paths import ROOT
from run_lab import CONFIG
from tiny import tiny_space

from bignas_jax.cli import flags
from bignas_jax.config.files import to_json
from bignas_jax.config.recipes import load_recipe
from bignas_jax.errors import ConfigError
from bignas_jax.search.problem import Problem, budgets_of

SPACE = tiny_space()
COSTS = {"macs": 2e6, "params": 1e5, "latency_ms": 5.0}


@pytest.mark.parametrize("latency", [0.0123456, 1.9999999, 3.00004, 7.0])
@pytest.mark.parametrize("bound, value", [("max", 1e-3), ("min", 1e12)])
@pytest.mark.parametrize("kind", COSTS)
def test_the_budget_that_an_error_names_is_accepted_when_it_is_pasted_back(kind, bound, value, latency):
    def search(text):
        options, _ = flags.parse(["search.py", f"--config.search.{bound}_{kind}={text}"], "")
        return Problem(SPACE, 7, budgets_of(options.search, COSTS, COSTS), latency=lambda arch: latency)

    with pytest.raises(ConfigError) as error:
        search(value)
    (named,) = re.findall(r"expected at (?:least|most) (\S+), what the", str(error.value))
    (budget,) = search(named).budgets
    least = SPACE.smallest if bound == "max" else SPACE.biggest
    cost = search(named).costs(least)[kind]
    (asked,) = {**budget.limits(), **budget.floors()}.values()
    assert abs(asked - cost) <= 0.001  # no more is asked for than that


# Runs commands in one process, and notes what Python opens to write, makes or moves.
PROGRAM = """
import json, os, sys
written, commands = [], json.loads(sys.argv[1])

def note(event, arguments):
    if event == "open":
        path, mode, flags = arguments
        if isinstance(path, (str, bytes)) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC):
            written.append(os.path.abspath(os.fsdecode(path)))
    elif event == "os.mkdir" and arguments[2] == -1:
        written.append(os.path.abspath(os.fsdecode(arguments[0])))
    elif event in ("os.rename", "os.link", "os.symlink"):
        written.extend(os.path.abspath(os.fsdecode(path)) for path in arguments[:2])

from bignas_jax.cli import evaluate, export, predict, searching, train
scripts = dict(train=train, search=searching, eval=evaluate, export=export, predict=predict)
sys.addaudithook(note)
for name, *arguments in commands:
    sys.argv = [f"{name}.py", *arguments]
    code = scripts[name].main()
    assert not code, (name, code)
with open(sys.argv[1].removeprefix("--workdir=") + "/written", "w") as file:
    json.dump(written, file)
"""
# Variables that would lead caches elsewhere, or keep libraries from writing.
USERS = ("XDG_", "JAX_", "MPL", "CI", "ORT_", "BIGNAS_", "TORCH")
SMALL = (
    "--config.max_steps=2", "--config.evaluation.batch_size=48", "--config.search.num_evaluations=2",
    "--config.search.population=2",
)  # fmt: skip


def test_nothing_is_written_outside_of_the_runs_folder(tmp_path):
    """But caches: compiled programs, matplotlib's list of fonts, and an empty folder that PyTorch makes for its own."""
    places = {name: tmp_path / name for name in ("home", "here", "temporary")}
    for place in places.values():
        place.mkdir()
    run = tmp_path / "run"
    (places["here"] / "tiny.py").write_text(CONFIG)
    picture(1).save(places["here"] / "photo.png")
    of_run = f"--workdir={run}"
    commands = [
        ["train", of_run, f"--config={places['here'] / 'tiny.py'}", *SMALL],
        ["search", of_run, *SMALL[1:]],
        ["eval", of_run, "--arch=min"],
        ["export", of_run, "--arch=min", "--format=onnx,safetensors", "--images=8"],
        ["predict", of_run, "--arch=min", "photo.png"],
    ]
    before = listing(places["here"])
    done = forks.run(
        [sys.executable, "-c", PROGRAM, json.dumps(commands)],
        env={name: value for name, value in os.environ.items() if not name.startswith(USERS)}
        | {"HOME": str(places["home"]), "TMPDIR": str(places["temporary"]), "PYTHONPATH": str(ROOT),
           "PYTHONDONTWRITEBYTECODE": "1", "JAX_PLATFORMS": "cpu",
           "XLA_FLAGS": xla_flags.QUICK},
        cwd=places["here"], capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert listing(places["here"]) == before
    left = [os.path.relpath(path, places["temporary"]) for path in listing(places["temporary"])]
    assert all(re.fullmatch(r"torchinductor_\w+", name) for name in left), left
    written = json.loads((run / "written").read_text())
    caches = tuple(str(places["home"] / cache) for cache in (".cache/bignas_jax", ".cache/matplotlib",
                                                             ".config/matplotlib"))  # fmt: skip
    ours = [path for path in written if path.startswith(str(run))]
    assert len(ours) > 50  # the hook sees them
    temporary = str(places["temporary"])  # emptied again
    made = {str(places["home"] / folder) for folder in (".cache", ".config")}
    outside = [path for path in {*written, *listing(places["home"])} - made
               if not path.startswith((str(run), *caches, temporary, "/dev/", "/proc/"))]  # fmt: skip
    assert not outside, outside


def test_a_bad_file_ends_a_command_in_a_line_and_writes_nothing(tmp_path):
    """A few generated ones, through whole processes as a shell starts them."""
    rng, run = np.random.default_rng(7), tmp_path / "run"
    run.mkdir()
    whole = to_json(load_recipe("configs/digits.py")).encode()
    arch = json.dumps(SPACE.biggest.to_dict()).encode()
    cases = []
    for number in range(1):
        (tmp_path / f"arch{number}.json").write_bytes(spoiled(rng, arch)[:-1])
        cases.append(("eval.py", whole, f"--arch={tmp_path}/arch{number}.json"))
    cases += [
        ("search.py", b"\xff" + spoiled(rng, whole), "--config.search.max_macs=1e6"),
        ("export.py", b"{" + whole, "--arch=max"),
        ("predict", whole[:-9], str(tmp_path / f"{HOSTILE.replace(chr(0), '')}.jpg")),
    ]
    for script, config, *arguments in cases:
        (run / "config.json").write_bytes(config)
        before = listing(tmp_path)
        command = [str(ROOT / script)] if script.endswith("py") else ["-m", "bignas_jax", script]
        done = forks.run(
            [sys.executable, *command, f"--workdir={run}", *arguments],
            env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}, cwd=tmp_path,
            capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert done.returncode in (1, 2) and "Traceback" not in done.stderr, done.stderr
        lines = done.stderr.removesuffix("\n").split("\n")
        assert len(lines) <= 2 and all(line.isprintable() for line in lines), done.stderr
        assert str(run) in done.stderr or str(tmp_path) in done.stderr, done.stderr
        assert listing(tmp_path) == before, (script, done.stderr)
