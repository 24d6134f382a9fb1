"""A vector divided among arrays; a CPU interprets the kernel."""

import jax.numpy as jnp
import numpy as np
import pytest

from bignas_jax.kernels import split as module
from bignas_jax.kernels.split import split


def test_parts_are_those_of_numpy(monkeypatch):
    monkeypatch.setattr(module, "_ENTRIES", 16)  # several programs an array
    monkeypatch.setattr(module, "_OUTPUTS", 3)  # several kernels
    shapes = [(5,), (3, 7), (), (1, 1, 33), (16,), (2, 8), (1,)]
    vector = np.arange(sum(int(np.prod(s)) for s in shapes), dtype=np.float32)
    start = 0
    for part, shape in zip(split(jnp.asarray(vector), shapes), shapes, strict=True):
        size = int(np.prod(shape))
        np.testing.assert_array_equal(part, vector[start : start + size].reshape(shape))
        start += size


def test_parts_must_fill_the_vector():
    with pytest.raises(ValueError, match="found parts of 6 entries, expected the vector's 7"):
        split(jnp.zeros(7), [(2, 3)])
