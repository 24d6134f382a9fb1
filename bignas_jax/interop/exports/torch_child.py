"""A child of a BigNAS supernet as a plain PyTorch module. Needs nothing but torch.

    from child import load
    model = load()                    # in evaluation mode
    logits = model(images)            # float32 [B, 3, R, R] to [B, classes]; see preprocessing.json

An inverted residual block (Sandler et al., 2018) has squeeze-and-excitation (Hu et al., 2018) and a shortcut
(Yu et al., 2020). Where batch norm is folded, convolutions have a bias in its place.
"""

import os

import torch
import torch.nn.functional as F
from torch import nn

DESCRIPTION: dict = {}
ACTIVATIONS = {"swish": nn.SiLU, "h_swish": nn.Hardswish, "relu": nn.ReLU}


class ConvNorm(nn.Module):
    """A convolution with a bias if batch norm is folded into it, else without one and followed by batch norm."""

    def __init__(self, in_width, out_width, kernel_size=1, stride=1, groups=1, folded=True):
        super().__init__()
        padding = kernel_size // 2
        self.conv = nn.Conv2d(in_width, out_width, kernel_size, stride, padding, groups=groups, bias=folded)
        self.norm = nn.Identity() if folded else nn.BatchNorm2d(out_width, eps=1e-5)

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


class Block(nn.Module):
    """Expansion, depthwise convolution, squeeze-and-excitation, projection, and the shortcut around them."""

    def __init__(self, block, activation, folded):
        super().__init__()
        width, mid, out = block["in_width"], block["mid_width"], block["out_width"]
        stride, kernel_size, reduced = block["stride"], block["kernel_size"], block["se_width"]
        self.activation = ACTIVATIONS[activation]()
        self.expand = ConvNorm(width, mid, folded=folded) if block["expand"] else None
        self.depthwise = ConvNorm(mid, mid, kernel_size, stride, groups=mid, folded=folded)
        self.squeeze_excite = SqueezeExcite(mid, reduced) if reduced else None
        self.project = ConvNorm(mid, out, folded=folded)
        self.stride = stride
        self.shortcut = nn.Conv2d(width, out, 1, bias=False) if width != out else None

    def forward(self, x):
        y = x if self.expand is None else self.activation(self.expand(x))
        y = self.activation(self.depthwise(y))
        if self.squeeze_excite is not None:
            y = self.squeeze_excite(y)
        y = self.project(y)
        if self.stride == 2:
            # An odd side is padded by 1 at both ends, and the padding counts in the mean.
            x = F.avg_pool2d(x, 2, 2, padding=x.shape[-1] % 2, count_include_pad=True)
        return y + (x if self.shortcut is None else self.shortcut(x))


class Child(nn.Module):
    """The network that `description` states, in evaluation mode: images [B, 3, R, R] to logits [B, classes]."""

    def __init__(self, description):
        super().__init__()
        folded, stem, head = description["folded"], description["stem"], description["head"]
        self.activation = ACTIVATIONS[description["activation"]]()
        self.stem = ConvNorm(3, stem["width"], 3, stem["stride"], folded=folded)
        self.blocks = nn.Sequential(*(Block(b, description["activation"], folded) for b in description["blocks"]))
        self.head = ConvNorm(head["in_width"], head["mid_width"], folded=folded)
        # MobileNetV3's head (Howard et al., 2019, section 5.1) mixes the features after the pooling.
        self.head_project = nn.Conv2d(head["mid_width"], head["width"], 1, bias=False) if head["v3"] else None
        self.classifier = nn.Linear(head["width"], description["num_classes"])
        self.eval()

    def forward(self, x):
        x = self.blocks(self.activation(self.stem(x)))
        x = F.adaptive_avg_pool2d(self.activation(self.head(x)), 1)
        if self.head_project is not None:
            x = self.activation(self.head_project(x))
        return self.classifier(x.flatten(1))


def load(path=None):
    """The child with the weights of the state_dict at `path`, by default child.pt beside this file."""
    path = path or os.path.join(os.path.dirname(os.path.abspath(__file__)), "child.pt")
    model = Child(DESCRIPTION)
    model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return model
