"""The loader's benchmark runs, measures both sides and compares them on the same kind of file."""

import json
import runpy
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bignas_jax.programs import memory

pytestmark = pytest.mark.filterwarnings("ignore:The image decoding and encoding:DeprecationWarning")

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "loader.py"


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.setattr(memory, "keep_freed_memory", lambda: None)  # it would hold for all tests of this process
    return runpy.run_path(str(BENCHMARK))


def test_quick_run_reports_the_ratios_it_measured(benchmark, tmp_path):
    benchmark["main"](["--quick", "--workers", "0", "--json", str(tmp_path / "out.json")])
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["benchmark"] == "loader" and found["quick"] is True
    by_name = {result["name"]: result for result in found["results"]}
    for title, target in (("crop and flip", 2.0), ("crop, flip and AutoAugment", 1.5)):
        ratio = by_name[f"{title}, ours over torchvision"]
        assert (ratio["target"], ratio["better"], ratio["unit"]) == (target, "higher", "x")
        rates = [by_name[f"{title}, {name}"]["value"] for name in ("ours", "torchvision")]
        assert ratio["value"] == pytest.approx(rates[0] / rates[1])
        assert ratio["value"] > 0.5  # seconds a batch upside down, or a side that reads nothing, would not be


def test_files_are_differing_photographs_of_the_stated_size(benchmark, tmp_path):
    benchmark["write_photographs"](tmp_path, 12)
    files = sorted((tmp_path / "train").glob("*/*.jpg"))
    assert len(files) == 12 and len({file.read_bytes() for file in files}) == 12
    for file in files:
        with Image.open(file) as image:
            assert 450 <= image.width <= 550 and 360 <= image.height <= 427
            assert np.asarray(image).std() > 30  # a picture, not a flat area


def test_both_sides_give_batches_of_the_same_shape(benchmark, tmp_path):
    benchmark["write_photographs"](tmp_path, 8)
    for policy in ("none", "imagenet"):
        mine = next(benchmark["ours"](tmp_path, policy, 4))
        image, label = next(benchmark["peers"](tmp_path, policy, 4))
        assert mine["image"].shape == (4, 224, 224, 3) and mine["image"].dtype == np.uint8
        assert tuple(image.shape) == (4, 3, 224, 224) and image.dtype.is_floating_point
        assert mine["label"].shape == tuple(label.shape) == (4,)
