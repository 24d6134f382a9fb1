"""No file that a user may have got from others is run: no pickle, no code, no program."""

import ast
import pathlib

import numpy as np
import pytest
from paths import ROOT

from bignas_jax.errors import WeightsError
from bignas_jax.interop.imports.torch_file import read_checkpoint

SOURCES = [path for folder in ("bignas_jax", "benchmarks", "configs", "docs") for path in (ROOT / folder).rglob("*.py")]
# What runs what it reads, or can be made to. Kept programs are pickles; `trust` says where they may come from.
RUNNING = {
    "pickle.load", "pickle.loads", "pickle.Unpickler", "marshal.load", "marshal.loads", "shelve.open", "joblib.load",
    "dill.load", "dill.loads", "cloudpickle.load", "cloudpickle.loads", "yaml.load", "yaml.unsafe_load",
    "runpy.run_path", "pandas.read_pickle", "torch.hub.load", "torch.jit.load", "eval", "exec", "os.system",
}  # fmt: skip
ALLOWED = {
    ("bignas_jax/programs/kept.py", "pickle.loads"),  # of a file that nobody but this user could write
    ("bignas_jax/interop/exports/run_back.py", "exec"),  # of this package's own text
    ("benchmarks/import_full.py", "runpy.run_path"),  # of the tests' own file
}


def name_of(node):
    """The dotted name that is called; '' for other calls."""
    parts = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join([node.id, *reversed(parts)]) if isinstance(node, ast.Name) else ""


def calls():
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                yield path.relative_to(ROOT).as_posix(), name_of(node.func), {k.arg: k.value for k in node.keywords}


def test_nothing_is_read_that_is_run():
    assert {(path, name) for path, name, _ in calls() if name in RUNNING} == ALLOWED


def test_arrays_and_weights_are_read_without_pickles():
    read = [(path, name, arguments) for path, name, arguments in calls() if name in ("np.load", "torch.load")]
    assert len(read) > 3
    for path, name, arguments in read:
        if name == "torch.load":
            assert arguments["weights_only"].value is True, path
        assert "allow_pickle" not in arguments, path


class Bomb:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return pathlib.Path.touch, (self.target,)


@pytest.mark.parametrize("name", ["weights.npz", "weights.npy", "weights.pth", "weights.onnx", "weights.safetensors"])
def test_arrays_that_hold_code_are_no_weights(name, tmp_path):
    path, target = tmp_path / name, tmp_path / "hacked"
    array = np.array([Bomb(target)], dtype=object)
    with open(path, "wb") as file:
        np.savez(file, weight=array) if name.endswith("npz") else np.save(file, array)
    with pytest.raises(WeightsError, match=name):
        read_checkpoint(path)
    assert not target.exists()
