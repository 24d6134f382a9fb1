"""Depthwise convolution and its own gradient against PyTorch's; elastic kernels against exact ones."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from depthwise_cases import operands, torch_conv
from flax import nnx
from tiny import relative_error

from bignas_jax.kernels.depthwise.choice import IMPLEMENTATIONS, depthwise_conv, portable, using
from bignas_jax.ops import DepthwiseConv, Size


@partial(jax.jit, static_argnames="stride")
def ours(x, kernel, stride, weight):
    y, pull = jax.vjp(partial(depthwise_conv, stride=stride), x, kernel)
    return y, *pull(weight.astype(y.dtype))


@pytest.mark.parametrize("sides", [(8, 6), (7, 9)])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel_size", [1, 3, 5, 7])
def test_values_and_gradients_equal_pytorch(kernel_size, stride, sides):
    x, kernel, weight = operands(kernel_size, stride, *sides)
    found = ours(x, kernel, stride, weight)
    for value, expected in zip(found, torch_conv(x, kernel, stride, weight), strict=True):
        assert relative_error(value, expected) < 1e-5


@pytest.mark.parametrize("stride", [1, 2])
def test_an_image_smaller_than_the_kernel(stride):
    x, kernel, weight = operands(5, stride, 1, 2)
    found = ours(x, kernel, stride, weight)
    for value, expected in zip(found, torch_conv(x, kernel, stride, weight), strict=True):
        assert relative_error(value, expected) < 1e-5


@pytest.mark.parametrize("name", [name for name in IMPLEMENTATIONS if name != "pallas"])  # has a file of its own
@pytest.mark.parametrize("kernel_size, stride", [(3, 1), (5, 2)])
def test_every_implementation_equals_pytorch(name, kernel_size, stride):
    """What a CPU runs was compared above; this is what other devices may choose."""
    x, kernel, weight = operands(kernel_size, stride, 9, 6)
    with using(name):
        found = ours(x, kernel, stride, weight)
    for value, expected in zip(found, torch_conv(x, kernel, stride, weight), strict=True):
        assert relative_error(value, expected) < 1e-5


def test_an_implementation_is_asked_for_by_name_and_traced_anew():
    x, kernel, _ = operands(3, 1, 6, 6)
    conv = jax.jit(depthwise_conv, static_argnums=2)

    with using("grouped"):
        assert "stablehlo.convolution" in conv.lower(x, kernel, 1).as_text()
    assert "stablehlo.convolution" not in conv.lower(x, kernel, 1).as_text()
    with pytest.raises(ValueError, match="found depthwise implementation 'fastest', expected one of .*'grouped'"):
        using("fastest")


def test_a_portable_program_holds_no_custom_call():
    x, kernel, weight = operands(5, 2, 6, 6)
    with portable():
        assert "custom_call" not in ours.lower(x, kernel, 2, weight).as_text()


def test_bfloat16_is_summed_in_float32():
    x, kernel, weight = operands(5, 1, 8, 8)
    rough = jnp.asarray(x, jnp.bfloat16), kernel, 1, jnp.asarray(weight, jnp.bfloat16)
    y, dx, d_kernel = ours(*rough)
    assert (y.dtype, dx.dtype, d_kernel.dtype) == (jnp.bfloat16, jnp.bfloat16, jnp.float32)
    exact = torch_conv(rough[0].astype(np.float32), kernel, 1, np.asarray(rough[3].astype(np.float32)))
    assert relative_error(y.astype(np.float32), exact[0]) < 2**-8
    assert relative_error(dx.astype(np.float32), exact[1]) < 2**-8
    assert relative_error(d_kernel, exact[2]) < 1e-5


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [3, 5, 7])
def test_masked_kernel_equals_sliced_and_pytorch(size, stride):
    x, kernel, weight = operands(7, stride, 9, 9)
    conv = nnx.graphdef(DepthwiseConv(3, 7, stride, rngs=nnx.Rngs(0)))

    @partial(jax.jit, static_argnames="bucket")
    def run(x, kernel, bucket, sampled=None):
        def total(x, kernel):
            y = nnx.merge(conv, {"kernel": kernel})(x, Size(bucket, sampled))
            return jnp.sum(y * weight), y

        (dx, d_kernel), y = jax.grad(total, (0, 1), has_aux=True)(x, kernel)
        return y, dx, d_kernel

    border = (7 - size) // 2
    centre = kernel[border : 7 - border, border : 7 - border]
    y, dx, d_centre = torch_conv(x, centre, stride, weight)
    for found in (run(x, kernel, 7, jnp.int32(size)), run(x, kernel, size)):
        assert relative_error(found[0], y) < 1e-5 and relative_error(found[1], dx) < 1e-5
        assert relative_error(found[2][border : 7 - border, border : 7 - border], d_centre) < 1e-5
        outside = np.array(found[2])
        outside[border : 7 - border, border : 7 - border] = 0
        assert not outside.any()


def test_fewer_channels_use_the_first_ones():
    x, kernel, weight = operands(3, 1, 6, 6, channels=2)
    conv = DepthwiseConv(5, 3, 1, rngs=nnx.Rngs(0))
    y = conv(x, Size(3))
    assert relative_error(y, torch_conv(x, np.asarray(conv.kernel[...])[..., :2], 1, weight)[0]) < 1e-5
