"""Activations and their written-out derivatives against PyTorch's."""

import jax
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from bignas_jax.kernels.activation import DERIVATIVES, FUNCTIONS

TORCH = {"identity": lambda x: x, "swish": F.silu, "h_swish": F.hardswish, "relu": F.relu, "relu6": F.relu6}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_function_and_derivative(name):
    x = np.linspace(-8, 8, 321, dtype=np.float32) + np.float32(1e-3)  # beside the kinks
    leaf = torch.tensor(x, requires_grad=True)
    y = TORCH[name](leaf)
    y.sum().backward()
    np.testing.assert_allclose(FUNCTIONS[name](x), y.detach(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(DERIVATIVES[name](x), leaf.grad, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(jax.vmap(jax.grad(FUNCTIONS[name]))(x), leaf.grad, rtol=1e-5, atol=1e-6)
    assert FUNCTIONS[name](np.float32(0)) == 0
