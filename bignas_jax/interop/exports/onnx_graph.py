"""A child as an ONNX graph, node by node: convolutions, pooling, one Gemm and elementwise nodes.

We write the nodes ourselves because this gives the shortest graph, with batch norm folded or not. In the JAX forward
pass, depthwise convolutions are shifted multiply-adds: jax2onnx (0.17.1) turns them into some 25 times as many nodes.
torch.onnx (2.14.1) makes as many nodes as this from the folded PyTorch child, but always folds batch norm
(docs/export.md).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from bignas_jax.errors import ExportError
from bignas_jax.nets.child import Child
from bignas_jax.nets.kinds import module_of
from bignas_jax.spaces.layers import EPSILON, Layer, after_stride, feature_layers

INPUT, OUTPUT = "images", "logits"
OPSET, IR_VERSION = 18, 8  # both of ONNX 1.13, which runtimes since early 2023 can read


class Graph:
    """Nodes in order, and the tensors that they use. A value is known by the name of the node that makes it."""

    def __init__(self, tensors: Mapping[str, np.ndarray]):
        self.tensors, self.nodes, self.initializers = tensors, [], {}

    def add(self, operator: str, *inputs: str, name: str, **attributes: Any) -> str:
        """Adds a node and returns its name."""
        self.nodes.append(helper.make_node(operator, list(inputs), [name], name=name, **attributes))
        return name

    def weights(self, *names: str) -> list[str]:
        """Adds these tensors as weights and returns their names."""
        for name in names:
            self.initializers[name] = numpy_helper.from_array(self.tensors[name], name)
        return list(names)

    def conv(self, x: str, layer: str, stride: int = 1, groups: int = 1) -> str:
        """The layer's convolution, padded by k // 2, with a bias if it has one."""
        size = self.tensors[f"{layer}.weight"].shape[-1]
        bias = [f"{layer}.bias"] if f"{layer}.bias" in self.tensors else []
        weights = self.weights(f"{layer}.weight", *bias)
        return self.add("Conv", x, *weights, name=layer, kernel_shape=[size] * 2, strides=[stride] * 2,
                        pads=[size // 2] * 4, group=groups)  # fmt: skip

    def conv_norm(self, x: str, layer: str, stride: int = 1, groups: int = 1, epsilon: float = EPSILON) -> str:
        """The layer's convolution, then its batch norm if that is not folded."""
        x = self.conv(x, f"{layer}.conv", stride, groups)
        if f"{layer}.norm.weight" not in self.tensors:
            return x
        norm = self.weights(*(f"{layer}.norm.{part}" for part in ("weight", "bias", "running_mean", "running_var")))
        return self.add("BatchNormalization", x, *norm, name=f"{layer}.norm", epsilon=epsilon)

    def activate(self, x: str, activation: str) -> str:
        """The activation of `x`: swish, h_swish, relu or relu6."""
        if activation == "relu6":
            ends = [f"{x}.least", f"{x}.most"]
            for name, value in zip(ends, (0.0, 6.0), strict=True):
                self.initializers[name] = numpy_helper.from_array(np.float32(value), name)
            return self.add("Clip", x, *ends, name=f"{x}.relu6")
        if activation == "swish":
            return self.add("Mul", x, self.add("Sigmoid", x, name=f"{x}.sigmoid"), name=f"{x}.swish")
        return self.add({"h_swish": "HardSwish", "relu": "Relu"}[activation], x, name=f"{x}.{activation}")

    def squeeze_excite(self, x: str, layer: str) -> str:
        """`x`, with each channel scaled by a gate computed from the means of all channels."""
        gate = self.conv(self.add("GlobalAveragePool", x, name=f"{layer}.mean"), f"{layer}.reduce")
        gate = self.conv(self.activate(gate, "relu"), f"{layer}.expand")
        gate = self.add("HardSigmoid", gate, name=f"{layer}.gate", alpha=1 / 6, beta=0.5)
        return self.add("Mul", x, gate, name=layer)

    def shortcut(self, x: str, layer: Layer) -> str:
        """The layer's shortcut, which is added to its output."""
        if layer.shortcut.stride == 2:
            # An odd side is padded by 1 at both ends. The means count the padding.
            x = self.add("AveragePool", x, name=f"{layer.label}.pool", kernel_shape=[2, 2], strides=[2, 2],
                         pads=[layer.shortcut.side % 2] * 4, count_include_pad=1)  # fmt: skip
        return self.conv(x, f"{layer.label}.shortcut") if layer.shortcut.projects else x


def _stem(graph: Graph, x: str, layer: Layer) -> str:
    (conv,) = layer.convs
    y = graph.activate(graph.conv_norm(x, layer.label, conv.stride, epsilon=conv.epsilon), conv.activation)
    if layer.shortcut is not None:
        y = graph.add("Add", y, x, name=f"{layer.label}.sum")
    if layer.halves:
        y = graph.add("MaxPool", y, name=f"{layer.label}.pool", kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    return y


def _mbconv(graph: Graph, x: str, layer: Layer) -> str:
    y = x
    for conv in layer.convs:
        groups = conv.out_width if conv.depthwise else 1
        y = graph.conv_norm(y, layer.conv_label(conv), conv.stride, groups, conv.epsilon)
        if conv.activation != "identity":
            y = graph.activate(y, conv.activation)
        if conv.squeeze:
            y = graph.squeeze_excite(y, f"{layer.label}.squeeze_excite")
    return y if layer.shortcut is None else graph.add("Add", y, graph.shortcut(x, layer), name=layer.label)


def _bottleneck(graph: Graph, x: str, layer: Layer) -> str:
    reduce, middle, expand, *downsample = layer.convs
    y = x
    for conv in (reduce, middle, expand):
        y = graph.conv_norm(y, layer.conv_label(conv), conv.stride, epsilon=conv.epsilon)
        y = y if conv.activation == "identity" else graph.activate(y, conv.activation)
    for conv in downsample:
        if middle.stride == 2:
            # The last window of an odd side holds real pixels alone.
            x = graph.add("AveragePool", x, name=f"{layer.label}.pool", kernel_shape=[2, 2], strides=[2, 2],
                          pads=[0, 0, layer.side % 2, layer.side % 2], count_include_pad=0)  # fmt: skip
        x = graph.conv_norm(x, layer.conv_label(conv), epsilon=conv.epsilon)
    return graph.activate(graph.add("Add", y, x, name=layer.label), middle.activation)


def _head(graph: Graph, x: str, layer: Layer) -> str:
    (conv,) = layer.convs
    x = graph.activate(graph.conv_norm(x, layer.label, epsilon=conv.epsilon), conv.activation)
    return graph.add("GlobalAveragePool", x, name=f"{layer.label}.mean")


def _mix(graph: Graph, x: str, layer: Layer) -> str:
    return graph.activate(graph.conv(x, layer.label), layer.convs[0].activation)


def _classifier(graph: Graph, x: str, layer: Layer) -> str:
    if layer.pools:
        x = graph.add("GlobalAveragePool", x, name="mean")
    x = graph.add("Flatten", x, name="features")
    weights = graph.weights(f"{layer.label}.weight", f"{layer.label}.bias")
    return graph.add("Gemm", x, *weights, name=OUTPUT, transB=1)


# How each kind of layer is written: (graph, name of the input, layer) -> name of the output.
Writer = Callable[[Graph, str, Layer], str]
WRITERS: dict[str, Writer] = {
    "stem": _stem,
    "mbconv": _mbconv,
    "bottleneck": _bottleneck,
    "head": _head,
    "mix": _mix,
    "classifier": _classifier,
}


def _writer(layer: Layer) -> Writer:
    """The function that writes a layer. A user's own kind has it as `write_onnx` of its module.

    Raises:
      ExportError: the user's kind has no such function.
    """
    found = WRITERS.get(layer.kind) or getattr(module_of(layer), "write_onnx", None)
    if found is None:
        raise ExportError(
            f"onnx: layers of kind {layer.kind} have no ONNX form, expected a function write_onnx(graph, x, layer) in "
            "their class: write one, or leave the format out"
        )
    return found


def onnx_model(
    child: Child,
    tensors: Mapping[str, np.ndarray],
    batch: int,
    about: Mapping[str, str],
    features_only: bool = False,
) -> onnx.ModelProto:
    """The model: float32 `images` [batch, 3, R, R] to `logits` [batch, classes].

    Args:
      child: the child.
      tensors: the child's weights, as `tensors.tensors` gives them.
      batch: images of a call; 0 allows any number, as the axis 'batch'.
      about: properties of the model.
      features_only: the outputs are the feature maps `stride4` [batch, C, R / 4, R / 4], `stride8` and so on in place
        of the logits, and the layers behind the last of them are left out.
    Raises:
      ExportError: a layer of a user's own family has no ONNX form.
    """
    graph, x, resolution = Graph(tensors), INPUT, child.arch.resolution

    def value(name: str, *shape: int):
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch or "batch", *shape])

    maps = {layer.path: name for name, layer in feature_layers(child.layout).items()} if features_only else {}
    outputs = []
    for layer in child.layout:
        x = _writer(layer)(graph, x, layer)
        if layer.path in maps:
            name, side = maps.pop(layer.path), layer.convs[-1].side
            outputs.append(value(graph.add("Identity", x, name=name), layer.out_width, side, side))
            if not maps:
                break
    outputs = outputs or [value(OUTPUT, child.num_classes)]
    return _model(graph, "child", value(INPUT, 3, resolution, resolution), outputs, about)


def part_model(
    layers: Sequence[Layer], tensors: Mapping[str, np.ndarray], batch: int, about: Mapping[str, str]
) -> onnx.ModelProto:
    """Some layers of a child, one after the other: float32 `images` [batch, C, H, W] to their output.

    Args:
      layers: the layers; the first one has a feature map, or images, as input.
      tensors: their weights, as `tensors.layer_tensors` gives them.
      batch: images of a call.
      about: properties of the model.
    Raises:
      ExportError: a layer of a user's own family has no ONNX form.
    """
    graph, x, first, last = Graph(tensors), INPUT, layers[0], layers[-1]
    side = first.side
    for layer in layers:
        x, side = _writer(layer)(graph, x, layer), after_stride(side, layer.stride)
    shape = [batch, last.out_width] if last.path == ("classifier",) else [batch, last.out_width, side, side]
    inputs = helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, [batch, first.in_width, first.side, first.side])
    return _model(graph, "part", inputs, [helper.make_tensor_value_info(x, TensorProto.FLOAT, shape)], about)


def _model(graph: Graph, name: str, images: Any, outputs: Sequence[Any], about: Mapping[str, str]) -> onnx.ModelProto:
    proto = helper.make_graph(graph.nodes, name, [images], outputs, list(graph.initializers.values()))
    model = helper.make_model(proto, producer_name="bignas_jax", ir_version=IR_VERSION,
                              opset_imports=[helper.make_opsetid("", OPSET)])  # fmt: skip
    helper.set_model_props(model, dict(about))
    onnx.checker.check_model(model, full_check=True)
    return model
