"""The shortcut at even and odd sides, with equal and unequal widths: against PyTorch, masked and sliced."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from flax import nnx
from tiny import relative_error

from bignas_jax.kernels import native
from bignas_jax.kernels.target import anywhere
from bignas_jax.ops import Shortcut, Size
from bignas_jax.ops.shortcut import average_pool


def draw(*shape):
    return np.random.default_rng(shape).standard_normal(shape).astype(np.float32)


def torch_pool(x):
    pads = x.shape[1] % 2, x.shape[2] % 2
    return F.avg_pool2d(x.permute(0, 3, 1, 2), 2, 2, pads, count_include_pad=True).permute(0, 2, 3, 1)


@pytest.mark.parametrize("height, width", [(6, 6), (7, 7), (7, 6), (1, 1)])
def test_average_pool(height, width):
    x = draw(2, height, width, 3)
    leaf = torch.tensor(x, requires_grad=True)
    expected = torch_pool(leaf)
    weight = draw(*expected.shape)
    (expected * torch.tensor(weight)).sum().backward()
    found, pull = jax.vjp(average_pool, x)
    np.testing.assert_allclose(found, expected.detach(), atol=1e-6)
    np.testing.assert_allclose(pull(jnp.asarray(weight))[0], leaf.grad, atol=1e-6)


def ours(module, x, in_size, out, weight):
    graphdef, params = nnx.split(module)

    def total(x, params):
        y = nnx.merge(graphdef, params)(x, in_size, out)
        return jnp.sum(y * weight), y

    (dx, grads), y = jax.jit(jax.grad(total, (0, 1), has_aux=True))(x, params)
    return y, dx, grads["conv"]["kernel"][...]


@pytest.mark.parametrize("stride, side", [(1, 5), (2, 6), (2, 7)])
@pytest.mark.parametrize("widths", [(4, 4), (4, 6), (6, 4), (8, 8)])
def test_sliced_equals_pytorch_and_masked_equals_sliced(stride, side, widths):
    module = Shortcut(8, 8, stride, rngs=nnx.Rngs(0))
    inside, outside = widths
    x, rows = draw(2, side, side, 8), -(-side // stride)
    x[..., inside:] = 0
    weight = draw(2, rows, rows, 8)
    y, dx, d_kernel = ours(module, x[..., :inside], Size(inside), Size(outside), weight[..., :outside])

    leaf = torch.tensor(x[..., :inside], requires_grad=True)
    kernel = torch.tensor(np.asarray(module.conv.kernel[...]), requires_grad=True)
    expected = torch_pool(leaf) if stride == 2 else leaf
    if inside != outside:
        expected = expected @ kernel[:inside, :outside]
    (expected * torch.tensor(weight[..., :outside])).sum().backward()
    assert relative_error(y, expected.detach()) < 1e-5
    assert relative_error(dx, leaf.grad) < 1e-5
    expected_kernel = np.zeros((8, 8)) if kernel.grad is None else kernel.grad.numpy()
    assert relative_error(d_kernel, expected_kernel) < 1e-5

    masked = ours(module, x, Size(8, jnp.int32(inside)), Size(8, jnp.int32(outside)), weight)
    assert relative_error(masked[0][..., :outside], y) < 1e-6
    assert not np.asarray(masked[0])[..., outside:].any()
    assert relative_error(masked[1][..., :inside], dx) < 1e-6
    np.testing.assert_allclose(masked[2], d_kernel, rtol=1e-5, atol=1e-5)
    assert not np.asarray(masked[2])[np.asarray(d_kernel) == 0].any()


@pytest.mark.parametrize("device", [contextlib.nullcontext, native.off, anywhere])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("in_bucket, out_bucket", [(6, 8), (8, 6)])
def test_equal_widths_in_unequal_buckets_pass_every_value(in_bucket, out_bucket, dtype, device):
    module = Shortcut(8, 8, 1, rngs=nnx.Rngs(0))
    x = draw(2, 3, 3, in_bucket)
    x[..., 4:] = 0
    x, weight = jnp.asarray(x, dtype), jnp.asarray(draw(2, 3, 3, out_bucket), dtype)
    with device():
        y, dx, d_kernel = ours(module, x, Size(in_bucket, jnp.int32(4)), Size(out_bucket, jnp.int32(4)), weight)
    assert y.dtype == dtype and y.shape[-1] == out_bucket
    np.testing.assert_array_equal(y[..., :4], x[..., :4])
    assert not np.asarray(y)[..., 4:].any()
    np.testing.assert_array_equal(dx[..., :4], weight[..., :4])
    assert not np.asarray(d_kernel).any()
