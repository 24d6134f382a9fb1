"""The folder that goes to another device: its models are the children's parts, and its script needs nothing of ours."""

import csv
import dataclasses
import json
import subprocess
import sys

import jax
import numpy as np
import onnx
import onnxruntime
import pytest
from tiny import tiny_space

from bignas_jax.errors import ConfigError
from bignas_jax.interop.exports.latency_parts import seeded, write_parts
from bignas_jax.nets.child import Child, forward
from bignas_jax.spaces.architecture import Architecture
from bignas_jax.spaces.parts import distinct_parts, draw_networks, network_of, parts_of

CLASSES, BATCH = 7, 2
SPACE = dataclasses.replace(tiny_space(), resolution=(20,), stem_width=(8,), head_width=(32,))
NO_PACKAGE = ("import runpy, sys; sys.modules.update(dict.fromkeys(('bignas_jax', 'jax', 'torch', 'onnx'))); "
              "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')")  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("blocks") / "blocks"
    written = write_parts(SPACE, CLASSES, BATCH, folder)
    files = {path.name: path.stat().st_size for path in (folder / "models").iterdir()}
    assert written.parts == len(distinct_parts(SPACE, CLASSES)) and written.networks == 12
    assert len(files) == written.parts + 12 + 2 and written.megabytes == pytest.approx(sum(files.values()) / 1e6)
    return folder


def run(folder, name, x):
    session = onnxruntime.InferenceSession(folder / "models" / f"{name}.onnx", providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"images": x})
    return found


def test_the_parts_one_after_the_other_are_the_network_and_this_is_the_child(folder):
    """Against the child in JAX, with the same weights."""
    fitted, held_back = draw_networks(SPACE, 5, 5)
    x = np.random.default_rng(0).standard_normal((BATCH, 3, 20, 20), np.float32)
    for arch in (fitted[0], held_back[3], held_back[0]):
        y = x
        for part in parts_of(SPACE, arch, CLASSES):
            assert y.shape == (BATCH, part.shape[2], *part.shape[:2])
            y = run(folder, part.name, y)
        whole = network_of(SPACE, arch, CLASSES)
        np.testing.assert_allclose(run(folder, whole.name, x), y, rtol=1e-4, atol=1e-5)
        assert 1e-3 < np.abs(y).mean() < 1e3
        properties = onnx.load(folder / "models" / f"{whole.name}.onnx", load_external_data=False).metadata_props
        assert Architecture.from_json({p.key: p.value for p in properties}["architecture"]) == arch
    child = Child(SPACE.restricted(only=arch), CLASSES, seeded(whole.layers), None)
    expected = jax.jit(forward(child))(x.transpose(0, 2, 3, 1))
    np.testing.assert_allclose(y, expected, rtol=1e-3, atol=1e-4)


def test_weights_are_kept_once(folder):
    loaded = onnx.load(folder / "models" / f"{network_of(SPACE, SPACE.biggest, CLASSES).name}.onnx")
    assert sum(np.prod(tensor.dims) for tensor in loaded.graph.initializer) * 4 > 60_000
    small = [p for p in (folder / "models").iterdir() if p.suffix == ".onnx"]
    assert max(p.stat().st_size for p in small) < 60_000
    distinct = {weight.shape for part in distinct_parts(SPACE, CLASSES) for layer in part.layers
                for weight in layer.weights() if np.prod(weight.shape) * 4 >= 4096}  # fmt: skip
    assert (folder / "models" / "weights.bin").stat().st_size <= 4096 * sum(
        -(-int(np.prod(shape)) * 4 // 4096) for shape in distinct)  # fmt: skip


def test_a_folder_of_another_space_stays(folder):
    with pytest.raises(ConfigError, match="models of another space, such as head-3px.*give another --out"):
        write_parts(dataclasses.replace(SPACE, resolution=(26,)), CLASSES, BATCH, folder)


def measure(folder, *arguments, code=0):
    """The script in a process where this package, jax and onnx cannot be imported."""
    command = [sys.executable, "-I", "-B", "-c", NO_PACKAGE, str(folder / "measure.py"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == code, done.stderr
    return done.stderr


def rows(path):
    with open(path, newline="") as file:
        return {row["name"]: row for row in csv.DictReader(file)}


def test_the_script_times_every_model_and_goes_on(folder):
    measure(folder, "--passes", "1", "--seconds", "0", "--device", "mine")
    first = rows(folder / "latency.csv")
    assert set(first) == {path.stem for path in (folder / "models").glob("*.onnx")}
    assert {(row["batch"], row["threads"], row["device"], row["passes"]) for row in first.values()} == {
        (str(BATCH), "1", "mine", "1")}  # fmt: skip
    assert all(0 < float(row["ms"]) < 1000 for row in first.values())
    names = sorted(first)[:2]
    files = [str(folder / "models" / f"{name}.onnx") for name in names]
    measure(folder, *files, "--passes", "2", "--seconds", "0", "--device", "mine")
    second = rows(folder / "latency.csv")
    assert {name for name in second if second[name]["passes"] == "2"} == set(names)
    assert all(float(second[name]["ms"]) <= float(first[name]["ms"]) for name in first)
    clock = ("--clock", "cpu", "--passes", "1", "--seconds", "0", "--device", "mine")
    assert "found a table with runtime" in measure(folder, *clock, code=2)
    measure(folder, *files, *clock, "--out", str(folder / "cpu.csv"))
    assert all(row["runtime"].endswith("(cpu time)") and float(row["ms"]) > 0 for row in
               rows(folder / "cpu.csv").values())  # fmt: skip


def test_the_script_refuses_in_one_line(folder, tmp_path):
    out = str(tmp_path / "t.csv")
    (tmp_path / "bad.onnx").write_bytes(b"nothing")
    (tmp_path / "other.csv").write_text("name,ms,threads\na,1,4\n")
    for arguments, words in (
        ((str(tmp_path / "none.onnx"),), "found no file"),
        (("--out", str(tmp_path / "other.csv")), "found a table with threads '4', expected '1'"),
        (("--out", out, str(tmp_path / "bad.onnx")), "cannot load it"),
        (("--clock", "cpu", "--threads", "2"), "expected wall"),
    ):
        assert words in measure(folder, *arguments, code=2).splitlines()[-1]
    assert not (tmp_path / "t.csv").exists()


def test_the_guide_names_what_is_there(folder):
    text = (folder / "MEASURE.md").read_text()
    for name in ("measure.py", "models/", "weights.bin", "trtexec", "benchmark_app", "TFLite"):
        assert name in text
    assert json.dumps(text)  # plain text
