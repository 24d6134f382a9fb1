"""Products told the sampled channels, interpreted, against NumPy; what they load; and that Triton takes them."""

from collections import namedtuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, use_abstract_mesh
from tiny import relative_error

from bignas_jax.kernels import product_pallas, target
from bignas_jax.kernels.product_pallas import Used, product

Call, Array = namedtuple("Call", "name operands results integers"), namedtuple("Array", "bytes")


def operands(count, inputs, outputs, dtype, used):
    """x, kernel and g; what is not sampled is NaN in x and in g, which would spread if it was read."""
    rng = np.random.default_rng(0)
    x, g = (jnp.asarray(rng.normal(0.5, 1, shape), dtype) for shape in ((count, inputs), (count, outputs)))
    kernel = jnp.asarray(rng.normal(0, 1, (inputs, outputs)), jnp.float32)
    return x.at[:, used[0] :].set(jnp.nan), kernel, g.at[:, used[1] :].set(jnp.nan)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("count, inputs, outputs, used", [
    (300, 24, 144, (16, 100)), (130, 200, 40, (130, 24)), (64, 16, 16, None), (257, 150, 200, (150, 70)),
    (3, 5, 7, (2, 1)),
])  # fmt: skip
def test_values_moments_and_gradients(count, inputs, outputs, used, dtype):
    i, o = used or (inputs, outputs)
    x, kernel, g = operands(count, inputs, outputs, dtype, (i, o))
    told = Used() if used is None else Used(*map(jnp.int32, used))
    (y, (mean, variance)), pull = jax.vjp(lambda x, kernel: product(x, kernel, told, False, True), x, kernel)
    dx, d_kernel = pull((g, (jnp.zeros(outputs), jnp.zeros(outputs))))
    assert (y.dtype, dx.dtype, d_kernel.dtype, mean.dtype) == (dtype, dtype, jnp.float32, jnp.float32)
    exact, weights, slope = (np.asarray(a, np.float64) for a in (x[:, :i], kernel[:i, :o].astype(dtype), g[:, :o]))
    rounded = 1e-6 if dtype == jnp.float32 else 2**-8
    assert relative_error(y[:, :o].astype(np.float32), exact @ weights) < rounded
    assert relative_error(dx[:, :i].astype(np.float32), slope @ weights.T) < rounded
    assert relative_error(d_kernel[:i, :o], exact.T @ slope) < 2e-6
    written = np.asarray(y[:, :o], np.float64)
    assert relative_error(mean[:o], written.mean(0)) < 1e-5 and relative_error(variance[:o], written.var(0)) < 1e-5
    # The gradient of a kernel is summed over the members, so that all of it is written.
    beyond = np.asarray(d_kernel).copy()
    beyond[:i, :o] = 0
    assert not beyond.any() and not np.asarray(mean)[o:].any()


def test_the_rest_is_zeros_where_others_read_it():
    x, kernel, _ = operands(40, 24, 40, jnp.float32, (8, 17))
    y, moments = product(x, kernel, Used(jnp.int32(8), jnp.int32(17)), True)
    assert moments is None and relative_error(y[:, :17], x[:, :8] @ kernel[:8, :17]) < 1e-6
    assert not np.asarray(y)[:, 17:].any()
    dx = jax.vjp(lambda x: product(x, kernel, Used(jnp.int32(8), jnp.int32(17)), True)[0], x)[1](jnp.ones((40, 40)))[0]
    assert relative_error(dx[:, :8], np.ones((40, 17)) @ kernel[:8, :17].T) < 1e-6 and not np.asarray(dx)[:, 8:].any()
    loose, _ = product(x, kernel, Used(jnp.int32(8), jnp.int32(17)))
    assert np.isnan(loose[:, 17:]).all()  # nothing was written


def test_kernels_load_and_store_what_they_state(monkeypatch):
    """Counts the entries of x, y and g that the kernels' masks let through, with one tile across the channels."""
    count, inputs, outputs, used = 300, 24, 40, (16, 24)
    x, kernel, g = operands(count, inputs, outputs, jnp.bfloat16, used)
    calls, touched = [], []

    def counted(function):
        def touch(ref, *rest, mask, **further):
            aval = ref.ref.aval
            if aval.size in (x.size, g.size) and aval.dtype == jnp.bfloat16:
                jax.debug.callback(lambda n: touched.append(int(n) * 2), jnp.sum(mask))
            return function(ref, *rest, mask=mask, **further)

        return touch

    run = product_pallas._run

    def recorded(name, body, grid, results, *arrays):
        shapes = [Array(int(np.prod(shape)) * jnp.dtype(dtype).itemsize) for shape, dtype in results]
        calls.append(Call(name, [Array(a.nbytes) for a in arrays], shapes, [tuple(np.asarray(arrays[-1]).tolist())]))
        return run(name, body, grid, results, *arrays)

    monkeypatch.setattr(product_pallas.plgpu, "load", counted(product_pallas.plgpu.load))
    monkeypatch.setattr(product_pallas.plgpu, "store", counted(product_pallas.plgpu.store))
    monkeypatch.setattr(product_pallas, "_run", recorded)
    told, small = Used(*map(jnp.int32, used)), 4 * used[0] * used[1]
    for function, others in (
        (lambda: product_pallas._multiply(x, kernel, told), small),
        (lambda: product_pallas._multiply(x, kernel, told, whole=True), small),
        (lambda: product_pallas._kernel_gradient(x, g, told), None),
    ):
        calls.clear(), touched.clear()
        jax.block_until_ready(function())
        jax.effects_barrier()
        (call,) = calls
        others = sum(a.bytes for a in call.results) if others is None else others
        assert sum(touched) + others == product_pallas.MOVED[call.name](call), call.name


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_triton_takes_the_kernels(dtype):
    """Lowered for CUDA without a GPU."""
    gpu = AbstractMesh((), (), abstract_device=AbstractDevice("NVIDIA H100", None, "gpu"))  # JAX 0.12 asks for one
    shapes = [((4096, 144), dtype), ((144, 40), jnp.float32), ((4096, 40), dtype), ((2,), jnp.int32)]

    def step(x, kernel, g, used):
        (y, moments), pull = jax.vjp(lambda x, kernel: product(x, kernel, Used(*used), False, True), x, kernel)
        return y, moments, pull((g, jax.tree.map(jnp.zeros_like, moments)))

    class Card:
        platform, device_kind = "cuda", "NVIDIA H100 80GB HBM3"

    with use_abstract_mesh(gpu), target.tracing_for(Card()):
        traced = jax.jit(step).trace(*(jax.ShapeDtypeStruct(*shape) for shape in shapes))
        text = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("custom_call @") == 4 and "triton" in text and "stablehlo.while" not in text


def test_what_the_kernels_take():
    assert product_pallas.supports((8, 20, 20, 24), 144, jnp.bfloat16)
    assert not product_pallas.supports((8, 20, 20, 24), 144, jnp.float64)
    assert not product_pallas.supports((2**17, 20, 20, 24), 144, jnp.float32)  # the result is too large
