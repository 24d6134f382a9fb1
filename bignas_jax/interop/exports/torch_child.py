"""A child of a BigNAS supernet as a plain PyTorch module. It needs only torch.

    from child import load
    model = load()                    # in evaluation mode
    logits = model(images)            # float32 [B, 3, R, R] to [B, classes]; see preprocessing.json

An inverted residual block (Sandler et al., 2018) has squeeze-and-excitation (Hu et al., 2018) and a shortcut
(Yu et al., 2020). If batch norm is folded, convolutions have a bias instead.
"""

import os

import torch
import torch.nn.functional as F
from torch import nn

DESCRIPTION: dict = {}
ACTIVATIONS = {"identity": nn.Identity, "swish": nn.SiLU, "h_swish": nn.Hardswish, "relu": nn.ReLU, "relu6": nn.ReLU6}


class ConvNorm(nn.Module):
    """A convolution. It has a bias if batch norm is folded into it. Otherwise batch norm follows."""

    def __init__(self, in_width, out_width, kernel_size=1, stride=1, groups=1, folded=True, epsilon=1e-5):
        super().__init__()
        padding = kernel_size // 2
        self.conv = nn.Conv2d(in_width, out_width, kernel_size, stride, padding, groups=groups, bias=folded)
        self.norm = nn.Identity() if folded else nn.BatchNorm2d(out_width, eps=epsilon)

    def forward(self, x):
        return self.norm(self.conv(x))


class SqueezeExcite(nn.Module):
    """Scales each channel by a gate computed from the means of all channels."""

    def __init__(self, width, reduced):
        super().__init__()
        self.reduce = nn.Conv2d(width, reduced, 1)
        self.expand = nn.Conv2d(reduced, width, 1)

    def forward(self, x):
        mean = F.adaptive_avg_pool2d(x, 1)
        return x * F.hardsigmoid(self.expand(F.relu(self.reduce(mean))))


class Stem(ConvNorm):
    """A convolution with an activation; then the identity shortcut and a max pooling, if it has them."""

    def __init__(self, layer, folded):
        (conv,) = layer["convs"]
        sizes = conv["in_width"], conv["out_width"], conv["kernel_size"], conv["stride"]
        super().__init__(*sizes, folded=folded, epsilon=conv["epsilon"])
        self.activation = ACTIVATIONS[conv["activation"]]()
        self.residual, self.halves = layer["shortcut"] is not None, layer["halves"]

    def forward(self, x):
        y = self.activation(super().forward(x))
        y = y + x if self.residual else y
        return F.max_pool2d(y, 3, 2, padding=1) if self.halves else y


class MBConv(nn.Module):
    """Expansion, depthwise convolution, squeeze-and-excitation, projection, and the shortcut around them."""

    def __init__(self, layer, folded):
        super().__init__()
        self.parts = []
        for conv in layer["convs"]:
            groups = conv["out_width"] if conv["form"] == "depthwise" else 1
            sizes = conv["in_width"], conv["out_width"], conv["kernel_size"], conv["stride"], groups
            setattr(self, conv["name"], ConvNorm(*sizes, folded=folded, epsilon=conv["epsilon"]))
            self.parts.append((conv["name"], ACTIVATIONS[conv["activation"]](), conv["squeeze"]))
            if conv["squeeze"]:
                self.squeeze_excite = SqueezeExcite(conv["out_width"], conv["squeeze"])
        way = layer["shortcut"]
        self.residual, self.stride = way is not None, way["stride"] if way else 1
        projects = self.residual and way["in_width"] != way["out_width"]
        self.shortcut = nn.Conv2d(way["in_width"], way["out_width"], 1, bias=False) if projects else None

    def forward(self, x):
        y = x
        for name, activation, squeeze in self.parts:
            y = activation(getattr(self, name)(y))
            if squeeze:
                y = self.squeeze_excite(y)
        if not self.residual:
            return y
        if self.stride == 2:
            # An odd side is padded by 1 at both ends. The means count the padding.
            x = F.avg_pool2d(x, 2, 2, padding=x.shape[-1] % 2, count_include_pad=True)
        return y + (x if self.shortcut is None else self.shortcut(x))


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions around which the input is added, pooled and projected at the start of a stage."""

    def __init__(self, layer, folded):
        super().__init__()
        for conv in layer["convs"]:
            sizes = conv["in_width"], conv["out_width"], conv["kernel_size"], conv["stride"]
            setattr(self, conv["name"], ConvNorm(*sizes, folded=folded, epsilon=conv["epsilon"]))
        self.activation = ACTIVATIONS[layer["convs"][0]["activation"]]()
        self.projects = hasattr(self, "downsample")
        self.stride = layer["convs"][1]["stride"]

    def forward(self, x):
        y = self.activation(self.middle(self.activation(self.reduce(x))))
        if self.stride == 2:
            x = F.avg_pool2d(x, 2, 2, ceil_mode=True)
        return self.activation(self.expand(y) + (self.downsample(x) if self.projects else x))


class Head(Stem):
    """A convolution with an activation, and the mean over all positions."""

    def forward(self, x):
        return F.adaptive_avg_pool2d(super().forward(x), 1)


class Mix(nn.Conv2d):
    """MobileNetV3's second convolution (Howard et al., 2019, section 5.1), on the means over positions."""

    def __init__(self, layer, folded):
        (conv,) = layer["convs"]
        super().__init__(conv["in_width"], conv["out_width"], 1, bias=False)
        self.activation = ACTIVATIONS[conv["activation"]]()

    def forward(self, x):
        return self.activation(super().forward(x))


class Classifier(nn.Linear):
    """The linear layer that gives the logits, from the means over positions."""

    def __init__(self, layer, folded):
        super().__init__(layer["convs"][0]["in_width"], layer["convs"][0]["out_width"])
        self.pools = layer["pools"]

    def forward(self, x):
        return super().forward(x.mean((2, 3)) if self.pools else x.flatten(1))


KINDS = {"stem": Stem, "mbconv": MBConv, "bottleneck": Bottleneck, "head": Head, "mix": Mix, "classifier": Classifier}


class Child(nn.Module):
    """The network that `description` states, in evaluation mode: images [B, 3, R, R] to logits [B, classes]."""

    def __init__(self, description):
        super().__init__()
        self.blocks = nn.ModuleList()
        self.order = []
        self.maps = _maps(description["layers"])
        for layer in description["layers"]:
            module = KINDS[layer["kind"]](layer, description["folded"])
            name, _, number = layer["label"].partition(".")
            if number:
                self.blocks.append(module)
            else:
                self.add_module(name, module)
            self.order.append(layer["label"])
        self.eval()

    def forward(self, x):
        """Images [B, 3, R, R] to logits [B, classes]."""
        for label in self.order:
            x = self.get_submodule(label)(x)
        return x

    def features(self, x):
        """Images [B, 3, R, R] to feature maps by name, {"stride4": [B, C, R/4, R/4], ...}: the input of a detector."""
        found, last = {}, list(self.maps)[-1]
        for label in self.order:
            x = self.get_submodule(label)(x)
            if label in self.maps:
                found[self.maps[label]] = x
            if label == last:
                return found


def _maps(layers):
    """The name of the feature map behind a layer, by its label: the last layer of each stride from 4 up."""
    found, stride = {}, 1
    for layer in layers:
        if not (layer["label"] == "stem" or layer["label"].startswith("blocks.")):
            break
        for conv in layer["convs"]:
            stride *= conv["stride"]
        stride *= 2 if layer["halves"] else 1
        if stride >= 4:
            found[f"stride{stride}"] = layer["label"]
    return {label: name for name, label in found.items()}


def load(path=None):
    """The child with the weights of the state_dict at `path`, by default child.pt beside this file."""
    path = path or os.path.join(os.path.dirname(os.path.abspath(__file__)), "child.pt")
    model = Child(DESCRIPTION)
    model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return model
