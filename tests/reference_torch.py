"""One child in plain PyTorch, written from the papers' arithmetic: the independent source of the tests.

It shares no code with bignas_jax, not even the rounding of channels. Parameters carry the names of released
PyTorch checkpoints; block N keeps the number it has in the supernet, so a child may skip numbers.
"""

import runpy

import torch
import torch.nn.functional as F
from paths import DATA
from torch import nn

MANIFESTS = {"bignas": "state_dict_names.json", "attentive_nas": "attentive_state_dict_names.json"}
ACTIVATIONS = {"swish": F.silu, "h_swish": F.hardswish, "relu": F.relu}


def round_channels(value: float) -> int:
    """To a multiple of 8, half up, at least 8 and at least 0.9 of the value (Sandler et al., 2018)."""
    multiple = max(8, 8 * int(value / 8 + 0.5))
    return multiple if multiple >= 0.9 * value else multiple + 8


class Conv(nn.Module):
    """A convolution without bias; its weight is named `conv.conv.weight`."""

    def __init__(self, in_width, out_width, kernel_size=1, stride=1, groups=1):
        super().__init__()
        padding = kernel_size // 2
        conv = nn.Conv2d(in_width, out_width, kernel_size, stride, padding, groups=groups, bias=False)
        self.conv = nn.ModuleDict({"conv": conv})

    def forward(self, x):
        return self.conv["conv"](x)


class ConvNorm(Conv):
    """A convolution, then batch norm, named `bn.bn`."""

    def __init__(self, in_width, out_width, kernel_size=1, stride=1, groups=1):
        super().__init__(in_width, out_width, kernel_size, stride, groups)
        self.bn = nn.ModuleDict({"bn": nn.BatchNorm2d(out_width, eps=1e-5)})

    def forward(self, x):
        return self.bn["bn"](super().forward(x))


class SqueezeExcite(nn.Module):
    """Hu et al., 2018, with the hard sigmoid of Howard et al., 2019."""

    def __init__(self, width):
        super().__init__()
        squeezed = round_channels(width // 4)
        reduce, expand = nn.Conv2d(width, squeezed, 1), nn.Conv2d(squeezed, width, 1)
        self.fc = nn.ModuleDict({"reduce": reduce, "expand": expand})

    def forward(self, x):
        gate = self.fc["expand"](F.relu(self.fc["reduce"](x.mean((2, 3), keepdim=True))))
        return x * (F.relu6(gate + 3) / 6)


class Depthwise(ConvNorm):
    def __init__(self, width, kernel_size, stride, se, activation):
        super().__init__(width, width, kernel_size, stride, groups=width)
        self.activation = activation
        self.se = SqueezeExcite(width) if se else nn.Identity()

    def forward(self, x):
        return self.se(self.activation(super().forward(x)))


class Inverted(nn.Module):
    """1x1 expansion (none at ratio 1), depthwise, 1x1 projection; the last scale starts at 0."""

    def __init__(self, in_width, out_width, kernel_size, ratio, stride, se, activation):
        super().__init__()
        self.activation = activation
        width = in_width if ratio == 1 else round_channels(in_width * ratio)
        self.inverted_bottleneck = ConvNorm(in_width, width) if ratio != 1 else None
        self.depth_conv = Depthwise(width, kernel_size, stride, se, activation)
        self.point_linear = ConvNorm(width, out_width)
        nn.init.zeros_(self.point_linear.bn["bn"].weight)

    def forward(self, x):
        if self.inverted_bottleneck is not None:
            x = self.activation(self.inverted_bottleneck(x))
        return self.point_linear(self.depth_conv(x))


class Block(nn.Module):
    """An inverted residual block with BigNAS's shortcut: pooled at stride 2, projected if widths differ."""

    def __init__(self, in_width, out_width, kernel_size, ratio, stride, se, activation):
        super().__init__()
        self.stride = stride
        self.mobile_inverted_conv = Inverted(in_width, out_width, kernel_size, ratio, stride, se, activation)
        self.shortcut = Conv(in_width, out_width) if in_width != out_width else nn.Identity()

    def forward(self, x):
        skip = x
        if self.stride == 2:
            skip = F.avg_pool2d(x, 2, 2, padding=x.shape[-1] % 2, count_include_pad=True)
        return self.mobile_inverted_conv(x) + self.shortcut(skip)


class V3Head(nn.Module):
    """Howard et al., 2019, section 5.1: features are mixed after the pooling."""

    def __init__(self, in_width, out_width, activation):
        super().__init__()
        self.activation = activation
        width = round_channels(6 * in_width)
        self.final_expand_layer = ConvNorm(in_width, width)
        self.feature_mix_layer = Conv(width, out_width)

    def forward(self, x):
        x = self.activation(self.final_expand_layer(x)).mean((2, 3), keepdim=True)
        return self.activation(self.feature_mix_layer(x)).flatten(1)


class PlainHead(ConvNorm):
    def __init__(self, in_width, out_width, activation):
        super().__init__(in_width, out_width)
        self.activation = activation

    def forward(self, x):
        return self.activation(super().forward(x)).mean((2, 3))


class Child(nn.Module):
    """The child `arch` of `space`: images [B, 3, R, R] to logits [B, num_classes], without dropout."""

    def __init__(self, space, arch, num_classes):
        super().__init__()
        self.activation = ACTIVATIONS[space.activation]
        self.first_conv = ConvNorm(3, arch.width[0], 3, space.stem_stride)
        self.blocks = nn.ModuleDict()
        in_width, first = arch.width[0], 0
        for number, stage in enumerate(space.stages):
            out_width, depth = arch.width[number + 1], arch.depth[number]
            kernel_size = per_block(arch.kernel_size[number], depth)
            ratio = per_block(arch.expand_ratio[number], depth)
            for i in range(depth):
                stride = stage.stride if i == 0 else 1
                self.blocks[str(first + i)] = Block(in_width, out_width, kernel_size[i], ratio[i], stride,
                                                    stage.se, self.activation)
                in_width = out_width
            first += max(stage.depth)
        head = V3Head if space.v3_head else PlainHead
        self.last_conv = head(in_width, arch.width[-1], self.activation)
        linear = nn.Linear(arch.width[-1], num_classes)
        self.classifier = nn.ModuleDict({"linear": nn.ModuleDict({"linear": linear})})

    def forward(self, x):
        x = self.activation(self.first_conv(x))
        for block in self.blocks.values():
            x = block(x)
        return self.classifier["linear"]["linear"](self.last_conv(x))

    def norms(self):
        return [module for module in self.modules() if isinstance(module, nn.BatchNorm2d)]

    def statistics(self, mode):
        """Sets where batch norm takes its statistics from, and returns the child.

        'batch': the batch; the stored ones stay. 'stored': the stored ones. 'calibrate': the batch;
        from here on the stored ones are the plain mean of the batches' means and unbiased variances.
        """
        momentum = {"batch": 0.0, "stored": 0.0, "calibrate": None}[mode]
        self.train(mode != "stored")
        for norm in self.norms():
            norm.momentum = momentum
            if mode == "calibrate":
                norm.reset_running_stats()
        return self


def per_block(entry, depth):
    return entry if isinstance(entry, tuple) else (entry,) * depth


def slice_of(tensor, shape):
    """The leading channels of `tensor` and the centre of its kernel, of the given shape; differentiable."""
    for axis, size in enumerate(shape):
        start = (tensor.shape[axis] - size) // 2 if axis >= 2 else 0
        tensor = tensor.narrow(axis, start, size)
    return tensor


def slice_state(child, state_dict):
    """The supernet's tensors cut to the child, by name; differentiable."""
    return {name: slice_of(torch.as_tensor(state_dict[name]), own.shape)
            for name, own in child.state_dict().items() if not name.endswith("num_batches_tracked")}


def load_slice(child, state_dict):
    """Copies the child's part of a supernet's tensors (PyTorch's or NumPy's, by released name) into it."""
    sliced = slice_state(child, state_dict)
    own = child.state_dict()
    with torch.no_grad():
        for name, tensor in sliced.items():
            own[name].copy_(tensor)
    return child


def seeded_state_dict(name):
    """A supernet's NumPy tensors by released name, for the space 'bignas' or 'attentive_nas'."""
    return runpy.run_path(str(DATA / "seeded_weights.py"))["state_dict"](DATA / MANIFESTS[name])
