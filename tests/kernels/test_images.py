"""The native convolution of images against PyTorch: values, moments, gradients, and sampled channels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from native_kernels import needs_native
from tiny import relative_error

from bignas_jax.kernels import native
from bignas_jax.kernels.product.images import convolution, supports
from bignas_jax.kernels.product.used import Used
from bignas_jax.ops import DenseConv, Size

pytestmark = needs_native


def operands(batch, height, width, channels, side, outputs, stride):
    rng = np.random.default_rng(0)
    shapes = (batch, height, width, channels), (side, side, channels, outputs)
    x, kernel = (jnp.asarray(rng.normal(0.3, 1, shape), jnp.float32) for shape in shapes)
    g = rng.normal(0, 1, (batch, -(-height // stride), -(-width // stride), outputs))
    return x, kernel, jnp.asarray(g, jnp.float32)


def in_pytorch(x, kernel, g, stride):
    """The result and the gradients of x and of the kernel, in float64."""
    x, kernel, g = (torch.tensor(np.asarray(a, np.float64)) for a in (x, kernel, g))
    x.requires_grad_(), kernel.requires_grad_()
    channels_first = x.permute(0, 3, 1, 2), kernel.permute(3, 2, 0, 1).contiguous()
    y = torch.nn.functional.conv2d(*channels_first, None, stride, kernel.shape[0] // 2).permute(0, 2, 3, 1)
    y.backward(g)
    return y.detach().numpy(), x.grad.numpy(), kernel.grad.numpy()


@pytest.mark.parametrize("shape", [
    (2, 9, 9, 3, 3, 16, 1), (3, 9, 8, 3, 3, 24, 2), (2, 7, 11, 1, 5, 5, 2), (5, 8, 8, 1, 7, 33, 1),
    (2, 4, 4, 4, 1, 8, 2), (9, 16, 16, 3, 3, 40, 1), (1, 1, 1, 3, 3, 4, 1), (2, 2, 1, 2, 5, 3, 1),
    (2, 5, 6, 3, 3, 17, 3),
])  # fmt: skip
def test_values_moments_and_gradients(shape):
    stride = shape[-1]
    x, kernel, g = operands(*shape)
    (y, (mean, variance)), pull = jax.vjp(lambda x, kernel: convolution(x, kernel, Used(), stride), x, kernel)
    dx, d_kernel = pull((g, (jnp.zeros_like(mean), jnp.zeros_like(variance))))
    for found, exact in zip((y, dx, d_kernel), in_pytorch(x, kernel, g, stride), strict=True):
        assert found.dtype == jnp.float32 and relative_error(found, exact) < 2e-6
    written = np.asarray(y, np.float64).reshape(-1, y.shape[-1])
    assert relative_error(mean, written.mean(0)) < 1e-5 and relative_error(variance, written.var(0)) < 1e-5


@pytest.mark.parametrize("used", [1, 8, 13, 24])
def test_no_more_than_the_sampled_channels_are_read(used):
    x, kernel, g = operands(3, 10, 10, 3, 3, 24, 2)
    kernel, g = kernel.at[..., used:].set(jnp.nan), g.at[..., used:].set(jnp.nan)
    told = Used(None, jnp.int32(used))
    (y, moments), pull = jax.vjp(lambda x, kernel: convolution(x, kernel, told, 2), x, kernel)
    _, d_kernel = pull((g, jax.tree.map(jnp.zeros_like, moments)))
    exact, _, slope = in_pytorch(x, kernel[..., :used], g[..., :used], 2)
    assert relative_error(y[..., :used], exact) < 2e-6
    assert relative_error(d_kernel[..., :used], slope) < 2e-6 and not np.asarray(d_kernel)[..., used:].any()
    assert relative_error(moments[0][:used], exact.mean((0, 1, 2))) < 1e-5
    assert not np.asarray(moments)[:, used:].any()


def test_the_gradient_of_the_input_leaves_out_channels_that_are_not_sampled():
    x, kernel, g = operands(3, 10, 10, 3, 3, 24, 1)
    told = Used(None, jnp.int32(9))
    _, pull = jax.vjp(lambda x: convolution(x, kernel, told, 1)[0], x)
    assert relative_error(pull(g.at[..., 9:].set(jnp.nan))[0], in_pytorch(x, kernel[..., :9], g[..., :9], 1)[1]) < 2e-6


@pytest.mark.parametrize("batch, used", [(0, 16), (2, 0)])
def test_of_nothing_the_moments_and_the_gradient_are_zeros(batch, used):
    x, kernel, g = operands(batch, 8, 8, 3, 3, 16, 1)
    (y, moments), pull = jax.vjp(lambda kernel: convolution(x, kernel, Used(None, jnp.int32(used)), 1), kernel)
    assert y.shape == g.shape and not np.any(moments)
    assert not np.any(pull((g, jax.tree.map(jnp.zeros_like, moments)))[0])


def test_the_stem_takes_it_where_a_patch_is_small():
    stem, deep = (DenseConv(channels, 16, 3, 1, rngs=nnx.Rngs(0)) for channels in (3, 8))
    images = jnp.ones((2, 6, 6, 3))
    assert stem.before_norm(images, Size(16))[1] is not None
    assert deep.before_norm(jnp.ones((2, 6, 6, 8)), Size(16))[1] is None
    assert not supports(stem.kernel[...], jnp.bfloat16)
    with native.off():
        y, moments = stem.before_norm(images, Size(16))
    assert moments is None and relative_error(stem.before_norm(images, Size(16))[0], y) < 1e-6
