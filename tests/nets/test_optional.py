"""A block that is run or skipped: values and gradients as of a conditional, and what is skipped writes nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from native_kernels import needs_native
from tiny import relative_error

from bignas_jax.nets.optional import run_or_skip

pytestmark = needs_native


def total(conditional, active, x, params, factor):
    """A loss of the output and of a second one; `factor` gets no gradient."""

    def run(x, params, factor):
        y = jnp.tanh(x @ params["a"]) * factor
        return x + jnp.sin(y @ params["b"]), {"sum": jnp.sum(y)}

    def skip(x):
        return x, {"sum": jnp.float32(0.0)}

    y, found = conditional(run, skip, active, x, params, factor)
    return jnp.sum(jnp.square(y)) + 3.0 * found["sum"]


def plain(run, skip, active, x, params, factor):
    return jax.lax.cond(active, run, lambda x, params, factor: skip(x), x, params, factor)


def operands():
    rng = np.random.default_rng(0)
    x, a, b = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((6, 5), (5, 8), (8, 5)))
    return x, {"a": a, "b": b, "unused": jnp.ones(3)}, jnp.int32(2)


@pytest.mark.parametrize("active", [True, False])
def test_values_and_gradients_are_those_of_a_conditional(active):
    x, params, factor = operands()
    found, expected = (
        jax.jit(jax.value_and_grad(lambda *arguments, by=by: total(by, *arguments), (1, 2)))(active, x, params, factor)
        for by in (run_or_skip, plain)
    )
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert relative_error(a, b) < 1e-6
    assert np.asarray(found[1][1]["a"]).any() == active and not np.asarray(found[1][1]["unused"]).any()
    value = jax.jit(lambda *arguments: total(run_or_skip, *arguments))(active, x, params, factor)  # without a gradient
    assert relative_error(value, expected[0]) < 1e-6


def test_the_gradient_may_be_taken_outside_of_a_compiled_program():
    x, params, factor = operands()
    inner = jax.jit(lambda *arguments: total(run_or_skip, *arguments))
    found = jax.jit(jax.grad(inner, (1, 2)))(True, x, params, factor)
    expected = jax.grad(lambda *arguments: total(plain, *arguments), (1, 2))(True, x, params, factor)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert relative_error(a, b) < 1e-6


def test_what_is_skipped_keeps_nothing_and_fills_nothing_with_zeros():
    """What `run` keeps are values of its own; x and the parameters are there already."""
    x, params, factor = operands()
    grad = jax.grad(lambda *arguments: total(run_or_skip, *arguments), (1, 2))
    text = jax.jit(grad).lower(True, x, params, factor).as_text()
    (call,) = (line for line in text.splitlines() if "bignas_unwritten" in line)
    kept = call.split("->")[-1]
    assert "tensor<6x8xf32>" in kept and "tensor<5x8xf32>" not in kept and "tensor<8x5xf32>" not in kept
