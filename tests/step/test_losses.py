"""The loss of a member against PyTorch's."""

import jax.numpy as jnp
import numpy as np
import torch
import torch.nn.functional as F

from bignas_jax.step.losses import SoftCrossEntropy
from bignas_jax.step.recipe import Recipe


def test_soft_cross_entropy_is_pytorchs():
    logits, teacher = np.random.default_rng(0).normal(size=(2, 5, 7)).astype(np.float32)
    labels = np.array([0, 3, 6, 1, 1], np.int32)
    loss = SoftCrossEntropy(Recipe(label_smoothing=0.1))
    on_labels, further = loss(jnp.asarray(logits), jnp.asarray(labels), None)
    expected = F.cross_entropy(torch.tensor(logits), torch.tensor(labels).long(), label_smoothing=0.1)
    np.testing.assert_allclose(on_labels, expected, rtol=1e-6)
    on_teacher, _ = loss(jnp.asarray(logits), jnp.asarray(labels), jnp.asarray(teacher))
    expected = F.cross_entropy(torch.tensor(logits), torch.tensor(teacher).softmax(-1))
    np.testing.assert_allclose(on_teacher, expected, rtol=1e-6)
    assert further == {}
