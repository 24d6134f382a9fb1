"""1x1 convolution, classifier and stem: sliced against PyTorch, masked against sliced."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from flax import nnx
from tiny import relative_error

from bignas_jax.kernels import native
from bignas_jax.ops import DenseConv, Linear, PointwiseConv, Size


def draw(*shape, seed=0):
    return np.random.default_rng((seed, *shape)).standard_normal(shape).astype(np.float32)


def torch_gradients(function, weight, *leaves):
    leaves = [torch.tensor(np.asarray(a), requires_grad=True) for a in leaves]
    y = function(*leaves)
    (y * torch.tensor(weight)).sum().backward()
    return [y.detach().numpy(), *(leaf.grad.numpy() for leaf in leaves)]


def ours(module, call, weight, x):
    """Output and gradients by x and by the module's parameters."""
    graphdef, params = nnx.split(module)

    def total(x, params):
        y = call(nnx.merge(graphdef, params), x)
        return jnp.sum(y * weight), y

    (dx, grads), y = jax.jit(jax.grad(total, (0, 1), has_aux=True))(x, params)
    return y, dx, nnx.to_pure_dict(grads)


def test_pointwise_equals_pytorch_on_a_slice():
    conv = PointwiseConv(6, 8, rngs=nnx.Rngs(0))
    x, weight = draw(2, 3, 5, 4), draw(2, 3, 5, 7)
    y, dx, grads = ours(conv, lambda m, x: m(x, Size(7)), weight, x)

    def reference(x, kernel):
        kernel = kernel[:4, :7].T[:, :, None, None]
        return F.conv2d(x.permute(0, 3, 1, 2), kernel).permute(0, 2, 3, 1)

    expected = torch_gradients(reference, weight, x, conv.kernel[...])
    for found, value in zip((y, dx, grads["kernel"]), expected, strict=True):
        assert relative_error(found, value) < 1e-5
    assert not np.asarray(grads["kernel"])[4:].any() and not np.asarray(grads["kernel"])[:, 7:].any()


def test_masked_pointwise_equals_sliced():
    """Zeros come in from unused channels; unused outputs are switched off here."""
    conv = PointwiseConv(6, 8, rngs=nnx.Rngs(0), mask_out=True)
    x, weight = draw(2, 3, 5, 6), draw(2, 3, 5, 8)
    x[..., 4:] = 0
    y, dx, grads = ours(conv, lambda m, x: m(x, Size(8, jnp.int32(5))), weight, x)
    exact = ours(conv, lambda m, x: m(x, Size(5)), weight[..., :5], x[..., :4])
    assert relative_error(y[..., :5], exact[0]) < 1e-6 and not np.asarray(y)[..., 5:].any()
    assert relative_error(dx[..., :4], exact[1]) < 1e-6
    assert relative_error(grads["kernel"], exact[2]["kernel"]) < 1e-6
    assert not np.asarray(grads["kernel"])[4:].any() and not np.asarray(grads["kernel"])[:, 5:].any()


def test_pointwise_computes_in_the_dtype_of_its_input():
    conv = PointwiseConv(6, 8, rngs=nnx.Rngs(0))
    y = conv(jnp.asarray(draw(2, 3, 5, 6), jnp.bfloat16), Size(8))
    assert y.dtype == jnp.bfloat16 and conv.kernel[...].dtype == jnp.float32


@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16])
def test_linear_equals_pytorch(dtype):
    linear = Linear(6, 5, rngs=nnx.Rngs(0))
    linear.bias[...] = jnp.asarray(draw(5))
    x, weight = jnp.asarray(draw(3, 4), dtype), draw(3, 5)
    y, dx, grads = ours(linear, lambda m, x: m(x), weight, x)
    assert y.dtype == np.float32
    expected = torch_gradients(lambda x, kernel, bias: x @ kernel[:4] + bias, weight, x.astype(np.float32),
                               linear.kernel[...], linear.bias[...])
    tolerance = 1e-5 if dtype == np.float32 else 2**-8
    found = y, dx.astype(np.float32), grads["kernel"], grads["bias"]
    for ours_, value, bound in zip(found, expected, (1e-5, tolerance, 1e-5, 1e-5), strict=True):
        assert relative_error(ours_, value) < bound
    assert not np.asarray(grads["kernel"])[4:].any()


@pytest.mark.parametrize("stride, side", [(1, 6), (2, 6), (2, 7)])
def test_stem_equals_pytorch_on_a_slice(stride, side):
    stem = DenseConv(3, 8, 3, stride, rngs=nnx.Rngs(0))
    out = -(-side // stride)
    x, weight = draw(2, side, side, 3), draw(2, out, out, 5)
    y, dx, grads = ours(stem, lambda m, x: m(x, Size(5)), weight, x)

    def reference(x, kernel):
        kernel = kernel[..., :5].permute(3, 2, 0, 1)
        return F.conv2d(x.permute(0, 3, 1, 2), kernel, None, stride, 1).permute(0, 2, 3, 1)

    expected = torch_gradients(reference, weight, x, stem.kernel[...])
    for found, value in zip((y, dx, grads["kernel"]), expected, strict=True):
        assert relative_error(found, value) < 1e-5


@pytest.fixture
def portable():
    with native.off():
        yield


@pytest.mark.parametrize("dtype, tolerance", [("float32", 1e-5), ("bfloat16", 2e-2)])
@pytest.mark.parametrize("side", ["into", "out"])
def test_a_corner_of_the_product_is_enough(side, dtype, tolerance, portable):
    """Channels of either side stop at an end: the sampled part of output and gradients is that of the whole product.

    Kernels that are told the sampled channels need no corner, so they are off.
    """
    conv, ends = PointwiseConv(12, 12, rngs=nnx.Rngs(0)), (4, 8, 12)
    x, weight = draw(2, 3, 5, 12), draw(2, 3, 5, 12)

    @jax.jit
    def stopped(x, weight, sampled):
        size = Size(12, sampled, ends)
        arguments = (Size(12), size) if side == "into" else (size,)
        return ours(conv, lambda m, x: m(x, *arguments), weight, x)

    for sampled, end in ((1, 4), (4, 4), (5, 8), (8, 8), (9, 12), (12, 12)):
        # Beyond the sampled channels zeros come in, and no gradient comes back.
        unused = x if side == "into" else weight
        unused[...] = draw(*x.shape)
        unused[..., sampled:] = 0
        operands = (jnp.asarray(a, dtype) for a in (x, weight))
        y, dx, grads = stopped(*operands, jnp.int32(sampled))
        expected = ours(conv, lambda m, x: m(x, Size(12)), weight, x)
        kept = slice(sampled) if side == "into" else slice(None), slice(sampled) if side == "out" else slice(None)
        for found, value, used in zip((dx, y), (expected[1], expected[0]), kept, strict=True):
            assert relative_error(found[..., used], value[..., used]) < tolerance
        assert relative_error(grads["kernel"], expected[2]["kernel"]) < tolerance
        skipped = dx if side == "into" else y
        assert not np.asarray(skipped)[..., end:].any() and np.asarray(skipped)[..., :end].all()
