"""Squeeze-and-excitation: sliced against PyTorch, masked against sliced, values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import torch
import torch.nn.functional as F
from flax import nnx
from tiny import assert_close, flat, relative_error

from bignas_jax.ops import Size, SqueezeExcite
from bignas_jax.ops.squeeze_excite import gate

FEATURES, REDUCED = 12, 8


def module():
    se = SqueezeExcite(FEATURES, REDUCED, rngs=nnx.Rngs(0))
    rng = np.random.default_rng(0)
    for name in ("reduce_bias", "expand_bias"):
        bias = getattr(se, name)
        bias[...] = jnp.asarray(rng.standard_normal(bias[...].shape), jnp.float32)
    return se


def ours(se, x, weight, reduced):
    graphdef, params = nnx.split(se)

    def total(x, params):
        weights = nnx.merge(graphdef, params).weights(x.shape[-1], reduced)
        y = x * gate(x.mean((1, 2)), weights)[:, None, None]
        return jnp.sum(y * weight), y

    (dx, grads), y = jax.jit(jax.grad(total, (0, 1), has_aux=True))(x, params)
    return y, dx, nnx.to_pure_dict(grads)


def inputs(features):
    rng = np.random.default_rng(1)
    return [rng.standard_normal((3, 4, 5, features)).astype(np.float32) for _ in range(2)]


def test_sliced_equals_pytorch():
    se, (x, weight) = module(), inputs(9)
    y, dx, grads = ours(se, x, weight, Size(5))
    params = {name: torch.tensor(np.asarray(getattr(se, name)[...]), requires_grad=True) for name in grads}
    leaf = torch.tensor(x, requires_grad=True)
    hidden = F.relu(leaf.mean((1, 2)) @ params["reduce_kernel"][:9, :5] + params["reduce_bias"][:5])
    gates = F.hardsigmoid(hidden @ params["expand_kernel"][:5, :9] + params["expand_bias"][:9])
    expected = leaf * gates[:, None, None]
    (expected * torch.tensor(weight)).sum().backward()
    assert relative_error(y, expected.detach()) < 1e-5
    assert relative_error(dx, leaf.grad) < 1e-5
    assert_close(grads, {name: value.grad.numpy() for name, value in params.items()}, rtol=1e-5)


def test_masked_equals_sliced():
    se, (x, weight) = module(), inputs(FEATURES)
    x[..., 9:] = 0
    y, dx, grads = ours(se, x, weight, Size(REDUCED, jnp.int32(5)))
    exact_y, exact_dx, exact_grads = ours(se, x[..., :9], weight[..., :9], Size(5))
    assert relative_error(y[..., :9], exact_y) < 1e-6 and not np.asarray(y)[..., 9:].any()
    assert relative_error(dx[..., :9], exact_dx) < 1e-6
    assert_close(grads, exact_grads, rtol=1e-6)
    for path, gradient in flat(exact_grads).items():
        assert not flat(grads)[path][gradient == 0].any(), path
