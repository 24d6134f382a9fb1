"""The loss of a member against PyTorch's."""

import jax.numpy as jnp
import numpy as np
import torch
import torch.nn.functional as F

from bignas_jax.step.losses import AlphaDivergence, Labels, SoftCrossEntropy, TrustedTeacher
from bignas_jax.step.recipe import Recipe


def hot(labels):
    return jnp.asarray(np.eye(7, dtype=np.float32)[labels])


def test_soft_cross_entropy_is_pytorchs():
    logits, teacher = np.random.default_rng(0).normal(size=(2, 5, 7)).astype(np.float32)
    labels = np.array([0, 3, 6, 1, 1], np.int32)
    loss = SoftCrossEntropy(Recipe(label_smoothing=0.1))
    on_labels, further = loss(jnp.asarray(logits), hot(labels), None)
    expected = F.cross_entropy(torch.tensor(logits), torch.tensor(labels).long(), label_smoothing=0.1)
    np.testing.assert_allclose(on_labels, expected, rtol=1e-6)
    on_teacher, _ = loss(jnp.asarray(logits), hot(labels), jnp.asarray(teacher))
    expected = F.cross_entropy(torch.tensor(logits), torch.tensor(teacher).softmax(-1))
    np.testing.assert_allclose(on_teacher, expected, rtol=1e-6)
    assert further == {}


def test_on_labels_no_teacher_is_heard():
    logits, teacher = np.random.default_rng(1).normal(size=(2, 5, 7)).astype(np.float32)
    labels = np.array([0, 3, 6, 1, 1], np.int32)
    found, further = Labels(Recipe(label_smoothing=0.1))(jnp.asarray(logits), hot(labels), jnp.asarray(teacher))
    expected = F.cross_entropy(torch.tensor(logits), torch.tensor(labels).long(), label_smoothing=0.1)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert further == {}


def test_a_trusted_teacher_is_believed_as_far_as_it_is_right():
    logits, teacher = np.random.default_rng(1).normal(size=(2, 5, 7)).astype(np.float32)
    labels = np.array([0, 3, 6, 1, 1], np.int32)
    loss = TrustedTeacher(Recipe(label_smoothing=0.1))
    soft = torch.tensor(teacher).softmax(-1)
    hard = 0.9 * F.one_hot(torch.tensor(labels).long(), 7) + 0.1 / 7
    trust = soft[range(5), labels.tolist()][:, None]
    expected = F.cross_entropy(torch.tensor(logits), trust * soft + (1 - trust) * hard)
    found, further = loss(jnp.asarray(logits), hot(labels), jnp.asarray(teacher))
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert further == {}


def test_at_its_ends_trust_is_the_labels_or_the_distillation():
    logits, teacher = np.random.default_rng(2).normal(size=(2, 5, 7)).astype(np.float32)
    labels = np.array([0, 3, 6, 1, 1], np.int32)
    trusted, plain = TrustedTeacher(Recipe()), SoftCrossEntropy(Recipe())

    def both(teacher):
        return [float(loss(jnp.asarray(logits), hot(labels), teacher)[0]) for loss in (trusted, plain)]

    on_labels = both(None)
    assert on_labels[0] == on_labels[1]
    right = 40.0 * np.eye(7, dtype=np.float32)[labels]
    np.testing.assert_allclose(*both(jnp.asarray(right)), rtol=1e-6)
    wrong = 40.0 * np.eye(7, dtype=np.float32)[(labels + 1) % 7]
    np.testing.assert_allclose(both(jnp.asarray(wrong))[0], on_labels[0], rtol=1e-6)


def test_the_alpha_divergence_takes_labels_without_a_teacher():
    logits, teacher = np.random.default_rng(3).normal(size=(2, 5, 7)).astype(np.float32)
    labels = np.array([0, 3, 6, 1, 1], np.int32)
    alpha, plain = (kind(Recipe(label_smoothing=0.1)) for kind in (AlphaDivergence, SoftCrossEntropy))
    assert alpha(logits, hot(labels), None)[0] == plain(logits, hot(labels), None)[0]
    # What is logged is a divergence: zero for the teacher itself, where the cross-entropy is the entropy.
    assert abs(alpha(teacher, hot(labels), teacher)[0]) < 1e-6 < plain(teacher, hot(labels), teacher)[0]
    assert alpha(logits, hot(labels), teacher)[0] > 0


def test_mixed_labels_are_pytorchs_probabilities():
    rng = np.random.default_rng(4)
    logits = rng.normal(size=(5, 7)).astype(np.float32)
    mixed = rng.dirichlet(np.ones(7), 5).astype(np.float32)
    for kind in (SoftCrossEntropy, TrustedTeacher, AlphaDivergence):
        found, _ = kind(Recipe(label_smoothing=0.1))(jnp.asarray(logits), jnp.asarray(mixed), None)
        expected = F.cross_entropy(torch.tensor(logits), torch.tensor(mixed), label_smoothing=0.1)
        np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_a_trusted_teacher_that_predicts_the_mixture_is_believed():
    logits = np.random.default_rng(5).normal(size=(1, 7)).astype(np.float32)
    mixed = np.array([[0.3, 0.7, 0, 0, 0, 0, 0]], np.float32)
    found, _ = TrustedTeacher(Recipe(label_smoothing=0.1))(logits, mixed, np.log(mixed + 1e-12))
    np.testing.assert_allclose(found, F.cross_entropy(torch.tensor(logits), torch.tensor(mixed)), rtol=1e-5)
