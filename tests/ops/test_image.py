"""Resize and normalisation on the device against PyTorch's."""

import jax
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny import relative_error

from bignas_jax.ops import bicubic_resize, prepare


def torch_resize(x, size):
    x = torch.tensor(np.asarray(x, np.float64)).permute(0, 3, 1, 2)  # its float32 coordinates are 2e-5 off
    return F.interpolate(x, (size, size), mode="bicubic", align_corners=False).permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize("height, width, size", [
    (24, 24, 16), (24, 24, 20), (24, 24, 31), (13, 20, 17), (224, 224, 192), (5, 5, 5), (7, 9, 9), (3, 2, 8)])
def test_bicubic_resize(height, width, size):
    x = np.random.default_rng(0).standard_normal((2, height, width, 3)).astype(np.float32)
    found = jax.jit(bicubic_resize, static_argnums=1)(x, size)
    assert found.shape == (2, size, size, 3)
    assert relative_error(found, torch_resize(x, size)) < 1e-5


def test_prepare_normalises_then_resizes():
    images = np.random.default_rng(0).integers(0, 256, (2, 24, 24, 3), np.uint8)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    expected = torch_resize((images / 255 - mean) / std, 17)
    found = jax.jit(prepare, static_argnums=(1, 2, 3))(images, 17, mean, std)
    assert found.dtype == np.float32
    assert relative_error(found, expected) < 1e-5
