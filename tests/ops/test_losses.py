"""Losses against PyTorch's."""

import jax
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from bignas_jax.ops.losses import cross_entropy, smooth

RNG = np.random.default_rng(0)
LOGITS = (5 * RNG.standard_normal((6, 9))).astype(np.float32)
LABELS = RNG.integers(0, 9, 6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_label_smoothing(smoothing):
    leaf = torch.tensor(LOGITS, requires_grad=True)
    expected = F.cross_entropy(leaf, torch.tensor(LABELS), label_smoothing=smoothing)
    expected.backward()
    found, gradient = jax.value_and_grad(cross_entropy)(LOGITS, smooth(np.eye(9)[LABELS], smoothing))
    np.testing.assert_allclose(found, expected.item(), rtol=1e-5)
    np.testing.assert_allclose(gradient, leaf.grad, atol=1e-6)


def test_soft_targets():
    targets = RNG.dirichlet(np.ones(9), 6).astype(np.float32)
    leaf = torch.tensor(LOGITS, requires_grad=True)
    expected = F.cross_entropy(leaf, torch.tensor(targets))
    expected.backward()
    found, gradient = jax.value_and_grad(cross_entropy)(LOGITS, targets)
    np.testing.assert_allclose(found, expected.item(), rtol=1e-5)
    np.testing.assert_allclose(gradient, leaf.grad, atol=1e-6)


def test_large_logits_stay_finite():
    logits = np.array([[1e4, 0, -1e4]], np.float32)
    np.testing.assert_allclose(cross_entropy(logits, np.eye(3)[[1]]), 1e4)
