"""The adaptive alpha-divergence against values of AlphaNet's own code, and at the ends of float32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bignas_jax.ops.alpha_divergence import alpha_divergence

# What AlphaNet's loss_ops.py (facebookresearch/AlphaNet at 1df57bf) gives on `fixture()`: the divergences at both ends,
# and the gradient of the mean of its loss by the student's logits.
LEFT = [1.379742, 1.748925, 1.145525, 0.047517]
RIGHT = [1.368806, 2.599966, 0.901492, 0.056711]
GRADIENT = [
    [0.055163, -0.095323, 0.154421, -0.071986, -0.042274],
    [-0.062320, 0.134161, 0.062353, -0.025527, -0.108667],
    [0.058169, 0.180243, -0.003683, -0.203984, -0.030746],
    [-0.013312, 0.004929, 0.004662, 0.006563, -0.002842],
]


def fixture():
    rng = np.random.default_rng(0)
    return (rng.standard_normal((4, 5)) * 2).astype(np.float32), (rng.standard_normal((4, 5)) * 2).astype(np.float32)


def test_values_and_gradients_are_alphanets():
    student, teacher = fixture()
    for row, expected in enumerate(np.maximum(LEFT, RIGHT)):
        found = alpha_divergence(student[row : row + 1], teacher[row : row + 1])
        np.testing.assert_allclose(found, expected, atol=2e-6)
    value, (gradient, to_teacher) = jax.value_and_grad(alpha_divergence, (0, 1))(student, teacher)
    np.testing.assert_allclose(value, np.mean(np.maximum(LEFT, RIGHT)), atol=2e-6)
    np.testing.assert_allclose(gradient, GRADIENT, atol=1.5e-6)
    assert not np.any(to_teacher)


def test_equal_predictions_have_no_divergence_and_no_gradient():
    _, teacher = fixture()
    value, gradient = jax.value_and_grad(alpha_divergence)(teacher, teacher + 3)
    np.testing.assert_allclose(value, 0, atol=1e-6)
    np.testing.assert_allclose(gradient, 0, atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(st.floats(0, 1e4), st.integers(0, 2**16), st.booleans(), st.sampled_from(["float32", "bfloat16"]))
def test_it_is_finite_for_any_gap(gap, seed, same_side, dtype):
    rng = np.random.default_rng(seed)
    student, teacher = rng.standard_normal((2, 3, 6))
    student[:, 0] += gap
    teacher[:, 0 if same_side else 5] += gap
    value, gradient = jax.value_and_grad(alpha_divergence)(*(jnp.asarray(x, dtype) for x in (student, teacher)))
    assert np.isfinite(value) and value > -1e-3 and np.isfinite(np.asarray(gradient, np.float32)).all()
    assert np.abs(np.asarray(gradient, np.float32)).max() <= 5  # the clip bounds it
    assert gradient.dtype == dtype


@pytest.mark.parametrize("far", [1e4, 1e20, 3e38])
def test_opposite_certainties_learn_to_agree(far):
    student, teacher = np.array([[far, -far]], np.float32), np.array([[-far, far]], np.float32)
    value, gradient = jax.value_and_grad(alpha_divergence)(student, teacher)
    assert np.isfinite(value) and value >= 1e4
    np.testing.assert_allclose(gradient, [[1, -1]])
