"""Children for LiteRT: what the files compute, and what is said where its packages are not installed or refuse."""

import importlib.util

import numpy as np
import pytest
from saved_run import save, tiny_config

from bignas_jax.config.files import load_run_options
from bignas_jax.errors import ConfigError, ExportError
from bignas_jax.interop.exports import comparing, export, formats, litert, run_back
from bignas_jax.nets.child import take

ABOUT = {"name": "MAX", "macs": "1"}
needs_litert = pytest.mark.skipif(
    importlib.util.find_spec("litert_torch") is None, reason="the extra litert: 0.5 GB of packages"
)


@pytest.fixture
def child(tiny_v3):
    return take(tiny_v3.space, tiny_v3.params, tiny_v3.statistics, tiny_v3.space.biggest)


def noise(child, count=16):
    side = child.arch.resolution
    return np.random.default_rng(0).standard_normal((count, 3, side, side)).astype(np.float32)


@needs_litert
@pytest.mark.parametrize("batch", [0, 4])
def test_the_file_gives_the_logits_of_the_onnx_file(child, tmp_path, batch):
    images = noise(child)
    litert.write_litert(child, tmp_path, batch, ABOUT)
    formats.write_onnx(child, tmp_path, batch, ABOUT)
    ours = run_back.RUNNERS[formats.LITERT](tmp_path, images, batch or 16)
    theirs = run_back.RUNNERS["onnx"](tmp_path, images, batch or 16)
    np.testing.assert_allclose(ours, theirs, atol=1e-5 * np.abs(theirs).max())


@needs_litert
def test_a_run_is_exported_in_integers_for_both_runtimes_at_once(tmp_path):
    workdir = save(tmp_path / "tiny", tiny_config())
    form = export.Form(["litert", "litert-int8", "onnx-int8"], images=20)
    (row,) = export.export_run(load_run_options(workdir / "config.json"), workdir, ["max"], form)
    comparing.check([row])
    exact, ours, onnx = row["files"]
    assert [file["file"] for file in row["files"]] == ["child.tflite", "child-int8.tflite", "child-int8.onnx"]
    assert exact["difference"] < 1e-5 and 1e-4 < ours["difference"] < 0.3 and "top1" not in exact
    assert ours["top1"] == pytest.approx(onnx["top1"], abs=0.151)
    assert f"top-1 {ours['top1']:.2%} in 8 bits" in comparing.table(row)


@needs_litert
def test_no_images_are_refused(child, tmp_path):
    with pytest.raises(ExportError, match="^litert-int8: found no training image"):
        litert.write_litert_integers(child, tmp_path, 0, ABOUT, [])
    assert not list(tmp_path.iterdir())


def test_what_the_converter_refuses_is_an_error_of_one_line(child, tmp_path, monkeypatch):
    """A converter that stands in for LiteRT's writes what it was given, or fails with several lines."""
    works = """
import child, pathlib, sys
pathlib.Path(sys.argv[2]).write_text(" ".join([*sys.argv[3:5], str(bool(sys.argv[5]))]))
"""
    begin = "import sys; sys.path.insert(0, sys.argv[1])"
    monkeypatch.setattr(litert, "_PROGRAM", begin + works)
    assert litert.write_litert(child, tmp_path, 0, ABOUT).read_text() == f"1 {child.arch.resolution} False"
    ours = litert.write_litert_integers(child, tmp_path, 4, ABOUT, [noise(child, 8)])
    assert ours.read_text() == f"4 {child.arch.resolution} True"
    monkeypatch.setattr(litert, "_PROGRAM", begin + "\nraise RuntimeError('no lowering\\nfor conv')")
    with pytest.raises(ExportError, match="^litert: its converter does not take the child: .*for conv$"):
        litert.write_litert(child, tmp_path, 0, ABOUT)
    monkeypatch.setattr(litert, "_PROGRAM", "")
    with pytest.raises(ExportError, match="^litert: its converter does not take the child: exit code 0$"):
        litert.write_litert(child, tmp_path, 0, ABOUT)


def test_packages_that_are_missing_are_named(monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if "litert" in name else found(name))
    with pytest.raises(ConfigError, match="--format litert: .*pip install litert-torch ai-edge-litert, or leave"):
        export.Form(["litert"])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: True)
    with pytest.raises(ConfigError, match="--nofold: found litert-int8"):
        export.Form(["litert-int8"], fold=False)
