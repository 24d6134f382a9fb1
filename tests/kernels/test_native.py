"""The native kernels against PyTorch and against the same passes in XLA's operations; without a compiler, skipped."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from native_kernels import needs_native
from tiny import relative_error

from bignas_jax.kernels import native
from bignas_jax.kernels.depthwise import cpu as depthwise_native
from bignas_jax.kernels.depthwise.choice import depthwise_conv, portable
from bignas_jax.kernels.norm import cpu as norm_native
from bignas_jax.kernels.norm import passes as norm_passes
from bignas_jax.kernels.norm.normalize import normalize
from bignas_jax.kernels.norm.passes import Affine
from bignas_jax.kernels.product import cpu as product_native
from bignas_jax.kernels.product.used import Used

pytestmark = needs_native

ACTIVATIONS = native.ACTIVATIONS
# Channels that end in a whole block of 16 or 8 lanes, in single ones, and in all of them.
CHANNELS = (1, 5, 8, 16, 24, 39)


def normal(*shape, seed=0):
    return np.random.default_rng((seed, *shape)).standard_normal(shape).astype(np.float32)


def torch_depthwise(x, kernel, g, stride):
    x = torch.tensor(x).permute(0, 3, 1, 2).requires_grad_()
    w = torch.tensor(kernel).permute(2, 0, 1)[:, None].requires_grad_()
    y = F.conv2d(x, w, stride=stride, padding=kernel.shape[0] // 2, groups=kernel.shape[2])
    dx, dw = torch.autograd.grad(y, (x, w), torch.tensor(g).permute(0, 3, 1, 2))
    return y.detach().permute(0, 2, 3, 1), dx.permute(0, 2, 3, 1), dw[:, 0].permute(1, 2, 0)


def our_depthwise(x, kernel, g, stride, used):
    used = jnp.asarray(used, jnp.int32)
    return (
        depthwise_native.forward(x, kernel, stride, used),
        depthwise_native.input_gradient(g, kernel, stride, x.shape, used),
        depthwise_native.kernel_gradient(x, g, kernel.shape[0], stride, used),
    )


@pytest.mark.parametrize("size, stride", list(itertools.product((1, 3, 5, 7), (1, 2))))
def test_depthwise_equals_pytorch(size, stride):
    """Sides smaller than the kernel, odd and even, wider than one tile of columns; more images than runs."""
    for (height, width, batch), channels in zip(
        [(1, 1, 1), (2, 3, 2), (4, 4, 9), (7, 19, 1), (16, 8, 17), (5, 32, 3)], CHANNELS, strict=True
    ):
        x, kernel = normal(batch, height, width, channels), normal(size, size, channels)
        g = normal(batch, -(-height // stride), -(-width // stride), channels)
        found = our_depthwise(x, kernel, g, stride, (channels, size))
        for a, b in zip(found, torch_depthwise(x, kernel, g, stride), strict=True):
            assert relative_error(a, b) < 1e-5


@pytest.mark.parametrize("stride", [1, 2])
def test_depthwise_leaves_out_what_the_architecture_does_not_use(stride):
    """No more than the used channels and the centre of the kernel: the rest leaves as zeros, whatever comes in."""
    x, kernel, g = normal(3, 9, 11, 24), normal(7, 7, 24), normal(3, -(-9 // stride), -(-11 // stride), 24)
    y, dx, d_kernel = our_depthwise(x, kernel, g, stride, (13, 3))
    expected = torch_depthwise(x[..., :13], kernel[2:5, 2:5, :13], g[..., :13], stride)
    for a, b in zip((y[..., :13], dx[..., :13], d_kernel[2:5, 2:5, :13]), expected, strict=True):
        assert relative_error(a, b) < 1e-5
    d_kernel = np.array(d_kernel)
    d_kernel[2:5, 2:5, :13] = 0
    assert not any(np.any(a) for a in (y[..., 13:], dx[..., 13:], d_kernel))


def passes_of(module, x, g, affine, gate, extra, activation, used):
    """Every pass, with and without a gate, factors of the images, and a residual."""
    used, keep = jnp.int32(used), jnp.arange(len(x)) % 2 * 1.25
    residual = jnp.where(jnp.arange(x.shape[-1]) < used, g, 0)
    vectors = affine.scale + 1, affine.bias - 1
    return {
        "moments": module.moments(x, used),
        "pooled": module.pooled(x, affine, used, activation),
        "apply": module.apply(x, affine, None, used, activation),
        "apply gated": module.apply(x, affine, gate, used, activation),
        "gate_sums": module.gate_sums(x, g, affine, used, activation),
        "reduce": module.reduce(x, g, affine, used, activation),
        "apply, the rest": module.apply(x, affine, None, used, activation, keep, residual),
        "apply, the residual": module.apply(x, affine, None, used, activation, None, residual),
        "reduce, the rest": module.reduce(x, g, affine, used, activation, keep),
        "input": module.input_gradient(x, g, affine, None, None, vectors, 3, used, activation),
        "input gated": module.input_gradient(x, g, affine, gate, extra, vectors, 3, used, activation),
        "input, the rest": module.input_gradient(x, g, affine, None, None, None, 3, used, activation, keep),
    }


def operands(shape, seed=0):
    channels = shape[-1]
    x = 4 * normal(*shape, seed=seed) + 1
    affine = Affine(*(np.abs(normal(channels, seed=k)) + 0.2 for k in range(4)))
    return x, normal(*shape, seed=7), affine, *(normal(shape[0], channels, seed=k) for k in (8, 9))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_passes_of_batch_norm_equal_those_of_xla(activation):
    shapes = [(1, 1, 1), (2, 3, 1), (3, 2, 2), (2, 9, 8), (1, 50, 47), (5, 1, 7)]
    for shape, channels in zip(shapes, CHANNELS, strict=True):
        arguments = operands((*shape, channels))
        found = passes_of(norm_native, *arguments, activation, channels)
        expected = passes_of(norm_passes, *arguments, activation, channels)
        for name, arrays in expected.items():
            for a, b in zip(jax.tree.leaves(found[name]), jax.tree.leaves(arrays), strict=True):
                assert relative_error(a, b) < 2e-5, (name, shape, channels)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_passes_leave_out_unused_channels(activation):
    x, g, affine, gate, extra = operands((2, 5, 7, 24))
    found = passes_of(norm_native, x, g, affine, gate, extra, activation, 13)
    short = Affine(*(v[:13] for v in affine[:4]))
    exact = passes_of(norm_native, x[..., :13], g[..., :13], short, gate[:, :13], extra[:, :13], activation, 13)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(exact), strict=True):
        np.testing.assert_allclose(a[..., :13], b, rtol=1e-6, atol=1e-6)
        assert not np.any(np.asarray(a)[..., 13:])


@pytest.mark.parametrize("activation", ["swish", "h_swish", "relu"])
def test_the_activations_at_their_limits(activation):
    """Far out, at the corners, and NaN, which a training run must see."""
    z = np.array([-1e4, -88, -20, -3, -1e-3, 0, 1e-3, 3, 20, 88, 1e4, np.nan], np.float32).reshape(1, 1, -1, 1)
    one, zero = np.ones(1, np.float32), np.zeros(1, np.float32)
    affine = Affine(zero, one, one, zero)
    arguments = z, np.ones_like(z), affine, np.ones((1, 1), np.float32), np.zeros((1, 1), np.float32)
    found = passes_of(norm_native, *arguments, activation, 1)
    expected = passes_of(norm_passes, *arguments, activation, 1)
    for name in ("apply", "input"):
        np.testing.assert_allclose(found[name], expected[name], rtol=2e-6, atol=1e-7)
    assert np.isnan(found["apply"][0, 0, -1, 0]) and np.isnan(found["moments"][0])


def test_the_same_bits_every_time():
    """Whatever the threads do: sums run in a fixed order."""
    x, g, affine, gate, extra = operands((16, 20, 20, 40))
    kernel = normal(5, 5, 40)

    @jax.jit
    def run(x):
        passes = passes_of(norm_native, x, g, affine, gate, extra, "swish", 40)
        flat, flat_g = x.reshape(-1, 40), g.reshape(-1, 40)
        products = (
            product_native.multiply(flat, kernel[0, 0][:, None] * kernel[0, 1], Used(), moments=True),
            product_native.kernel_gradient(flat, flat_g, Used()),
            product_native.convolve(x[..., :3], kernel[..., :3, None] + flat[0], Used(), 1),
            product_native.convolution_kernel_gradient(x[..., :3], g, 3, Used(), 1),
        )
        return passes, our_depthwise(x, kernel, g, 1, (40, 5)), products

    first = jax.tree.leaves(run(x))
    for _ in range(5):
        assert all(np.array_equal(a, b) for a, b in zip(first, jax.tree.leaves(run(x)), strict=True))


def test_programs_that_leave_this_machine_have_no_native_call():
    x = jnp.ones((1, 4, 4, 8))

    def run(x):
        return normalize(depthwise_conv(x, jnp.ones((3, 3, 8)), 1), jnp.ones(8), jnp.zeros(8))[0]

    assert "bignas_" in jax.jit(run).lower(x).as_text()
    with portable():
        assert "bignas_" not in jax.jit(run).lower(x).as_text()
