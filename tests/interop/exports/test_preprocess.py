"""The preprocessing that is shipped with a child against what training's evaluation does to an image."""

import sys

import numpy as np
import pytest
from PIL import Image

from bignas_jax.config.options import Data
from bignas_jax.data.decode import read_image
from bignas_jax.data.transforms import CenterCrop
from bignas_jax.interop.exports.export import preprocessing
from bignas_jax.interop.exports.preprocess import preprocess, resize_short_side
from bignas_jax.ops import prepare
from configs import digits

SHAPES = [(60, 81), (97, 40), (36, 36), (33, 51), (16, 20), (200, 333)]


def specification(image_size, eval_resize, resolution):
    config = digits.get_config()
    config.data.update(image_size=image_size, eval_resize=eval_resize, mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))
    data = Data.of(config.data)
    return preprocessing(data, ("cat", "dog"), resolution), data


def image_of(shape):
    return np.random.default_rng(sum(shape)).integers(0, 256, (*shape, 3), np.uint8)


@pytest.mark.parametrize("sizes", [(32, 36, 32), (32, 36, 24), (31, 36, 40), (36, 36, 20)])
@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_what_evaluation_does(shape, sizes):
    spec, data = specification(*sizes)
    cropped = CenterCrop(data.image_size, data.eval_resize)(image_of(shape))
    expected = prepare(cropped[None], sizes[2], data.mean, data.std)[0].transpose(2, 0, 1)
    found = preprocess(image_of(shape), spec)
    assert found.dtype == np.float32 and found.flags.c_contiguous and found.shape == (3, sizes[2], sizes[2])
    np.testing.assert_allclose(found, expected, atol=2e-5)


def test_every_value_that_is_stated_counts():
    spec, _ = specification(32, 36, 24)
    image, expected = image_of((60, 81)), preprocess(image_of((60, 81)), spec)
    changes = {"resize": {"short_side": 40}, "crop": {"size": 30}, "mean": [0.4, 0.5, 0.5], "std": [0.2, 0.25, 0.2],
               "size": {"side": 25}}  # fmt: skip
    for name, value in changes.items():
        found = preprocess(image, spec | {name: value})
        assert found.shape != expected.shape or np.abs(found - expected).max() > 0.01, name


def photograph(shape):
    """Smooth, as photographs are; on noise the two libraries round further apart."""
    small = Image.fromarray(image_of((6, 7)))
    return small.resize(shape[::-1], Image.Resampling.BICUBIC)


@pytest.mark.parametrize("shape", SHAPES)
def test_without_torch_few_pixels_differ_and_by_little(shape, monkeypatch):
    image = np.array(photograph(shape))
    with_torch = resize_short_side(image, 36).astype(int)
    monkeypatch.setitem(sys.modules, "torch", None)
    difference = np.abs(with_torch - resize_short_side(image, 36))
    assert difference.max() <= 2 and np.mean(difference > 0) < 0.1


@pytest.mark.parametrize("mode, name", [("RGB", "a.png"), ("L", "a.png"), ("RGB", "a.jpg"), ("L", "a.jpg")])
def test_files_are_decoded_as_in_training(tmp_path, mode, name):
    path = tmp_path / name
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter: not applied
    photograph((40, 50)).convert(mode).save(path, exif=exif)
    spec, _ = specification(32, 36, 32)
    np.testing.assert_array_equal(preprocess(path, spec), preprocess(read_image(str(path)), spec))
