"""The command on a run's folder: what it writes, prints and refuses."""

import dataclasses
import json
import re
import shutil
import subprocess
import sys
from types import SimpleNamespace

import forks
import numpy as np
import onnxruntime
import pytest
from data_folders import data_options, make_folder
from paths import ROOT
from PIL import Image
from saved_run import save, tiny_config

import export as script
from bignas_jax.data import open_dataset
from bignas_jax.errors import ExportError, UnreadableImage
from bignas_jax.files import locked
from bignas_jax.interop.exports import comparing, export, formats, images
from bignas_jax.interop.exports.tensors import tensors
from bignas_jax.nets.child import take
from bignas_jax.programs import memory
from bignas_jax.spaces.architecture import Architecture
from bignas_jax.spaces.cost import count
from bignas_jax.spaces.mobilenet import SearchSpace


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return save(tmp_path_factory.mktemp("runs") / "tiny", tiny_config(), steps=(7, 9))


@pytest.fixture
def main(monkeypatch, capsys):
    """The script in this process: (exit code, standard output, standard error)."""
    monkeypatch.setattr(memory, "keep_freed_memory", lambda: None)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["export.py", *map(str, arguments)])
        try:
            code = script.main()
        except SystemExit as end:
            code = end.code
        return code, *capsys.readouterr()

    return run


def test_the_command_from_end_to_end(workdir, tmp_path):
    arch = dataclasses.replace(SearchSpace.from_config(tiny_config().space).biggest, resolution=11, kernel_size=(3,))
    file = tmp_path / "found" / "architecture.json"
    file.parent.mkdir()
    file.write_text(arch.to_json())
    command = [sys.executable, ROOT / "export.py", "--workdir", workdir, "--arch", "min", "--arch", file,
               "--images", "20"]  # fmt: skip
    ended = forks.run(command, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr[-3000:]
    for name in ("MIN", "found"):
        folder = workdir / "children" / name
        expected = {*formats.FILES, "architecture.json", "preprocessing.json", "preprocess.py", "export.json"}
        assert {path.name for path in folder.iterdir()} == expected
        row = json.loads((folder / "export.json").read_text())
        assert f"{name}: {row['macs'] / 1e6:,.2f} M multiply-adds" in ended.stdout
        assert (row["images"], row["split"], row["step"]) == (20, "holdout", 9)
        assert [entry["format"] for entry in row["files"]] == list(formats.WRITERS)
        for entry in row["files"]:
            assert entry["difference"] < 1e-5 and entry["agreement"] == 1
            assert entry["bytes"] == (folder / entry["file"]).stat().st_size
            assert f"{entry['difference']:.1e}" in ended.stdout
    assert Architecture.from_json((workdir / "children/found/architecture.json").read_text()) == arch
    spec = json.loads((workdir / "children/found/preprocessing.json").read_text())
    assert spec["class_names"] == [str(digit) for digit in range(10)] and spec["size"]["side"] == 11
    assert_the_documented_lines_run(workdir / "children/found", tmp_path)
    assert row["macs"] == count(SearchSpace.from_config(tiny_config().space), arch, 10).macs


def assert_the_documented_lines_run(folder, elsewhere):
    """The Python of docs/export.md, in a copy of the child's folder: three formats name the class of an image alike."""
    copy = shutil.copytree(folder, elsewhere / "copy")
    picture = np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)
    Image.fromarray(picture).save(copy / "photo.jpg")
    lines = "".join(re.findall(r"```python\n(.*?)```", (ROOT / "docs/export.md").read_text(), re.DOTALL))
    begin = "import sys\nsys.path.insert(0, '.')\nsys.modules['bignas_jax'] = None\n"
    ended = subprocess.run([sys.executable, "-I", "-c", begin + lines], cwd=copy, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr[-3000:]
    onnx, torch, safetensors, stablehlo = ended.stdout.splitlines()
    assert onnx == torch == stablehlo and onnx in list("0123456789")
    assert safetensors.split(" ", 1)[0] == str(json.loads((folder / "export.json").read_text())["macs"])


def test_options_reach_the_files(workdir, main, tmp_path):
    arguments = ("--workdir", workdir, "--arch", "min", "--format", "onnx", "--images", 5, "--out", tmp_path)
    code, _, err = main(*arguments, "--nofold", "--batch", 4, "--checkpoint", 7)
    assert code == 0, err
    row = json.loads((tmp_path / "MIN/export.json").read_text())
    assert row["step"] == 7 and row["files"][0]["nodes"]["BatchNormalization"] == 5
    session = onnxruntime.InferenceSession(tmp_path / "MIN/child.onnx")
    assert session.get_inputs()[0].shape == [4, 3, 8, 8]
    assert not (tmp_path / "MIN/child.stablehlo").exists()
    # What was compared are answers that depend on the image.
    (logits,) = session.run(None, {"images": np.random.default_rng(0).standard_normal((4, 3, 8, 8), np.float32)})
    assert logits.std(0).max() > 0.1


def test_feature_maps_alone(workdir, main, tmp_path, monkeypatch):
    arguments = ("--arch", "max", "--features_only", "--images", 5, "--out", tmp_path / "out", "--workdir")
    code, _, err = main(*arguments, workdir)
    assert code == 2 and "features: found a network without a stride of 4" in err and not (tmp_path / "out").exists()
    config = tiny_config()
    config.space.stem_stride = 2
    arguments += (save(tmp_path / "strided", config),)
    code, out, err = main(*arguments)
    assert code == 0, err
    assert {path.name for path in (tmp_path / "out/MAX").iterdir()} == {
        "features.onnx", "architecture.json", "preprocessing.json", "preprocess.py", "export.json"}  # fmt: skip
    (file,) = json.loads((tmp_path / "out/MAX/export.json").read_text())["files"]
    assert file["format"] == "features" and list(file["maps"]) == ["stride4"] and 0 < file["difference"] < 1e-5
    assert re.search(r"\n  stride4 +\d\.\de-\d\d\n", out)
    code, _, err = main(*arguments, "--format", "onnx,torch")
    assert code == 2 and "--format: found onnx,torch with features_only, expected onnx alone" in err
    # A map that is wrong ends in an error.
    right = export.feature_maps
    monkeypatch.setattr(export, "feature_maps", lambda *args: {n: 1.01 * m for n, m in right(*args).items()})
    code, _, err = main(*arguments)
    assert code == 1 and "MAX/features.onnx (" in err


def test_files_of_other_weights_do_not_stay(tiny, tmp_path):
    child = take(tiny.space, tiny.params, tiny.statistics, tiny.space.smallest)

    def write(step, *names):
        about = {"name": "MIN", "architecture": child.arch.to_dict(), "macs": 1, "params": 1, "step": step}
        export.write_child(child, tmp_path, about, {"class_names": []}, export.Form(formats=names))
        (tmp_path / "export.json").write_text(json.dumps(about))
        return {path.name for path in tmp_path.glob("child.*")}

    (tmp_path / "notes.txt").write_text("mine")
    assert write(7, "onnx") == {"child.onnx"}
    assert write(7, "safetensors") == {"child.onnx", "child.safetensors"}
    assert write(8, "torch") == {"child.pt", "child.py"}
    (tmp_path / "export.json").write_text("nonsense")
    assert write(8, "onnx") == {"child.onnx"}
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_run_in_bfloat16_leaves_in_float32(tmp_path, main):
    config = tiny_config()
    config.model.dtype = "bfloat16"
    config.data.holdout = 0
    workdir = save(tmp_path / "half", config)
    code, out, err = main("--workdir", workdir, "--arch", "min", "--format", "safetensors", "--images", 9)
    assert code == 0, err
    row = json.loads((workdir / "children/MIN/export.json").read_text())
    assert row["files"][0]["difference"] < 1e-5
    assert (row["split"], row["images"]) == ("val", 9)  # no images are held out


def test_a_file_that_computes_something_else_is_an_error(workdir, main, monkeypatch, tmp_path):
    def broken(child):
        found = tensors(child)
        return found | {"classifier.weight": found["classifier.weight"] * np.float32(1.01)}

    monkeypatch.setattr(formats, "tensors", broken)
    code, out, err = main("--workdir", workdir, "--arch", "min", "--format", "onnx,safetensors", "--out", tmp_path)
    assert code == 1
    last = err.strip().splitlines()[-1]
    assert last.startswith("export.py: logits differ from the supernet's by more than 0.001 of the largest logit: ")
    assert "child.onnx" in last and "child.safetensors" in last
    assert f"{'safetensors':<12}" in out  # the table stands above


def test_logits_that_are_no_numbers_are_an_error():
    with pytest.raises(ExportError, match="x/child.pt \\(nan\\)"):
        comparing.check([{"folder": "x", "files": [{"file": "child.pt", "difference": np.nan}]}])


def test_the_difference_is_relative_to_the_largest_logit():
    expected = np.array([[1.0, -4.0], [2.0, 0.0]], np.float32)
    found = np.array([[1.0, -4.0], [2.0, 2.5]], np.float32)
    assert comparing.compare(found, expected) == {"difference": 0.625, "agreement": 0.5}
    assert np.isnan(comparing.compare(np.full((2, 2), np.nan, np.float32), expected)["difference"])


SEVERAL = ["--config.distributed.num_processes=2", "--config.distributed.coordinator=localhost:1"]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--format", "onnx,tflite"], "--format: found 'tflite', expected some of onnx,stablehlo,torch,safetensors"),
        (["--arch", "nowhere.json"], "--arch: cannot read nowhere.json"),
        (["--batch", "-1"], "--batch: found -1, expected"),
        (["--images", "0"], "--images: found 0, expected"),
        (["--checkpoint", "8"], "--checkpoint: found 8, expected newest, best or one of 7, 9"),
        (SEVERAL, "config.distributed.num_processes: found 2, expected 1: an export is made by one"),
        (["--workdir", "nowhere"], "no checkpoint under .*nowhere/checkpoints: train first"),
    ],
)
def test_mistakes_end_in_one_line_and_write_nothing(workdir, main, tmp_path, arguments, message):
    code, out, err = main("--workdir", workdir, "--out", tmp_path / "out", *arguments)
    assert code == 2 and not out and len(err.strip().splitlines()) == 1
    assert re.search(message, err), err
    assert not (tmp_path / "out").exists()


def test_one_export_at_a_time(workdir, main, tmp_path):
    with locked(tmp_path / "out", "export"):
        code, out, err = main("--workdir", workdir, "--out", tmp_path / "out")
    assert code == 2 and re.fullmatch(r"export.py: .*/out: another export is at work in it \(.*\); wait .*\n", err)
    assert [path.name for path in (tmp_path / "out").iterdir()] == [".lock"]


def test_another_architecture_of_the_same_name_is_not_overwritten(workdir, main, tmp_path):
    folder = tmp_path / "MIN"
    folder.mkdir()
    text = SearchSpace.from_config(tiny_config().space).biggest.to_json()
    (folder / "architecture.json").write_text(text)
    code, _, err = main("--workdir", workdir, "--arch", "min", "--out", tmp_path)
    assert code == 2 and "MIN holds another architecture" in err
    assert [path.name for path in folder.iterdir()] == ["architecture.json"]
    assert (folder / "architecture.json").read_text() == text


def test_a_comparison_leaves_out_what_cannot_be_decoded_and_nothing_else(tmp_path):
    root = make_folder(tmp_path / "set", train=2, val=2)
    session = SimpleNamespace(dataset=open_dataset(data_options(root, on_corrupt="skip")))
    (root / "val" / "bee" / "001.png").write_bytes(b"no image")
    assert len(images.real_images(session, 6).labels) == 5
    (root / "val" / "bee" / "000.jpg").unlink()
    with pytest.raises(UnreadableImage, match="000.jpg cannot be read"):
        images.real_images(session, 6)
