"""Products told the sampled channels against NumPy: native, and in Pallas, interpreted; what the latter load, and that
Triton takes them."""

from collections import namedtuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, use_abstract_mesh
from native_kernels import needs_native
from tiny import relative_error

from bignas_jax.kernels import native, target
from bignas_jax.kernels.product import cpu, pallas
from bignas_jax.kernels.product.told import kernels, product
from bignas_jax.kernels.product.used import Used

BY = [pallas, pytest.param(cpu, marks=needs_native)]
Call, Array = namedtuple("Call", "name operands results integers"), namedtuple("Array", "bytes")


def operands(count, inputs, outputs, dtype, used):
    """x, kernel and g; what is not sampled is NaN in x and in g, which would spread if it was read."""
    rng = np.random.default_rng(0)
    x, g = (jnp.asarray(rng.normal(0.5, 1, shape), dtype) for shape in ((count, inputs), (count, outputs)))
    kernel = jnp.asarray(rng.normal(0, 1, (inputs, outputs)), jnp.float32)
    return x.at[:, used[0] :].set(jnp.nan), kernel, g.at[:, used[1] :].set(jnp.nan)


@pytest.mark.parametrize("by, dtype", [
    (pallas, jnp.float32), (pallas, jnp.bfloat16), pytest.param(cpu, jnp.float32, marks=needs_native),
])  # fmt: skip
@pytest.mark.parametrize("count, inputs, outputs, used", [
    (300, 24, 144, (16, 100)), (130, 200, 40, (130, 24)), (64, 16, 16, None), (257, 150, 200, (150, 70)),
    (3, 5, 7, (2, 1)), (1, 1, 1, None), (4500, 70, 51, (65, 49)),
])  # fmt: skip
def test_values_moments_and_gradients(count, inputs, outputs, used, by, dtype):
    i, o = used or (inputs, outputs)
    x, kernel, g = operands(count, inputs, outputs, dtype, (i, o))
    told = Used() if used is None else Used(*map(jnp.int32, used))
    (y, (mean, variance)), pull = jax.vjp(lambda x, kernel: product(x, kernel, told, by, False, True), x, kernel)
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


@pytest.mark.parametrize("by", BY)
def test_the_rest_is_zeros_where_others_read_it(by):
    x, kernel, _ = operands(40, 24, 40, jnp.float32, (8, 17))
    y, moments = product(x, kernel, Used(jnp.int32(8), jnp.int32(17)), by, True)
    assert moments is None and relative_error(y[:, :17], x[:, :8] @ kernel[:8, :17]) < 1e-6
    assert not np.asarray(y)[:, 17:].any()
    _, pull = jax.vjp(lambda x: product(x, kernel, Used(jnp.int32(8), jnp.int32(17)), by, True)[0], x)
    (dx,) = pull(jnp.ones((40, 40)))
    assert relative_error(dx[:, :8], np.ones((40, 17)) @ kernel[:8, :17].T) < 1e-6 and not np.asarray(dx)[:, 8:].any()


def test_the_rest_is_left_alone_where_nothing_reads_it():
    x, kernel, _ = operands(40, 24, 40, jnp.float32, (8, 17))
    loose, _ = product(x, kernel, Used(jnp.int32(8), jnp.int32(17)), pallas)
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

    run = pallas._run

    def recorded(name, body, grid, results, *arrays):
        shapes = [Array(int(np.prod(shape)) * jnp.dtype(dtype).itemsize) for shape, dtype in results]
        calls.append(Call(name, [Array(a.nbytes) for a in arrays], shapes, [tuple(np.asarray(arrays[-1]).tolist())]))
        return run(name, body, grid, results, *arrays)

    monkeypatch.setattr(pallas.plgpu, "load", counted(pallas.plgpu.load))
    monkeypatch.setattr(pallas.plgpu, "store", counted(pallas.plgpu.store))
    monkeypatch.setattr(pallas, "_run", recorded)
    told, small = Used(*map(jnp.int32, used)), 4 * used[0] * used[1]
    for function, others in (
        (lambda: pallas.multiply(x, kernel, told), small),
        (lambda: pallas.multiply(x, kernel, told, whole=True), small),
        (lambda: pallas.kernel_gradient(x, g, told), None),
    ):
        calls.clear(), touched.clear()
        jax.block_until_ready(function())
        jax.effects_barrier()
        (call,) = calls
        others = sum(a.bytes for a in call.results) if others is None else others
        assert sum(touched) + others == pallas.MOVED[call.name](call), call.name


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_triton_takes_the_kernels(dtype):
    """Lowered for CUDA without a GPU."""
    gpu = AbstractMesh((), (), abstract_device=AbstractDevice("NVIDIA H100", None, "gpu"))  # JAX 0.12 asks for one
    shapes = [((4096, 144), dtype), ((144, 40), jnp.float32), ((4096, 40), dtype), ((2,), jnp.int32)]

    def step(x, kernel, g, used):
        (y, moments), pull = jax.vjp(lambda x, kernel: product(x, kernel, Used(*used), pallas, False, True), x, kernel)
        return y, moments, pull((g, jax.tree.map(jnp.zeros_like, moments)))

    class Card:
        platform, device_kind = "cuda", "NVIDIA H100 80GB HBM3"

    with use_abstract_mesh(gpu), target.tracing_for(Card()):
        traced = jax.jit(step).trace(*(jax.ShapeDtypeStruct(*shape) for shape in shapes))
        text = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("custom_call @") == 4 and "triton" in text and "stablehlo.while" not in text


def test_what_the_kernels_take():
    assert pallas.supports((8, 20, 20, 24), 144, jnp.bfloat16)
    assert not pallas.supports((8, 20, 20, 24), 144, jnp.float64)
    assert not pallas.supports((2**17, 20, 20, 24), 144, jnp.float32)  # the result is too large


def test_which_kernels_a_program_gets():
    shape = 8, 20, 20, 24
    own = cpu if native.load() else None
    assert kernels(shape, 144, jnp.float32) is own and kernels(shape, 144, jnp.bfloat16) is None
    with native.off():
        assert kernels(shape, 144, jnp.float32) is None
    with target.anywhere():
        assert kernels(shape, 144, jnp.float32) is None

    class Card:
        platform, device_kind = "cuda", "NVIDIA H100 80GB HBM3"

    with target.tracing_for(Card()):
        assert kernels(shape, 144, jnp.float32) is kernels(shape, 144, jnp.bfloat16) is pallas


@needs_native
def test_the_native_products_moments_keep_their_digits_with_a_large_mean():
    x = jnp.asarray(np.random.default_rng(0).normal(0, 1, (1000, 3)), jnp.float32).at[:, 0].set(1.0)
    kernel = jnp.asarray([[1000.0], [1.0], [0.5]], jnp.float32)
    (y, (mean, variance)), exact = product(x, kernel, Used(), cpu, False, True), np.asarray(x, np.float64) @ kernel
    assert relative_error(y, exact) < 1e-6
    assert relative_error(mean, exact.mean(0)) < 1e-6 and relative_error(variance, exact.var(0)) < 1e-3


@needs_native
@pytest.mark.parametrize("count, used", [(70, (0, 17)), (70, (8, 0)), (70, (0, 0)), (0, (8, 17))])
def test_the_native_products_of_nothing_are_zeros(count, used):
    x, kernel, g = operands(count, 24, 40, jnp.float32, used)
    told = Used(*map(jnp.int32, used))
    (y, moments), pull = jax.vjp(lambda x, kernel: product(x, kernel, told, cpu, True, True), x, kernel)
    found = y, moments, pull((g, jax.tree.map(jnp.zeros_like, moments)))
    assert not any(np.any(a) for a in jax.tree.leaves(found))
