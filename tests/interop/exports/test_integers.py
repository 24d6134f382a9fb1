"""Children in 8-bit integers: what the ONNX file holds, what it computes, and the export's two ways to it."""

import json
import os
import sys

import numpy as np
import onnx
import pytest
from saved_run import save, tiny_config

import bignas_jax
from bignas_jax.config.files import load_run_options
from bignas_jax.errors import ConfigError, ExportError
from bignas_jax.interop.exports import comparing, export, formats, integers, run_back
from bignas_jax.interop.exports.tensors import tensors
from bignas_jax.nets.child import fold, take

ABOUT = {"name": "MAX", "architecture": "{}"}


@pytest.fixture(scope="module", params=["tiny_v3"])
def written(request, tmp_path_factory):
    """A child, its file, and images like those that the ranges were taken from."""
    tiny = request.getfixturevalue(request.param)
    child = take(tiny.space, tiny.params, tiny.statistics, tiny.space.biggest)
    side = child.arch.resolution
    images = np.random.default_rng(0).standard_normal((48, 3, side, side)).astype(np.float32)
    folder = tmp_path_factory.mktemp("child")
    integers.write_integers(child, folder, 0, ABOUT, [images[:32], images[32:]])
    formats.write_onnx(fold(child), folder, 0, ABOUT)
    return child, folder, images


def test_weights_are_rounded_by_the_formula_for_each_output_channel(written):
    child, folder, _ = written
    model = onnx.load(folder / formats.INTEGERS_FILE)
    held = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    expected = {name: a for name, a in tensors(fold(child)).items() if name.endswith("weight")}
    for name, weight in expected.items():
        found, scale = held[f"{name}_quantized"], held[f"{name}_scale"]
        flat = weight.reshape(len(weight), -1)
        np.testing.assert_allclose(scale, 2 * np.abs(flat).max(1) / 254, rtol=1e-3)
        assert found.dtype == np.int8 and found.shape == weight.shape
        # Half a step at most from what it stands for: a scale of a tensor, or a channel mixed up, would be further.
        steps = scale.reshape(-1, *[1] * (weight.ndim - 1))
        assert (np.abs(found * steps - weight) <= 0.51 * steps + 1e-7).all(), name
    assert not {*expected} & {*held}  # nothing is held in float32 as well
    assert {entry.key: entry.value for entry in model.metadata_props} == ABOUT


def test_the_file_alone_gives_nearly_the_logits_of_float32(written):
    _, folder, images = written
    ours = run_back.RUNNERS[formats.INTEGERS](folder, images, 16)
    theirs = run_back.RUNNERS["onnx"](folder, images, 16)
    error = np.sqrt(np.mean((ours - theirs) ** 2)) / theirs.std()
    assert 1e-4 < error < 0.1  # rounded, but near


def test_no_images_are_refused(tiny, tmp_path):
    child = take(tiny.space, tiny.params, tiny.statistics, tiny.space.smallest)
    with pytest.raises(ExportError, match="found no training image"):
        integers.write_integers(child, tmp_path, 0, ABOUT, [])
    assert not os.listdir(tmp_path)


def test_what_onnxruntime_refuses_is_an_error_of_one_line(tiny, tmp_path, monkeypatch):
    child = take(tiny.space, tiny.params, tiny.statistics, tiny.space.smallest)
    wrong = np.zeros((2, 3, 5, 7), np.float32)  # images of another size
    with pytest.raises(ExportError, match="^onnx-int8: onnxruntime does not quantise the child: [^\n]*$"):
        integers.write_integers(child, tmp_path, 0, ABOUT, [wrong])
    monkeypatch.setitem(sys.modules, "onnxruntime.quantization", None)
    with pytest.raises(ExportError, match="whose quantization cannot be imported [^\n]*: pip install [^\n]*$"):
        integers.write_integers(child, tmp_path, 0, ABOUT, [wrong])
    assert not os.listdir(tmp_path)


def test_a_run_exports_integers_by_command_and_api_alike(tmp_path, caplog):
    workdir = save(tmp_path / "tiny", tiny_config())
    form = export.Form(["onnx-int8", "onnx"], batch=5, images=20)
    (row,) = export.export_run(load_run_options(workdir / "config.json"), workdir, ["max"], form)
    comparing.check([row])
    assert "pre-processing" not in caplog.text  # onnxruntime's warnings, which mean nothing to the user
    whole, exact = row["files"]
    assert whole["file"] == formats.INTEGERS_FILE
    assert whole["top1"] == pytest.approx(row["top1"], abs=0.101) and "top1" not in exact
    assert f"top-1 {whole['top1']:.2%} in 8 bits, {row['top1']:.2%} in float32" in comparing.table(row)
    child = bignas_jax.open_run(workdir).child("max")
    found = child.export("onnx-int8", tmp_path / "out", batch=5, images=20)
    one, other = (json.loads((path / "export.json").read_text())["files"][0] for path in (
        tmp_path / "out", workdir / "children" / "MAX"))  # fmt: skip
    assert found == {"onnx-int8": tmp_path / "out" / formats.INTEGERS_FILE}
    assert one["top1"] == other["top1"] and one["difference"] == pytest.approx(other["difference"], rel=0.2)


def test_integers_are_never_without_folding():
    with pytest.raises(ConfigError, match="--nofold: found onnx-int8"):
        export.Form(["onnx", "onnx-int8"], fold=False)
    export.Form(["onnx"], fold=False)


@pytest.mark.parametrize("integer, float32, said", [(50, 40, True), (40, 40, True), (39, 40, False), (41, None, True)])
def test_a_file_that_grows_in_8_bits_is_told(integer, float32, said):
    common = {"difference": 0.1, "agreement": 1.0}
    files = [{"format": "onnx-int8", "file": "child-int8.onnx", "bytes": integer, "top1": 0.5, **common}]
    files += [] if float32 is None else [{"format": "onnx", "file": "child.onnx", "bytes": float32, **common}]
    row = {"name": "MIN", "macs": 1, "params": 10, "step": 1, "images": 2, "split": "val", "top1": 0.5, "files": files}
    assert ("no smaller than in float32" in comparing.table(row)) is said


def test_logits_of_integers_must_be_numbers():
    file = {"format": "onnx-int8", "file": "child-int8.onnx", "difference": float("nan")}
    with pytest.raises(ExportError, match="child-int8.onnx"):
        comparing.check([{"folder": "x", "files": [file]}])
