"""The peer: the same supernet in plain PyTorch, as eager systems run it, for benchmarks to compare with.

Weights are sliced in the forward pass (views), images are channels last, nothing is masked or skipped: each member of
a sandwich step runs at its exact size. It shares no code with bignas_jax but the search space's values. `agreement`
holds its logits and gradients against ours on the same weights; no benchmark times anything before that.
"""

import contextlib
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from bignas_jax.architecture import Architecture
from bignas_jax.space import SearchSpace, blocks, head_mid_width

ACTIVATIONS = {"swish": F.silu, "h_swish": F.hardswish, "relu": F.relu}


def to_torch(array: np.ndarray) -> torch.Tensor:
    """Our layout to PyTorch's: [k, k, I, O] -> [O, I, k, k], [k, k, C] -> [C, 1, k, k], [I, O] -> [O, I]."""
    if array.ndim == 3:
        array = array[:, :, None]
    axes = {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}[array.ndim]
    return torch.from_numpy(np.array(array.transpose(axes)))


def to_ours(tensor: torch.Tensor) -> np.ndarray:
    """The inverse of `to_torch`."""
    array = tensor.detach().cpu().numpy()
    if array.ndim != 4:
        return array.T
    array = array.transpose(2, 3, 1, 0)
    return array[:, :, 0] if array.shape[2] == 1 else array


def flatten(tree: Mapping, prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, keys joined by '/'."""
    flat = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}{key}/") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


class Peer(nn.Module):
    """All weights of `space`; a forward pass is told which architecture to run.

    Args:
      params: our weights, nested. pointwise: how a 1x1 convolution is computed, 'conv' (F.conv2d) or 'linear' (a
        matrix product over channels-last images).
    """

    def __init__(self, space: SearchSpace, params: Mapping, pointwise: str = "conv"):
        super().__init__()
        self.space, self.pointwise = space, pointwise
        self.activation = ACTIVATIONS[space.activation]
        self.names = {name.replace("/", "."): name for name in flatten(params)}
        self.weights = nn.ParameterDict({
            name.replace("/", "_"): nn.Parameter(to_torch(np.asarray(value))) for name, value in flatten(params).items()
        })

    def forward(self, images: torch.Tensor, arch: Architecture) -> torch.Tensor:
        """Normalised images [B, 3, R, R], channels last, to logits [B, num_classes]; batch norm takes the batch's."""
        x = F.conv2d(images, self._weight("stem/kernel")[: arch.width[0]], stride=self.space.stem_stride, padding=1)
        x = self.activation(self._norm(x, "stem_norm"))
        position = {}
        for number, block in enumerate(blocks(self.space, self.space.biggest)):
            position[block.stage, block.index] = number
        for block in blocks(self.space, arch):
            x = self._block(x, block, f"blocks/{position[block.stage, block.index]}")
        mid = head_mid_width(arch) if self.space.v3_head else arch.width[-1]
        x = self.activation(self._norm(self._pointwise(x, "head", mid), "head_norm")).mean((2, 3), keepdim=True)
        if self.space.v3_head:
            x = self.activation(self._pointwise(x, "head_project", arch.width[-1]))
        x = x.flatten(1)
        return F.linear(x, self._weight("classifier/kernel")[:, : x.shape[1]], self._weight("classifier/bias"))

    def _weight(self, name: str) -> torch.Tensor:
        return self.weights[name.replace("/", "_")]

    def _norm(self, x, name):
        scale, bias = (self._weight(f"{name}/{part}")[: x.shape[1]] for part in ("scale", "bias"))
        return F.batch_norm(x, None, None, scale, bias, training=True, eps=1e-5)

    def _pointwise(self, x, name, features):
        weight = self._weight(f"{name}/kernel")[:features, : x.shape[1]]
        if self.pointwise == "linear":
            return F.linear(x.permute(0, 2, 3, 1), weight).permute(0, 3, 1, 2)
        return F.conv2d(x, weight[:, :, None, None])

    def _block(self, x, block, name):
        y = x
        if block.expand_ratio != 1:
            y = self._pointwise(y, f"{name}/expand", block.mid_width)
            y = self.activation(self._norm(y, f"{name}/expand_norm"))
        kernel = self._weight(f"{name}/depthwise/kernel")[: block.mid_width]
        border = (kernel.shape[-1] - block.kernel_size) // 2
        kernel = kernel[:, :, border : border + block.kernel_size, border : border + block.kernel_size]
        y = F.conv2d(y, kernel, stride=block.stride, padding=block.kernel_size // 2, groups=block.mid_width)
        y = self.activation(self._norm(y, f"{name}/depthwise_norm"))
        if block.se_width:
            y = self._squeeze_excite(y, f"{name}/squeeze_excite", block.se_width)
        y = self._norm(self._pointwise(y, f"{name}/project", block.out_width), f"{name}/project_norm")
        if block.index:
            return y + x
        if block.stride == 2:
            x = F.avg_pool2d(x, 2, 2, padding=x.shape[-1] % 2, count_include_pad=True)
        if x.shape[1] != block.out_width:
            x = self._pointwise(x, f"{name}/shortcut/conv", block.out_width)
        return y + x

    def _squeeze_excite(self, x, name, squeezed):
        mean = x.mean((2, 3))
        reduce = self._weight(f"{name}/reduce_kernel")[:squeezed, : x.shape[1]]
        hidden = F.relu(F.linear(mean, reduce, self._weight(f"{name}/reduce_bias")[:squeezed]))
        expand = self._weight(f"{name}/expand_kernel")[: x.shape[1], :squeezed]
        gate = F.hardsigmoid(F.linear(hidden, expand, self._weight(f"{name}/expand_bias")[: x.shape[1]]))
        return x * gate[:, :, None, None]


class PeerStep:
    """A sandwich step of the peer: members forward and backward one by one, then the clip and SGD.

    Args:
      peer: the supernet. mean, std: of the images, 0..1. clip_norm, learning_rate: of the update.
      autocast: compute in bfloat16 where PyTorch's autocast does. compiled: `torch.compile` the forward passes.
    """

    def __init__(self, peer: Peer, mean, std, smoothing=0.1, clip_norm=5.0, learning_rate=0.0016, *,
                 autocast: bool = False, compiled: bool = False):
        self.peer, self.smoothing, self.clip_norm, self.autocast = peer, smoothing, clip_norm, autocast
        self.device = next(peer.parameters()).device
        self.mean = (255 * torch.tensor(mean, device=self.device)).view(1, 3, 1, 1)
        self.std = (255 * torch.tensor(std, device=self.device)).view(1, 3, 1, 1)
        self.run = torch.compile(peer, dynamic=False) if compiled else peer
        self.optimizer = torch.optim.SGD(peer.parameters(), learning_rate, momentum=0.9, nesterov=True, fused=True)

    def prepare(self, images: torch.Tensor, resolution: int) -> torch.Tensor:
        """uint8 [B, S, S, 3] to normalised float32 [B, 3, R, R], channels last."""
        x = (images.permute(0, 3, 1, 2).float() - self.mean) / self.std
        if resolution != x.shape[-1]:
            x = F.interpolate(x, resolution, mode="bicubic", align_corners=False)
        return x.contiguous(memory_format=torch.channels_last)

    def member(self, images, arch, label=None, targets=None):
        """Forward and backward of one member; its gradient is added to the weights'. Returns its soft predictions.

        Args:
          images: uint8 [B, S, S, 3]. label: int64 [B], for the biggest. targets: [B, classes], for the others.
        """
        cast = torch.autocast(self.device.type, torch.bfloat16) if self.autocast else contextlib.nullcontext()
        with cast:
            logits = self.run(self.prepare(images, arch.resolution), arch).float()
        if targets is None:
            loss = F.cross_entropy(logits, label, label_smoothing=self.smoothing)
        else:
            loss = F.cross_entropy(logits, targets)
        loss.backward()
        return logits.detach().softmax(-1)

    def update(self) -> None:
        torch.nn.utils.clip_grad_norm_(self.peer.parameters(), self.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def __call__(self, images, label, members) -> None:
        """One step on the architectures `members`, the biggest first."""
        first, *others = members
        targets = self.member(images, first, label=label)
        for arch in others:
            self.member(images, arch, targets=targets)
        self.update()


def agreement(gradient: Mapping, soft, peer: PeerStep, images, arch, label=None, targets=None) -> dict[str, float]:
    """The largest differences between our gradient (and soft predictions) and the peer's.

    Args:
      gradient: ours, nested, with a leading axis of one device. soft: our softmax [B, classes], or None: not compared.
      images, label, targets: as for `PeerStep.member`.
    Returns:
      'gradient': by parameter, the norm of the difference over the norm of the peer's gradient; the largest.
      'predictions': of log probabilities, relative to the largest.
    """
    peer.peer.zero_grad(set_to_none=True)
    theirs = peer.member(images, arch, label=label, targets=targets)
    worst = {"gradient": 0.0}
    if soft is not None:
        worst["predictions"] = _difference(np.log(np.asarray(soft)), theirs.log().cpu().numpy())
    scale = math.sqrt(sum(float(p.grad.square().sum()) for p in peer.peer.parameters() if p.grad is not None))
    for name, value in flatten(gradient).items():
        found = peer.peer.weights[name.replace("/", "_")].grad
        value = np.asarray(value)[0]
        found = np.zeros(value.shape) if found is None else to_ours(found)
        # A parameter whose gradient is rounding alone (a bias that batch norm takes out) is held against all of it.
        worst["gradient"] = max(worst["gradient"], _difference(value, found, 1e-3 * scale))
    peer.peer.zero_grad(set_to_none=True)
    return worst


def _difference(a: np.ndarray, b: np.ndarray, floor: float = 1e-6) -> float:
    if a.shape != b.shape:
        return math.inf
    return float(np.linalg.norm(a - b) / max(np.linalg.norm(b), floor))
