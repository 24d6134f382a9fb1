"""Rounding to 8 bits against onnxruntime's own QuantizeLinear and DequantizeLinear, and its order in a layer."""

import jax.numpy as jnp
import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper

from bignas_jax.ops import Size, rounding


def by_onnxruntime(x, scale, zero, axis=None):
    """x after QuantizeLinear and DequantizeLinear."""
    attributes = {} if axis is None else {"axis": axis}
    nodes = [helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], **attributes),
             helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"], **attributes)]  # fmt: skip
    scale, zero = np.atleast_1d(np.float32(scale)), np.atleast_1d(np.int8(zero))
    scale, zero = (scale[0], zero[0]) if axis is None else (scale, zero)
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape),
              helper.make_tensor_value_info("s", TensorProto.FLOAT, scale.shape),
              helper.make_tensor_value_info("z", TensorProto.INT8, zero.shape)]  # fmt: skip
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, x.shape)
    model = helper.make_model(helper.make_graph(nodes, "g", inputs, [output]), ir_version=10,
                              opset_imports=[helper.make_opsetid("", 21)])  # fmt: skip
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x, "s": np.asarray(scale), "z": np.asarray(zero)})[0]


@pytest.mark.parametrize("low, high", [(-1.5, 3.0), (0.0, 2.0), (-4.0, 0.0), (-1e-3, 7.0)])
def test_values_are_rounded_as_onnxruntime_rounds_them(low, high):
    x = np.linspace(2 * low - 0.1, 2 * high + 0.1, 4001, dtype=np.float32)
    scale = np.float32((high - low) / 255)
    expected = by_onnxruntime(x, scale, np.round(-128 - low / scale))
    found = np.asarray(rounding.rounded(x, jnp.array([-low, high], jnp.float32)))
    off = np.abs(found - expected)
    assert off.max() <= scale * 1.01 and (off < scale / 100).mean() > 0.999  # a tie may fall to the other side
    assert len(np.unique(found)) == 256


def test_a_tensor_of_zeros_stays_one():
    assert not np.asarray(rounding.rounded(jnp.zeros(5), jnp.zeros(2))).any()
    assert not np.asarray(rounding.rounded_weights(jnp.zeros((3, 2)))).any()


@pytest.mark.parametrize("shape", [(3, 3, 8, 5), (24, 5), (5, 5, 16)])
def test_weights_have_a_scale_for_each_output_channel(shape):
    kernel = np.random.default_rng(1).normal(0, 1, shape).astype(np.float32) * np.linspace(0.01, 3, shape[-1])
    kernel = kernel.astype(np.float32)
    scale = np.abs(kernel).reshape(-1, shape[-1]).max(0) / 127
    expected = by_onnxruntime(kernel, scale, np.zeros(shape[-1]), axis=len(shape) - 1)
    np.testing.assert_allclose(rounding.rounded_weights(kernel), expected, atol=scale.max() * 1e-3)


def test_channels_that_are_not_used_do_not_widen_a_scale():
    kernel = np.ones((4, 3), np.float32)
    kernel[:, 1], kernel[3] = 0.3, 100.0
    tape = rounding.Tape(jnp.zeros((0, 2)))
    whole = tape.weights(jnp.asarray(kernel), Size(4))
    used = np.asarray(tape.weights(jnp.asarray(kernel), Size(4, jnp.int32(3))))
    assert not np.allclose(whole[:3], kernel[:3], atol=1e-3)
    np.testing.assert_allclose(used[:3], kernel[:3], rtol=1e-6)
    assert not used[3].any()
    np.testing.assert_array_equal(rounding.Tape(jnp.zeros((0, 2)), Size(4, jnp.int32(3))).weights(kernel), used)


def test_a_tape_rounds_in_the_order_in_which_it_noted():
    first, second = jnp.array([-1.0, 2.0]), jnp.array([3.0, 30.0])
    noting = rounding.Tape(None)
    assert noting.values(first) is first and noting.values(second) is second
    np.testing.assert_array_equal(noting.noted, [[1, 2], [0, 30]])
    tape = rounding.Tape(noting.noted)
    for x, step in ((first, 3 / 255), (second, 30 / 255)):
        assert 0 < np.abs(tape.values(x * 0.37) - x * 0.37).max() <= step / 2 + 1e-6


def test_without_a_tape_there_is_none():
    assert rounding.tape() is None
    with rounding.on(rounding.Tape(None)) as outer, rounding.on(rounding.Tape(None)) as inner:
        assert rounding.tape() is inner is not outer
    assert rounding.tape() is None
