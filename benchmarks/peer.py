"""The peer of the benchmarks: the same supernet in plain PyTorch, as eager systems run it.

Weights are sliced in the forward pass (as views), images are channels last, and nothing is masked or skipped. Each
member of a sandwich step runs at its exact size. All weights are views of one buffer, and so are all gradients, so that
the update is a few operations. The peer shares only the search space's values with bignas_jax, and no other code.
`agreement` compares its logits and gradients with ours on the same weights, and `noise` compares gradients in bfloat16.
No benchmark times anything before these checks.
"""

import contextlib
import math
import os
from collections.abc import Mapping
from typing import Any

# oneDNN keeps 1024 compiled primitives by default. A few architectures need more. It reads this variable when it loads.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "16384")

import jax  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from torch import nn  # noqa: E402
from torch.utils.checkpoint import checkpoint  # noqa: E402

from bignas_jax.spaces.architecture import Architecture  # noqa: E402
from bignas_jax.spaces.mobilenet import SearchSpace, blocks, head_mid_width  # noqa: E402

ACTIVATIONS = {"swish": F.silu, "h_swish": F.hardswish, "relu": F.relu}
ALIGNMENT = 16  # numbers, so that a weight begins on a cache line
# The fields of config.sandwich that the step has, and no others: the paper's loss, students as heavy as the biggest.
TRAINED = {"loss": "soft_cross_entropy", "student_weight": 1.0, "student_start": 0.0, "student_ramp": 0.0}
PART = 4096  # numbers of the gradient whose squares are summed at once
# Limits in bfloat16, (factor, addend). Our gradient's distance from the exact gradient may be this factor times the
# peer's distance, plus the addend. The first pair is for all parameters together. The second is for one parameter.
# The peer may be near the exact gradient of one parameter by chance, so its distance over all parameters may count.
WHOLE, PARAMETER = (1.5, 0.01), (4.0, 0.02)


def torch_device() -> str:
    """PyTorch's name of the device that JAX computes on.

    Raises:
      SystemExit: PyTorch has no such device.
    """
    backend = jax.default_backend()
    if backend == "cpu":
        return "cpu"
    if backend != "gpu" or not torch.cuda.is_available():
        raise SystemExit(f"JAX runs on {backend}, where PyTorch {torch.__version__} has no device: there is no peer to "
                         "compare with (JAX_PLATFORMS=cpu compares on the CPU)")
    return "cuda"


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
    """Nested mappings as one mapping, with keys joined by '/'."""
    flat = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}{key}/") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def _first(array: torch.Tensor, *sizes: int) -> torch.Tensor:
    """The first `sizes` entries of the leading axes: the array itself if that is all of it."""
    for axis, size in enumerate(sizes):
        if size != array.shape[axis]:
            array = array.narrow(axis, 0, size)
    return array


class Peer(nn.Module):
    """All weights of `space`. The forward pass takes the architecture to run.

    Args:
      space: the search space.
      params: our weights, nested.
      pointwise: how a 1x1 convolution is computed: 'conv' (F.conv2d) or 'linear' (a matrix product over channels-last
        images).
      device: PyTorch's name of the device.
      dtype: of the weights, and of what is computed without autocast.
    Attributes:
      flat: all weights, first the kernels, then the others.
      flat_grad: all gradients, in the same order.
      num_decayed: how many numbers the kernels have.
      recompute: True computes activations inside blocks again in the backward pass, instead of keeping them.
    """

    def __init__(self, space: SearchSpace, params: Mapping, pointwise: str = "conv", device: str = "cpu",
                 dtype: torch.dtype = torch.float32):
        super().__init__()
        self.space, self.pointwise, self.recompute = space, pointwise, False
        self.activation = ACTIVATIONS[space.activation]
        arrays = {name: to_torch(np.asarray(value)) for name, value in flatten(params).items()}
        names = sorted(arrays, key=lambda name: not name.endswith("kernel"))
        starts, size, self.num_decayed = {}, 0, 0
        for name in names:
            starts[name] = size
            size += -(-arrays[name].numel() // ALIGNMENT) * ALIGNMENT
            self.num_decayed = size if name.endswith("kernel") else self.num_decayed
        size = -(-size // PART) * PART
        self.flat, self.flat_grad = (torch.zeros(size, dtype=dtype, device=device) for _ in range(2))
        weights = {}
        for name, array in arrays.items():
            part = slice(starts[name], starts[name] + array.numel())
            self.flat[part] = array.flatten()
            weights[name.replace("/", "_")] = weight = nn.Parameter(self.flat[part].view(array.shape))
            weight.grad = self.flat_grad[part].view(array.shape)
        self.weights = nn.ParameterDict(weights)
        self._positions = {(b.stage, b.index): number for number, b in enumerate(blocks(space, space.biggest))}

    def forward(self, images: torch.Tensor, arch: Architecture) -> torch.Tensor:
        """Normalised images [B, 3, R, R], channels last, to logits [B, num_classes], on the batch's own statistics."""
        x = F.conv2d(images, self._weight("stem/conv/kernel", arch.width[0]), stride=self.space.stem_stride, padding=1)
        x = self.activation(self._norm(x, "stem/conv_norm"))
        for block in blocks(self.space, arch):
            name = f"blocks/{self._positions[block.stage, block.index]}"
            if self.recompute:
                x = checkpoint(self._block, x, block, name, use_reentrant=False)
            else:
                x = self._block(x, block, name)
        mid = head_mid_width(arch) if self.space.v3_head else arch.width[-1]
        x = self.activation(self._norm(self._pointwise(x, "head/conv", mid), "head/conv_norm"))
        x = x.mean((2, 3), keepdim=True)
        if self.space.v3_head:
            x = self.activation(self._pointwise(x, "head_project/conv", arch.width[-1]))
        x = x.flatten(1)
        bias = self._weight("classifier/conv/bias")
        return F.linear(x, self._weight("classifier/conv/kernel", len(bias), x.shape[1]), bias)

    def _weight(self, name: str, *sizes: int) -> torch.Tensor:
        return _first(self.weights[name.replace("/", "_")], *sizes)

    def _norm(self, x, name):
        scale, bias = (self._weight(f"{name}/{part}", x.shape[1]) for part in ("scale", "bias"))
        return F.batch_norm(x, None, None, scale, bias, training=True, eps=1e-5)

    def _pointwise(self, x, name, features):
        weight = self._weight(f"{name}/kernel", features, x.shape[1])
        if self.pointwise == "linear":
            return F.linear(x.permute(0, 2, 3, 1), weight).permute(0, 3, 1, 2)
        return F.conv2d(x, weight[:, :, None, None])

    def _block(self, x, block, name):
        y = x
        if block.expand_ratio != 1:
            y = self._pointwise(y, f"{name}/expand", block.mid_width)
            y = self.activation(self._norm(y, f"{name}/expand_norm"))
        kernel = self._weight(f"{name}/depthwise/kernel", block.mid_width)
        border = (kernel.shape[-1] - block.kernel_size) // 2
        if border:
            kernel = kernel[:, :, border:-border, border:-border]
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
        reduce = self._weight(f"{name}/reduce_kernel", squeezed, x.shape[1])
        hidden = F.relu(F.linear(mean, reduce, self._weight(f"{name}/reduce_bias", squeezed)))
        expand = self._weight(f"{name}/expand_kernel", x.shape[1], squeezed)
        gate = F.hardsigmoid(F.linear(hidden, expand, self._weight(f"{name}/expand_bias", x.shape[1])))
        return x * gate[:, :, None, None]


class PeerStep:
    """A sandwich step of the peer: the forward and backward passes of its members, one by one, then the clip and SGD.

    Args:
      peer: the supernet.
      mean: the images' mean, by channel, 0..1.
      std: the images' standard deviation, by channel, 0..1.
      smoothing: label smoothing of the biggest member.
      clip_norm: the norm that the gradient is clipped to; 0: it is not.
      learning_rate: of SGD.
      weight_decay: of SGD, on kernels alone.
      autocast: whether PyTorch's autocast computes in bfloat16.
      compiled: whether `torch.compile` compiles the forward passes.
    """

    def __init__(self, peer: Peer, mean, std, smoothing=0.1, clip_norm=5.0, learning_rate=0.0016, weight_decay=0.0, *,
                 autocast: bool = False, compiled: bool = False):
        self.peer, self.smoothing, self.clip_norm, self.autocast = peer, smoothing, clip_norm, autocast
        self.device = peer.flat.device
        self.mean = (255 * torch.tensor(mean, device=self.device)).view(1, 3, 1, 1)
        self.std = (255 * torch.tensor(std, device=self.device)).view(1, 3, 1, 1)
        self.run = torch.compile(peer, dynamic=False) if compiled else peer
        groups = []
        for part, decay in ((slice(peer.num_decayed), weight_decay), (slice(peer.num_decayed, None), 0.0)):
            weights = nn.Parameter(peer.flat[part])
            weights.grad = peer.flat_grad[part]
            groups.append({"params": [weights], "weight_decay": decay})
        self.optimizer = torch.optim.SGD(groups, learning_rate, momentum=0.9, nesterov=True, fused=True)

    def prepare(self, images: torch.Tensor, resolution: int) -> torch.Tensor:
        """uint8 [B, S, S, 3] to normalised float32 [B, 3, R, R], channels last."""
        x = (images.permute(0, 3, 1, 2).to(self.peer.flat.dtype) - self.mean) / self.std
        if resolution != x.shape[-1]:
            x = F.interpolate(x, resolution, mode="bicubic", align_corners=False)
        return x.contiguous(memory_format=torch.channels_last)

    def cast(self) -> contextlib.AbstractContextManager:
        """The context of a forward pass: PyTorch's autocast, if it is on."""
        return torch.autocast(self.device.type, torch.bfloat16) if self.autocast else contextlib.nullcontext()

    def member(self, images, arch, label=None, targets=None):
        """The forward and backward pass of one member. Adds its gradient to the weights' and returns soft predictions.

        Args:
          images: uint8 [B, S, S, 3].
          arch: the member's architecture.
          label: int64 [B], for the biggest.
          targets: [B, classes], for the others.
        """
        with self.cast():
            logits = self.run(self.prepare(images, arch.resolution), arch).to(self.peer.flat.dtype)
        if targets is None:
            loss = F.cross_entropy(logits, label, label_smoothing=self.smoothing)
        else:
            loss = F.cross_entropy(logits, targets)
        loss.backward()
        return logits.detach().softmax(-1)

    def update(self) -> None:
        """Clips the gradient, makes the update of SGD, and clears the gradient."""
        grad = self.peer.flat_grad
        if self.clip_norm:
            # In parts: in one piece, PyTorch's sum over 10 million float32 numbers on a CPU is wrong by 4e-4.
            norm = torch.linalg.vector_norm(torch.linalg.vector_norm(grad.view(-1, PART), dim=1))
            grad.mul_((self.clip_norm / norm).clamp(max=1.0))
        self.optimizer.step()
        grad.zero_()

    def gradient(self, images, arch, label=None, targets=None, exact=False) -> tuple[dict[str, np.ndarray], Any]:
        """The gradient of one member alone, by parameter in our layout, and its soft predictions.

        Args:
          images: uint8 [B, S, S, 3].
          arch: the member's architecture.
          label: int64 [B], for the biggest.
          targets: [B, classes], for the others.
          exact: True computes in float32, whatever the step's dtype, and with little memory.
        """
        kept = self.autocast, self.run
        if exact:
            self.autocast, self.run, self.peer.recompute = False, self.peer, True
        self.peer.flat_grad.zero_()
        soft = self.member(images, arch, label=label, targets=targets)
        weights = self.peer.weights
        # A copy: `to_ours` gives views on CPUs.
        found = {name: np.array(to_ours(weights[name].grad)) for name in weights}
        self.peer.flat_grad.zero_()
        (self.autocast, self.run), self.peer.recompute = kept, False
        return found, soft.cpu().numpy()

    def __call__(self, images, label, members) -> None:
        """Makes one step on the architectures `members`, the biggest first."""
        first, *others = members
        targets = self.member(images, first, label=label)
        for arch in others:
            self.member(images, arch, targets=targets)
        self.update()


def agreement(gradient: Mapping, soft, peer: PeerStep, images, arch, label=None, targets=None) -> dict[str, float]:
    """The largest differences between our gradient (and soft predictions) and the peer's.

    Args:
      gradient: our gradient, nested, with a leading axis of one device.
      soft: our softmax [B, classes]; None is not compared.
      peer: the peer's step.
      images: uint8 [B, S, S, 3].
      arch: the member's architecture.
      label: int64 [B], for the biggest.
      targets: [B, classes], for the others.
    Returns:
      gradient: the largest, over parameters, of the difference's norm over the norm of the peer's gradient.
      predictions: the largest difference of log probabilities, relative to the largest of them.
    """
    exact, theirs = peer.gradient(images, arch, label=label, targets=targets)
    worst = {"gradient": max(_distances(_ours(gradient), exact).values())}
    if soft is not None:
        worst["predictions"] = _difference(np.log(np.asarray(soft)), np.log(theirs))
    return worst


def noise(gradient: Mapping, peer: PeerStep, images, arch, label=None, targets=None) -> dict[str, float]:
    """The distance of our bfloat16 gradient from the exact one, over the distance that is allowed: up to 1 is right.

    The exact gradient is the peer's in float32. The peer's own gradient in bfloat16 shows the effect of rounding alone.

    The arguments are those of `agreement`.

    Returns:
      gradient: our distance over the one that WHOLE allows, for all parameters together.
      parameter: the largest of the parameters' distances over the one that PARAMETER allows.
      ours: our distance, for all parameters together.
      theirs: the peer's distance, for all parameters together.
    """
    exact, _ = peer.gradient(images, arch, label=label, targets=targets, exact=True)
    theirs, _ = peer.gradient(images, arch, label=label, targets=targets)
    mine = _ours(gradient)
    our_parts, their_parts = (_distances(found, exact) for found in (mine, theirs))
    ours, whole = (_difference(_joined(found, exact), _joined(exact, exact)) for found in (mine, theirs))
    over = (our_parts[name] / (PARAMETER[0] * max(their_parts[name], whole) + PARAMETER[1]) for name in exact)
    return {"gradient": ours / (WHOLE[0] * whole + WHOLE[1]), "parameter": max(over), "ours": ours, "theirs": whole}


def _joined(arrays: Mapping[str, np.ndarray], names) -> np.ndarray:
    return np.concatenate([arrays[name].ravel() for name in names])


def _ours(gradient: Mapping) -> dict[str, np.ndarray]:
    """Our gradient by the peer's names, without the axis of devices."""
    return {name.replace("/", "_"): np.asarray(value, np.float32)[0] for name, value in flatten(gradient).items()}


def _distances(found: Mapping[str, np.ndarray], exact: Mapping[str, np.ndarray]) -> dict[str, float]:
    """The norm of the difference over the norm of the exact gradient, by parameter."""
    if found.keys() != exact.keys():
        raise ValueError(f"found parameters {sorted(found.keys() ^ exact.keys())} on one side only")
    # The gradient of some parameters is rounding alone, such as a bias that batch norm removes. The norm of the whole
    # gradient sets a floor for them.
    floor = 1e-3 * math.sqrt(sum(float(np.sum(np.square(g))) for g in exact.values()))
    return {name: _difference(found[name], exact[name], floor) for name in exact}


def _difference(a: np.ndarray, b: np.ndarray, floor: float = 1e-6) -> float:
    if a.shape != b.shape:
        return math.inf
    return float(np.linalg.norm(a - b) / max(np.linalg.norm(b), floor))
