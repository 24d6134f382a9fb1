"""A child as an ONNX graph, node by node: convolutions, pooling, one Gemm and elementwise nodes.

Written out because that is the shortest graph there is, in either form, folded or not. jax2onnx (0.17.1) turns the JAX
forward pass, whose depthwise convolutions are shifted multiply-adds, into some 25 times as many nodes; torch.onnx
(2.14.1) makes as many as this from the folded PyTorch child, but always folds batch norm (docs/export.md).
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from bignas_jax.kernels.norm.normalize import EPSILON

INPUT, OUTPUT = "images", "logits"
OPSET, IR_VERSION = 18, 8  # of the same release, ONNX 1.13: runtimes since early 2023 read it


class _Graph:
    """Nodes in order, and the tensors that they use. A value is known by the name of the node that makes it."""

    def __init__(self, tensors: Mapping[str, np.ndarray]):
        self.tensors, self.nodes, self.initializers = tensors, [], {}

    def add(self, operator: str, *inputs: str, name: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(operator, list(inputs), [name], name=name, **attributes))
        return name

    def weights(self, *names: str) -> list[str]:
        for name in names:
            self.initializers[name] = numpy_helper.from_array(self.tensors[name], name)
        return list(names)

    def conv(self, x: str, layer: str, stride: int = 1, groups: int = 1) -> str:
        """The layer's convolution, padded by k // 2, with a bias where it has one."""
        size = self.tensors[f"{layer}.weight"].shape[-1]
        bias = [f"{layer}.bias"] if f"{layer}.bias" in self.tensors else []
        weights = self.weights(f"{layer}.weight", *bias)
        return self.add("Conv", x, *weights, name=layer, kernel_shape=[size] * 2, strides=[stride] * 2,
                        pads=[size // 2] * 4, group=groups)  # fmt: skip

    def conv_norm(self, x: str, layer: str, stride: int = 1, groups: int = 1) -> str:
        x = self.conv(x, f"{layer}.conv", stride, groups)
        if f"{layer}.norm.weight" not in self.tensors:
            return x
        norm = self.weights(*(f"{layer}.norm.{part}" for part in ("weight", "bias", "running_mean", "running_var")))
        return self.add("BatchNormalization", x, *norm, name=f"{layer}.norm", epsilon=EPSILON)

    def activate(self, x: str, activation: str) -> str:
        if activation == "swish":
            return self.add("Mul", x, self.add("Sigmoid", x, name=f"{x}.sigmoid"), name=f"{x}.swish")
        return self.add({"h_swish": "HardSwish", "relu": "Relu"}[activation], x, name=f"{x}.{activation}")

    def squeeze_excite(self, x: str, layer: str) -> str:
        gate = self.conv(self.add("GlobalAveragePool", x, name=f"{layer}.mean"), f"{layer}.reduce")
        gate = self.conv(self.activate(gate, "relu"), f"{layer}.expand")
        gate = self.add("HardSigmoid", gate, name=f"{layer}.gate", alpha=1 / 6, beta=0.5)
        return self.add("Mul", x, gate, name=layer)


def _block(graph: _Graph, x: str, layer: str, block: Mapping[str, Any], activation: str, side: int) -> str:
    y = x
    if block["expand"]:
        y = graph.activate(graph.conv_norm(y, f"{layer}.expand"), activation)
    y = graph.conv_norm(y, f"{layer}.depthwise", block["stride"], groups=block["mid_width"])
    y = graph.activate(y, activation)
    if block["se_width"]:
        y = graph.squeeze_excite(y, f"{layer}.squeeze_excite")
    y = graph.conv_norm(y, f"{layer}.project")
    if block["stride"] == 2:
        # An odd side is padded by 1 at both ends, and the padding counts in the mean.
        x = graph.add("AveragePool", x, name=f"{layer}.pool", kernel_shape=[2, 2], strides=[2, 2],
                      pads=[side % 2] * 4, count_include_pad=1)  # fmt: skip
    if block["in_width"] != block["out_width"]:
        x = graph.conv(x, f"{layer}.shortcut")
    return graph.add("Add", y, x, name=layer)


def onnx_model(
    description: Mapping[str, Any], tensors: Mapping[str, np.ndarray], batch: int, about: Mapping[str, str]
) -> onnx.ModelProto:
    """The model: float32 `images` [batch, 3, R, R] to `logits` [batch, classes].

    Args:
      description, tensors: as `child.describe` and `child.tensors` give them. batch: 0 leaves it open, as 'batch'.
      about: properties of the model.
    """
    graph, activation = _Graph(tensors), description["activation"]
    stem, head, resolution = description["stem"], description["head"], description["resolution"]
    x = graph.activate(graph.conv_norm(INPUT, "stem", stem["stride"]), activation)
    side = -(-resolution // stem["stride"])
    for number, block in enumerate(description["blocks"]):
        x = _block(graph, x, f"blocks.{number}", block, activation, side)
        side = -(-side // block["stride"])
    x = graph.activate(graph.conv_norm(x, "head"), activation)
    x = graph.add("GlobalAveragePool", x, name="head.mean")
    if head["v3"]:
        x = graph.activate(graph.conv(x, "head_project"), activation)
    x = graph.add("Flatten", x, name="features")
    graph.add("Gemm", x, *graph.weights("classifier.weight", "classifier.bias"), name=OUTPUT, transB=1)

    def value(name: str, *shape: int):
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch or "batch", *shape])

    images, logits = value(INPUT, 3, resolution, resolution), value(OUTPUT, description["num_classes"])
    proto = helper.make_graph(graph.nodes, "child", [images], [logits], list(graph.initializers.values()))
    model = helper.make_model(proto, producer_name="bignas_jax", ir_version=IR_VERSION,
                              opset_imports=[helper.make_opsetid("", OPSET)])  # fmt: skip
    helper.set_model_props(model, dict(about))
    onnx.checker.check_model(model, full_check=True)
    return model
