"""What a child takes the classes for: counted again from its logits."""


import numpy as np
import pytest

from bignas_jax.api.inspection import inspect
from bignas_jax.data import DataError
from bignas_jax.data.dataset import Dataset
from bignas_jax.data.sources import ArraySource
from bignas_jax.data.transforms import CenterCrop
from bignas_jax.errors import ConfigError, CorruptImage, EvaluationError

COUNT, CLASSES = 150, 3


@pytest.fixture
def dataset():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, (COUNT, 8, 8, 3)).astype(np.uint8)
    source = ArraySource.from_numpy("noise", images, rng.integers(0, CLASSES, COUNT))
    none = np.zeros(0, np.int64)
    return Dataset(("a", "b", "c"), source, source, none, CenterCrop(8, 8), None, "error", 0, 0)


def logits(images):
    """Of the means of the three channels."""
    assert images.dtype == np.uint8 and images.shape[1:] == (8, 8, 3) and len(images) <= 64
    return images.mean((1, 2)).astype(np.float32) / 10


def test_figures_and_images_are_those_of_the_logits(dataset, tmp_path):
    found = inspect(logits, dataset, "val", 7, "A child", "val")
    rows = np.concatenate([logits(dataset.val.load(i)[None]) for i in range(COUNT)]).astype(float)
    shares = np.exp(rows) / np.exp(rows).sum(1, keepdims=True)
    answers, labels = rows.argmax(1), dataset.val.labels
    assert found.confusion.sum() == COUNT and found.left_out == 0
    assert found.confusion[1, 2] == np.sum((labels == 1) & (answers == 2))
    assert found.top1 == pytest.approx(np.mean(answers == labels))
    wrong = [i for i in np.argsort(-shares.max(1), kind="stable") if answers[i] != labels[i]][:7]
    assert [one.name for one in found.wrong] == [f"image {i} of noise" for i in wrong]
    for one, i in zip(found.wrong, wrong, strict=True):
        assert (one.label, one.found) == (labels[i], answers[i])
        assert (one.probability, one.own) == pytest.approx((shares[i].max(), shares[i, labels[i]]))
        np.testing.assert_array_equal(one.image, dataset.val.load(i))
    path = found.write(tmp_path / "new" / "page.html")
    assert path.read_text().count("<figure>") == 7
    assert not inspect(logits, dataset, "val", 0, "", "").wrong


def test_corrupt_images_are_left_out_or_refused(dataset, monkeypatch):
    load = dataset.val.load

    def broken(i):
        if i in (3, COUNT - 1):
            raise CorruptImage(f"image {i}")
        return load(i)

    monkeypatch.setattr(dataset.val, "load", broken)
    with pytest.raises(DataError, match="corrupt image image 3; mend it, or set config.data.on_corrupt=skip"):
        inspect(logits, dataset, "val", 1, "", "")
    object.__setattr__(dataset, "on_corrupt", "skip")
    found = inspect(logits, dataset, "val", 1, "", "")
    assert found.confusion.sum() == COUNT - 2 and found.left_out == 2


def test_what_cannot_be_inspected_is_said(dataset):
    with pytest.raises(EvaluationError, match="val: found logits that are not finite"):
        inspect(lambda images: np.full((len(images), 3), np.nan, np.float32), dataset, "val", 1, "", "val")
    with pytest.raises(ConfigError, match="wrong: found -1"):
        inspect(logits, dataset, "val", -1, "", "")
    with pytest.raises(DataError, match="holdout: found no image that can be read"):
        inspect(logits, dataset, "holdout", 1, "", "holdout")
