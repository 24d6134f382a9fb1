"""The bytes that the peer (benchmarks/peer.py) moves on a GPU in eager PyTorch, counted on fake tensors.

    python benchmarks/gpu/eager.py --space bignas --batch 80 --dtype bfloat16 --steps 200 --json FILE

Every operation of eager PyTorch is a kernel of its own. It reads its operands and writes its results once; a view does
nothing. Batch norm reads its input twice, for the moments and to normalise, and so does its gradient. A convolution's
gradient is two kernels: one reads the gradient and the weights, the other reads the gradient and the input. Autocast is
on for bfloat16, and images are channels last. Fake tensors have shapes, dtypes and a device, but no memory, so that
this runs without a GPU.
"""

import argparse
import importlib
import json
import math
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import torch  # noqa: E402
from torch._subclasses.fake_tensor import FakeTensorMode  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402
from torch.utils._pytree import tree_leaves  # noqa: E402

from benchmarks.gpu.sources import peer_sources  # noqa: E402
from benchmarks.peer import Peer, PeerStep  # noqa: E402
from bignas_jax.config.options import Options  # noqa: E402
from bignas_jax.spaces.architecture import Architecture  # noqa: E402
from bignas_jax.spaces.layers import weights  # noqa: E402
from bignas_jax.spaces.mobilenet import SearchSpace  # noqa: E402
from bignas_jax.step.members.sandwich import Sandwich  # noqa: E402
from bignas_jax.step.recipe import Recipe  # noqa: E402

# Operations that only make another view of their operand, or are no kernel.
FREE = {
    "view", "_unsafe_view", "permute", "transpose", "t", "expand", "slice", "select", "detach", "alias", "as_strided",
    "unsqueeze", "squeeze", "narrow", "reshape", "lift_fresh", "split", "chunk", "empty", "empty_like", "new_empty",
    "empty_strided", "set_", "is_same_size", "_local_scalar_dense", "unbind",
}  # fmt: skip
NORMS = ("native_batch_norm", "cudnn_batch_norm", "_batch_norm_with_update", "_native_batch_norm_legit", "batch_norm",
         "_batch_norm_with_update_functional", "_native_batch_norm_legit_no_stats")  # fmt: skip
NORM_GRADIENTS = ("native_batch_norm_backward", "cudnn_batch_norm_backward", "batch_norm_backward")


def size(*trees) -> int:
    """Bytes of all tensors in some nested lists. What a tensor repeats by a stride of 0 lies in memory once."""
    tensors = (t for t in tree_leaves(trees) if isinstance(t, torch.Tensor))
    return sum(
        t.element_size() * math.prod(length for length, stride in zip(t.shape, t.stride(), strict=True) if stride)
        for t in tensors
    )


def moved(name: str, args, kwargs, out) -> int:
    """Bytes that the kernels of one operation read and write."""
    if name in NORMS:
        return size(args, kwargs, out) + size(args[0])
    if name in NORM_GRADIENTS:  # of (gradient, input, ...): the sums read both, and so does the input's gradient
        return size(args, kwargs, out) + size(args[0], args[1])
    if name == "convolution_backward":
        grad, x, weight = args[:3]
        dx, d_weight, d_bias = out
        read = (size(grad, weight) if dx is not None else 0) + (size(grad, x) if d_weight is not None else 0)
        return read + (size(grad) if d_bias is not None else 0) + size(out)
    if name == "_fused_sgd_":  # of (weights, gradients, momentum, ...); it writes the first and the last of them
        return size(args[:3]) + size(args[0], args[2])
    if name in ("zero_", "fill_"):
        return size(out)
    return size(args, kwargs, out)


class Counting(TorchDispatchMode):
    """Counts the operations that run inside it.

    Attributes:
      bytes: bytes that they read and write.
      kernels: how many there were.
      by_operation: [bytes, count] by the operation's name.
    """

    def __init__(self):
        super().__init__()
        self.bytes = self.kernels = 0
        self.by_operation: dict[str, list[int]] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if func.namespace == "aten" and name not in FREE and not func.is_view:
            found = moved(name, args, kwargs, out)
            self.bytes, self.kernels = self.bytes + found, self.kernels + 1
            entry = self.by_operation.setdefault(name, [0, 0])
            entry[0], entry[1] = entry[0] + found, entry[1] + 1
        return out


class Eager:
    """The peer's step on fake tensors.

    They say that they are on the CPU: autograd asks for a driver where fake tensors say that they are on a GPU. The
    operations are the same, and so are the types that autocast gives them.

    Args:
      space: the name of a recipe in configs/.
      batch: images.
      dtype: 'bfloat16' (autocast) or 'float32'.
    Attributes:
      space: its search space.
    """

    def __init__(self, space: str, batch: int, dtype: str):
        config = importlib.import_module(f"configs.{space}").get_config()
        config.model.dropout = config.model.drop_connect = 0.0
        self.space, classes = SearchSpace.from_config(config.space), config.model.num_classes
        self.members = Sandwich(self.space, Recipe.of(Options.of(config)))
        side, data, rule = config.data.image_size, config.data, config.optimizer
        self._fake = FakeTensorMode(allow_non_fake_inputs=True)
        with self._fake:
            peer = Peer(self.space, self._params(classes))
            smoothing, autocast = config.sandwich.label_smoothing, dtype == "bfloat16"
            self._step = PeerStep(peer, data.mean, data.std, smoothing, rule.clip_norm,
                                  weight_decay=rule.weight_decay, autocast=autocast)  # fmt: skip
            self._images = torch.empty(batch, side, side, 3, dtype=torch.uint8)
            self._labels = torch.empty(batch, dtype=torch.int64)
            self._targets = torch.empty(batch, classes)

    def member(self, arch: Architecture, first: bool = False) -> Counting:
        """What the forward and backward pass of one member moves; only the first learns from labels."""
        targets = {"label": self._labels} if first else {"targets": self._targets}
        with self._fake, Counting() as found:
            self._step.member(self._images, arch, **targets)
        return found

    def update(self) -> Counting:
        """What the clip and the update move."""
        with self._fake, Counting() as found:
            self._step.update()
        return found

    def forward(self, arch: Architecture) -> Counting:
        """What one forward pass of an architecture moves, as when it is scored."""
        with self._fake, torch.no_grad(), Counting() as found, self._step.cast():
            self._step.run(self._step.prepare(self._images, arch.resolution), arch)
        return found

    def _params(self, classes: int) -> dict:
        params: dict = {}
        for weight in weights(self.space.layout(self.space.biggest, classes)):
            *way, last = weight.path
            place = params
            for key in way:
                place = place.setdefault(key, {})
            place[last] = np.zeros(weight.shape, np.float32)
        return params


def summary(space: str, batch: int, dtype: str, steps: int) -> dict:
    """The peer's bytes and operations: of the biggest, the smallest, the update, and of every random member."""
    eager = Eager(space, batch, dtype)
    # The first pass makes tensors that later ones find; so nothing is counted in it.
    eager.member(eager.space.smallest)
    parts = {
        "biggest": eager.member(eager.space.biggest, first=True),
        "smallest": eager.member(eager.space.smallest),
        "update": eager.update(),
    }
    found = {name: {"bytes": part.bytes, "kernels": part.kernels} for name, part in parts.items()}
    drawn = [arch for number in range(steps) for arch in eager.members.architectures(number)[1:-1]]
    random = [eager.member(arch) for arch in drawn]
    found["random"] = {"bytes": [part.bytes for part in random], "kernels": [part.kernels for part in random]}
    about = {"space": space, "batch": batch, "dtype": dtype, "steps": steps, "torch": torch.__version__,
             "sources": peer_sources()}  # fmt: skip
    return about | {"programs": found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--space", default="bignas")
    parser.add_argument("--batch", type=int, default=80, help="images")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--steps", type=int, default=200, help="drawn steps")
    parser.add_argument("--json", help="file to write the counts to")
    args = parser.parse_args()
    found = summary(args.space, args.batch, args.dtype, args.steps)
    if args.json:
        pathlib.Path(args.json).write_text(json.dumps(found) + "\n")
    for name, part in found["programs"].items():
        count, kernels = (np.mean(part[key]) for key in ("bytes", "kernels"))
        print(f"{name}: {count / 1e9:.2f} GB, {kernels:.0f} operations")


if __name__ == "__main__":
    main()
