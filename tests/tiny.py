"""A tiny space that has everything a large one has, and its weights for both JAX and PyTorch.

Side 26 is 13 behind the stem and meets a pooling of stride 2 there. Widths agree or differ at strides 1 and 2
by the architecture.
"""

import re
import runpy

import jax
import numpy as np
import torch
from flax import nnx
from reference_torch import DATA, Child, slice_state
from torch import nn

from bignas_jax.interop.imports.bignas_names import read_state_dict
from bignas_jax.nets.supernet import Supernet
from bignas_jax.programs.weights import build
from bignas_jax.spaces.mobilenet import SearchSpace, Stage, blocks

CLASSES = 7
PARTS = {"inverted_bottleneck": "expand", "depth_conv": "depthwise", "point_linear": "project"}


def tiny_space(v3_head=False, activation="swish", resolution=(20, 26)) -> SearchSpace:
    stages = (
        Stage("mb1", (8, 16), depth=(1, 2), kernel_size=(3,), expand_ratio=(1,), stride=1, se=False),
        Stage("mb2", (16, 24), depth=(1, 2), kernel_size=(3, 5), expand_ratio=(2, 3), stride=2, se=True),
        Stage("mb3", (24, 32), depth=(1,), kernel_size=(3, 5), expand_ratio=(3, 4), stride=2, se=False),
    )
    return SearchSpace(resolution=resolution, stem_width=(8, 16), stem_stride=2, stages=stages,
                       head_width=(32, 40), v3_head=v3_head, activation=activation)


def disturbed(space):
    """The graphdef of a space's supernet, and fresh weights with noise: no scale is zero."""
    net, params = build(space, CLASSES)
    rng = np.random.default_rng(5)
    return net, jax.tree.map(lambda a: np.asarray(a + rng.normal(0, 0.1, a.shape), np.float32), params)


class Tiny:
    """A space, its supernet's weights under PyTorch's names (`tensors`) and as the supernet takes them.

    No scale is zero, so that every weight has a gradient.
    """

    def __init__(self, **choices):
        self.space = tiny_space(**choices)
        self.tensors = seeded_tensors(self.space)
        self.params, self.statistics = read_state_dict(self.space, self.tensors)
        self.graphdef = graphdef(self.space, CLASSES)

    def child(self, arch) -> tuple[Child, dict[str, torch.Tensor]]:
        """A child in PyTorch and leaves for the supernet's weights, by name."""
        leaves = {name: torch.tensor(a, requires_grad=not name.endswith(("_mean", "_var")))
                  for name, a in self.tensors.items()}
        return Child(self.space, arch, CLASSES), leaves

    def gradients(self, leaves) -> dict:
        """The leaves' gradients, nested as the supernet's parameters; zeros where none came."""
        zeros = {name: np.zeros_like(a) for name, a in self.tensors.items()}
        found = {name: leaf.grad.numpy() for name, leaf in leaves.items() if leaf.grad is not None}
        return self.weights_of(zeros | found)

    def weights_of(self, tensors) -> dict:
        """Tensors by PyTorch's names, nested as the supernet's parameters."""
        return read_state_dict(self.space, tensors)[0]


def run_child(child, leaves, images):
    """Logits of a child on slices of the supernet's leaves, NHWC images."""
    x = torch.tensor(np.asarray(images).transpose(0, 3, 1, 2).copy())
    return torch.func.functional_call(child, slice_state(child, leaves), (x,))


def graphdef(space, classes, dtype="float32"):
    return nnx.graphdef(nnx.eval_shape(lambda: Supernet(space, classes, dtype=dtype, rngs=nnx.Rngs(0))))


def seeded_tensors(space, classes=CLASSES) -> dict[str, np.ndarray]:
    """A supernet's state dict, with a shortcut convolution in the first block of every stage."""
    tensor = runpy.run_path(str(DATA / "seeded_weights.py"))["tensor"]
    biggest = Child(space, space.biggest, classes).state_dict()
    named = {name: tuple(a.shape) for name, a in biggest.items() if not name.endswith("num_batches_tracked")}
    for number, block in enumerate(blocks(space, space.biggest)):
        if block.index == 0:
            named[f"blocks.{number}.shortcut.conv.conv.weight"] = (block.out_width, block.in_width, 1, 1)
    return {name: tensor(name, shape) for name, shape in named.items()}


def norm_statistics(child) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The stored statistics of a child's batch norms, by the supernet's names."""
    found = {}
    for name, module in child.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            block = re.match(r"blocks\.(\d+)\.mobile_inverted_conv\.(\w+)\.", name)
            ours = f"block{block[1]}.{PARTS[block[2]]}" if block else "stem" if "first" in name else "head"
            found[ours] = (module.running_mean.numpy().copy(), module.running_var.numpy().copy())
    return found


def relative_error(found, expected) -> float:
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    assert found.shape == expected.shape
    return float(np.abs(found - expected).max() / max(np.abs(expected).max(), 1e-30))


def flat(tree) -> dict[str, np.ndarray]:
    """A nested tree of arrays by dotted path."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="."): np.asarray(leaf) for path, leaf in leaves}


def assert_close(found, expected, rtol, atol=0.0) -> None:
    """Each leaf within rtol of its own largest value, or atol, whichever is more."""
    found, expected = flat(found), flat(expected)
    assert found.keys() == expected.keys()
    for path, value in expected.items():
        assert found[path].shape == value.shape, path
        error = np.abs(found[path].astype(np.float64) - value).max(initial=0)
        assert error <= max(rtol * np.abs(value).max(initial=0), atol), (path, error, np.abs(value).max())
