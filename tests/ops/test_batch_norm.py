"""Batch norm with its own gradient, against PyTorch, and against itself on one device and eight."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from flax import nnx
from jax.sharding import Mesh, PartitionSpec
from native_kernels import needs_native
from tiny import relative_error

from bignas_jax.kernels import native
from bignas_jax.kernels.norm.normalize import moments, normalize
from bignas_jax.ops import BatchNorm, Size, SqueezeExcite
from bignas_jax.ops.squeeze_excite import gate

TORCH = {"identity": lambda x: x, "swish": F.silu, "h_swish": F.hardswish, "relu": F.relu}


@pytest.fixture(autouse=True, params=[pytest.param("native", marks=needs_native), "xla"])
def way(request):
    """Both ways of computing the passes on a CPU."""
    if request.param == "native":
        yield
    else:
        with native.off():
            yield


def operands(mean=0.3, shape=(4, 5, 7, 6), seed=0):
    rng = np.random.default_rng(seed)
    x = 2 * rng.standard_normal(shape) + mean
    return [a.astype(np.float32) for a in (
        x, rng.uniform(0.5, 1.5, shape[-1]), rng.normal(0, 1, shape[-1]), rng.standard_normal(shape))]


def torch_norm(x, scale, bias, weight, activation, dtype=torch.float32):
    """Output, unbiased statistics and gradients of sum(weight * output)."""
    x, scale, bias, weight = (torch.tensor(np.asarray(a), dtype=dtype) for a in (x, scale, bias, weight))
    leaves = [a.requires_grad_() for a in (x, scale, bias)]
    mean, var = torch.zeros_like(scale), torch.ones_like(scale)
    y = TORCH[activation](F.batch_norm(x.permute(0, 3, 1, 2), mean, var, scale, bias, True, 1.0, 1e-5))
    y = y.permute(0, 2, 3, 1)
    (y * weight).sum().backward()
    return [a.detach().numpy() for a in (y, mean, var)], [leaf.grad.numpy() for leaf in leaves]


def module(scale, bias):
    params = {"scale": jnp.asarray(scale), "bias": jnp.asarray(bias)}
    return nnx.merge(nnx.graphdef(BatchNorm(len(scale))), params)


@pytest.mark.parametrize("activation", TORCH)
def test_values_and_gradients_equal_pytorch(activation):
    x, scale, bias, weight = operands()

    @jax.jit
    def ours(x, scale, bias):
        def total(x, scale, bias):
            y, statistics = module(scale, bias)(x, Size(6), activation=activation)
            return jnp.sum(weight * y), (y, *statistics)

        return jax.grad(total, (0, 1, 2), has_aux=True)(x, scale, bias)

    grads, values = ours(x, scale, bias)
    expected_values, expected_grads = torch_norm(x, scale, bias, weight, activation)
    for found, expected in zip((*values, *grads), (*expected_values, *expected_grads), strict=True):
        assert relative_error(found, expected) < 1e-5


def test_a_large_mean_cancels_nothing():
    """Deviation 2 around 10,000: sums of squares about zero would leave no digit of the variance."""
    x, *_ = operands(mean=1e4)
    mean, variance = jax.jit(moments)(x)
    exact = x.astype(np.float64)
    np.testing.assert_allclose(mean, exact.mean((0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(variance, exact.var((0, 1, 2)), rtol=1e-4)


def test_bfloat16_is_normalised_in_float32():
    """Its input is exact in float32, so only the output is rounded: half a unit in the last of 8 bits."""
    x, scale, bias, weight = operands(mean=5)
    x = jnp.asarray(x, jnp.bfloat16)
    y, mean, variance = jax.jit(normalize)(x, scale, bias)
    exact = x.astype(np.float32)
    (expected, *statistics), _ = torch_norm(exact, scale, bias, weight, "identity", torch.float64)
    assert y.dtype == jnp.bfloat16 and mean.dtype == variance.dtype == jnp.float32
    np.testing.assert_allclose(np.asarray(y, np.float64), expected, rtol=2**-8, atol=1e-6)
    np.testing.assert_allclose(mean, statistics[0], rtol=1e-5)
    np.testing.assert_allclose(variance * (140 / 139), statistics[1], rtol=1e-4)


def test_given_statistics_normalise_as_pytorch_does():
    x, scale, bias, _ = operands()
    rng = np.random.default_rng(1)
    mean, variance = rng.standard_normal(9).astype(np.float32), rng.uniform(0.5, 2, 9).astype(np.float32)
    y, passed = module(scale, bias)(x, Size(6), activation="swish", statistics=(mean, variance))
    expected = F.silu(F.batch_norm(torch.tensor(x).permute(0, 3, 1, 2), torch.tensor(mean[:6]),
                                   torch.tensor(variance[:6]), torch.tensor(scale), torch.tensor(bias)))
    assert relative_error(y, expected.permute(0, 2, 3, 1)) < 1e-5
    np.testing.assert_array_equal(passed[0], mean[:6])


def test_gradients_on_given_statistics_equal_pytorch():
    x, scale, bias, weight = operands()
    statistics = np.linspace(-1, 1, 6, dtype=np.float32), np.linspace(0.5, 2, 6, dtype=np.float32)

    def total(x, scale, bias):
        return jnp.sum(weight * module(scale, bias)(x, Size(6), activation="swish", statistics=statistics)[0])

    found = jax.jit(jax.grad(total, (0, 1, 2)))(x, scale, bias)
    leaves = [torch.tensor(a, requires_grad=True) for a in (x, scale, bias)]
    stored = (torch.tensor(s) for s in statistics)
    y = F.silu(F.batch_norm(leaves[0].permute(0, 3, 1, 2), *stored, *leaves[1:])).permute(0, 2, 3, 1)
    (y * torch.tensor(weight)).sum().backward()
    for a, leaf in zip(found, leaves, strict=True):
        assert relative_error(a, leaf.grad) < 1e-5


@pytest.mark.parametrize("activation", TORCH)
def test_the_gate_of_squeeze_and_excitation_equals_pytorch(activation):
    """Values, statistics, and gradients of the input, the norm and the gate's own weights."""
    x, scale, bias, weight = operands()
    se = SqueezeExcite(6, 4, rngs=nnx.Rngs(0)).weights(6, Size(4))
    se = [np.asarray(w) + 0.1 for w in se[:4]]

    def total(x, scale, bias, weights):
        y, statistics = module(scale, bias)(x, Size(6), activation=activation, gate=gate, weights=weights)
        return jnp.sum(weight * y), (y, *statistics)

    grads, values = jax.jit(jax.grad(total, (0, 1, 2, 3), has_aux=True))(x, scale, bias, (*se, None))
    leaves = [torch.tensor(a, requires_grad=True) for a in (x, scale, bias, *se)]
    mean, var = torch.zeros(6), torch.ones(6)
    y = TORCH[activation](F.batch_norm(leaves[0].permute(0, 3, 1, 2), mean, var, *leaves[1:3], True, 1.0, 1e-5))
    hidden = F.relu(y.mean((2, 3)) @ leaves[3] + leaves[4])
    y = (y * F.hardsigmoid(hidden @ leaves[5] + leaves[6])[:, :, None, None]).permute(0, 2, 3, 1)
    (y * torch.tensor(weight)).sum().backward()
    for found, expected in zip(values, (y.detach(), mean, var), strict=True):
        assert relative_error(found, expected) < 1e-5
    for found, leaf in zip((*grads[:3], *grads[3][:4]), leaves, strict=True):
        assert relative_error(found, leaf.grad) < 2e-5


@pytest.mark.parametrize("activation", TORCH)
def test_masked_equals_sliced(activation):
    """Beyond the sampled channels: zeros out, no gradient back, whatever finite numbers come in."""
    x, scale, bias, weight = operands()
    weight[..., 4:] = 1e3

    @partial(jax.jit, static_argnames="bucket")
    def ours(x, scale, bias, weight, bucket, sampled=None):
        def total(x, scale, bias):
            y, statistics = module(scale, bias)(x, Size(bucket, sampled), activation=activation)
            return jnp.sum(weight * y), (y, *statistics)

        return jax.grad(total, (0, 1, 2), has_aux=True)(x, scale, bias)

    masked = ours(x, scale, bias, weight, 6, jnp.int32(4))
    sliced = ours(x[..., :4], scale, bias, weight[..., :4], 4)
    for found, expected in zip(jax.tree.leaves(masked), jax.tree.leaves(sliced), strict=True):
        if found.shape != expected.shape:
            assert relative_error(found[..., :4], expected) < 1e-6
        else:
            assert relative_error(found, expected) < 1e-6
    (dx, d_scale, d_bias), (y, *_) = masked
    assert not any(np.asarray(a)[..., 4:].any() for a in (dx, d_scale, d_bias, y))
    assert all(np.asarray(a)[..., :4].all() for a in (d_scale, d_bias))


@pytest.mark.parametrize("activation", ["identity", "swish"])
def test_synchronised_over_eight_devices_equals_one(activation):
    x, scale, bias, weight = operands(mean=3, shape=(8, 3, 3, 6))
    # Each device's images have a mean of their own: averages of the devices' variances would be wrong.
    x += np.arange(8, dtype=np.float32)[:, None, None, None]

    def ours(x, scale, bias, weight, axis_name):
        def total(x, scale, bias):
            y, statistics = module(scale, bias)(x, Size(6), activation=activation, axis_name=axis_name)
            return jnp.sum(weight * y), (y, *statistics)

        (dx, d_scale, d_bias), (y, mean, var) = jax.grad(total, (0, 1, 2), has_aux=True)(x, scale, bias)
        if axis_name:
            d_scale, d_bias = jax.lax.psum((d_scale, d_bias), axis_name)
        return dx, y, d_scale, d_bias, mean, var

    split, whole = PartitionSpec("data"), PartitionSpec()
    mesh = Mesh(np.array(jax.devices()), ("data",))
    eight = jax.shard_map(partial(ours, axis_name="data"), mesh=mesh, in_specs=(split, whole, whole, split),
                          out_specs=(split, split, whole, whole, whole, whole), check_vma=False)
    found = jax.jit(eight)(x, scale, bias, weight)
    expected = jax.jit(partial(ours, axis_name=None))(x, scale, bias, weight)
    assert mesh.size == 8
    for a, b in zip(found, expected, strict=True):
        assert relative_error(a, b) < 1e-5


def test_a_last_scale_starts_at_zero():
    assert not np.any(BatchNorm(5, zero_scale=True).scale[...])
    assert np.all(BatchNorm(5).scale[...] == 1) and not np.any(BatchNorm(5).bias[...])
