"""The Pallas kernels, interpreted, against PyTorch's convolution and autograd; and that Triton takes them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from depthwise_cases import operands, torch_conv
from jax.sharding import AbstractDevice, AbstractMesh, use_abstract_mesh
from tiny import relative_error

from bignas_jax.kernels.depthwise import pallas as depthwise_pallas

RAGGED = (13, 5), (9, 7)


def all_three(x, kernel, g, stride, interpret=None, used=None):
    size = kernel.shape[0]
    return (
        depthwise_pallas.forward(x, kernel, stride, interpret, used=used),
        depthwise_pallas.input_gradient(g, kernel, stride, x.shape, interpret, used),
        depthwise_pallas.kernel_gradient(x, g, size, stride, interpret, used),
    )


# The more rows a strip has, the longer the interpreter takes to compile.
@pytest.mark.parametrize("size, stride, sides, channels, most_rows", [
    (3, 1, RAGGED[0], 40, 6), (3, 2, RAGGED[1], 24, 6), (5, 1, RAGGED[1], 40, 3), (5, 2, RAGGED[0], 3, 4),
    (7, 2, RAGGED[1], 8, 1), (3, 2, (1, 2), 8, 6),
])
def test_values_and_gradients_equal_pytorch(monkeypatch, size, stride, sides, channels, most_rows):
    monkeypatch.setattr(depthwise_pallas, "_MOST_ROWS", most_rows)
    monkeypatch.setattr(depthwise_pallas, "_FEW_ROWS", {})
    monkeypatch.setattr(depthwise_pallas, "_KERNEL_GRADIENT_PROGRAMS", 2)  # so that each goes over several tiles
    x, kernel, g = operands(size, stride, *sides, channels=channels, batch=3)
    expected = torch_conv(x, kernel, stride, g)
    for found, value in zip(all_three(x, kernel, jnp.asarray(g), stride), expected, strict=True):
        assert found.shape == value.shape and relative_error(found, value) < 1e-5


def test_bfloat16_is_summed_in_float32():
    x, kernel, g = operands(3, 1, 8, 8, channels=16)
    x, g = jnp.asarray(x, jnp.bfloat16), jnp.asarray(g, jnp.bfloat16)
    y, dx, d_kernel = all_three(x, kernel, g, 1)
    assert (y.dtype, dx.dtype, d_kernel.dtype) == (jnp.bfloat16, jnp.bfloat16, jnp.float32)
    exact = torch_conv(np.asarray(x, np.float32), kernel, 1, np.asarray(g, np.float32))
    assert relative_error(y.astype(np.float32), exact[0]) < 2**-8
    assert relative_error(dx.astype(np.float32), exact[1]) < 2**-8
    assert relative_error(d_kernel, exact[2]) < 1e-5


@pytest.mark.parametrize("stride", [1, 2])
def test_what_is_beyond_the_used_channels_is_not_read(stride):
    x, kernel, g = operands(3, stride, *RAGGED[0], channels=40, batch=2)
    exact = all_three(x[..., :5], kernel[..., :5], g[..., :5], stride)
    # Were the others read, they would spoil the sums; a block of 8 channels has none that is used, and one has both.
    x[..., 5:], g[..., 5:] = np.nan, np.nan
    for found, expected in zip(all_three(x, kernel, g, stride, used=jnp.array([5, 3])), exact, strict=True):
        assert relative_error(found[..., :5], expected) < 1e-6 and not np.asarray(found)[..., 5:].any()


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("size, stride", [(3, 1), (5, 2)])
def test_triton_takes_the_kernels(size, stride, dtype):
    """Lowered for CUDA without a GPU."""
    gpu = AbstractMesh((), (), abstract_device=AbstractDevice("NVIDIA H100", None, "gpu"))  # JAX 0.12 asks for one
    x, g = (jax.ShapeDtypeStruct((8, side, side, 144), dtype) for side in (12, 12 // stride))
    kernel = jax.ShapeDtypeStruct((size, size, 144), jnp.float32)
    step = jax.jit(lambda x, kernel, g: all_three(x, kernel, g, stride, interpret=False))
    with use_abstract_mesh(gpu):
        text = step.trace(x, kernel, g).lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("custom_call @") == 3 and "triton" in text
    assert "stablehlo.while" not in text  # not the interpreter's loop over programs


def test_what_the_kernels_take():
    shape = 8, 20, 20, 240
    assert depthwise_pallas.supports(shape, 5, 2, jnp.bfloat16)
    assert not depthwise_pallas.supports(shape, 1, 1, jnp.float32)
    assert not depthwise_pallas.supports(shape, 3, 1, jnp.float64)
    assert not depthwise_pallas.supports((2**20, 20, 20, 240), 3, 1, jnp.float32)
    (batch,) = jax.export.symbolic_shape("batch")
    assert not depthwise_pallas.supports((batch, 20, 20, 240), 3, 1, jnp.float32)
