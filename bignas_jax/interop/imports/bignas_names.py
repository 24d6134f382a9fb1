"""The tensor names of PyTorch-BigNAS and AttentiveNAS checkpoints, read into the supernet's parameters."""

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping

import numpy as np

from bignas_jax.spaces.mobilenet import Block, SearchSpace, blocks, head_mid_width

Path = tuple[str | int, ...]
Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Parameter:
    """One tensor under PyTorch's name and in its shape, the parameter that it becomes, and how."""

    name: str
    shape: Shape
    path: Path
    convert: Callable[[np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Account:
    """Every tensor of a state dict, held against a search space.

    Attributes:
      missing: name to shape of what the space needs and is not there. unexpected: name to shape of what is there and
        is not in the space. misshapen: name to (found, expected).
      idle: names of the shortcut convolutions inside stages, which the released code registers but never runs.
    """

    missing: Mapping[str, Shape]
    unexpected: Mapping[str, Shape]
    misshapen: Mapping[str, tuple[Shape, Shape]]
    idle: tuple[str, ...]

    @property
    def fits(self) -> bool:
        return not (self.missing or self.unexpected or self.misshapen)


def _depthwise(a: np.ndarray) -> np.ndarray:
    return a[:, 0].transpose(1, 2, 0)  # [C, 1, k, k] -> [k, k, C]


def _dense(a: np.ndarray) -> np.ndarray:
    return a.transpose(2, 3, 1, 0)  # [O, I, k, k] -> [k, k, I, O]


def _matrix(a: np.ndarray) -> np.ndarray:
    return a.reshape(a.shape[:2]).T  # [O, I] or [O, I, 1, 1] -> [I, O]


def _same(a: np.ndarray) -> np.ndarray:
    return a


def _norm(torch_name: str, path: Path, width: int) -> Iterator[Parameter]:
    yield Parameter(f"{torch_name}.bn.bn.weight", (width,), (*path, "scale"), _same)
    yield Parameter(f"{torch_name}.bn.bn.bias", (width,), (*path, "bias"), _same)


def _pointwise(torch_name: str, in_width: int, out_width: int, path: Path) -> Parameter:
    return Parameter(f"{torch_name}.weight", (out_width, in_width, 1, 1), path, _matrix)


def _parameters(space: SearchSpace, num_classes: int) -> Iterator[Parameter]:
    stem, head = space.biggest.width[0], space.biggest.width[-1]
    yield Parameter("first_conv.conv.conv.weight", (stem, 3, 3, 3), ("stem", "kernel"), _dense)
    yield from _norm("first_conv", ("stem_norm",), stem)
    for number, block in enumerate(blocks(space, space.biggest)):
        yield from _block(number, block)
    yield from _head(space)
    yield Parameter("classifier.linear.linear.weight", (num_classes, head), ("classifier", "kernel"), _matrix)
    yield Parameter("classifier.linear.linear.bias", (num_classes,), ("classifier", "bias"), _same)


def _block(number: int, block: Block) -> Iterator[Parameter]:
    conv, ours, mid = f"blocks.{number}.mobile_inverted_conv", ("blocks", number), block.mid_width
    if block.expand_ratio != 1:
        name = f"{conv}.inverted_bottleneck"
        yield _pointwise(f"{name}.conv.conv", block.in_width, mid, (*ours, "expand", "kernel"))
        yield from _norm(name, (*ours, "expand_norm"), mid)
    shape = (mid, 1, block.kernel_size, block.kernel_size)
    yield Parameter(f"{conv}.depth_conv.conv.conv.weight", shape, (*ours, "depthwise", "kernel"), _depthwise)
    yield from _norm(f"{conv}.depth_conv", (*ours, "depthwise_norm"), mid)
    if block.se_width:
        for part, widths in (("reduce", (mid, block.se_width)), ("expand", (block.se_width, mid))):
            name, path = f"{conv}.depth_conv.se.fc.{part}", (*ours, "squeeze_excite")
            yield _pointwise(name, *widths, (*path, f"{part}_kernel"))
            yield Parameter(f"{name}.bias", widths[1:], (*path, f"{part}_bias"), _same)
    yield _pointwise(f"{conv}.point_linear.conv.conv", mid, block.out_width, (*ours, "project", "kernel"))
    yield from _norm(f"{conv}.point_linear", (*ours, "project_norm"), block.out_width)
    if block.index == 0:
        yield _shortcut(number, block)


def _shortcut(number: int, block: Block) -> Parameter:
    path = ("blocks", number, "shortcut", "conv", "kernel")
    return _pointwise(f"blocks.{number}.shortcut.conv.conv", block.in_width, block.out_width, path)


def _head(space: SearchSpace) -> Iterator[Parameter]:
    first, (last, head) = _head_name(space), space.biggest.width[-2:]
    mid = head_mid_width(space.biggest) if space.v3_head else head
    yield _pointwise(f"{first}.conv.conv", last, mid, ("head", "kernel"))
    yield from _norm(first, ("head_norm",), mid)
    if space.v3_head:
        yield _pointwise("last_conv.feature_mix_layer.conv.conv", mid, head, ("head_project", "kernel"))


def _head_name(space: SearchSpace) -> str:
    return "last_conv.final_expand_layer" if space.v3_head else "last_conv"


def _norms(space: SearchSpace) -> Iterator[tuple[str, str]]:
    """(PyTorch name of a batch norm's layer, our name of its statistics)."""
    yield "first_conv", "stem"
    parts = {"inverted_bottleneck": "expand", "depth_conv": "depthwise", "point_linear": "project"}
    for number, block in enumerate(blocks(space, space.biggest)):
        for theirs, ours in parts.items():
            if ours != "expand" or block.expand_ratio != 1:
                yield f"blocks.{number}.mobile_inverted_conv.{theirs}", f"block{number}.{ours}"
    yield _head_name(space), "head"


def released_name(name: str) -> str:
    """A tensor's name without the prefixes of wrappers, of a block's two names the one used here."""
    return re.sub(r"^(blocks\.\d+)\.conv\.", r"\1.mobile_inverted_conv.", re.sub(r"^((module|_orig_mod)\.)+", "", name))


def expected_shapes(space: SearchSpace, num_classes: int) -> dict[str, Shape]:
    """Name to shape of all tensors that a state dict of this space must have."""
    shapes = {parameter.name: parameter.shape for parameter in _parameters(space, num_classes)}
    for name, _ in _norms(space):
        for kind in ("mean", "var"):
            shapes[f"{name}.bn.bn.running_{kind}"] = shapes[f"{name}.bn.bn.weight"]
    return shapes


def account(space: SearchSpace, num_classes: int, found: Mapping[str, Shape]) -> Account:
    """Holds tensors, as name to shape, against the space. Names as `released_name` gives them."""
    needed = expected_shapes(space, num_classes)
    layout = enumerate(blocks(space, space.biggest))
    idle = {p.name: p.shape for p in (_shortcut(number, block) for number, block in layout if block.index)}
    known = needed | idle
    return Account(
        missing={name: shape for name, shape in needed.items() if name not in found},
        unexpected={name: shape for name, shape in found.items() if name not in known},
        misshapen={name: (found[name], shape) for name, shape in known.items() if found.get(name, shape) != shape},
        idle=tuple(name for name in idle if name in found),
    )


def read_state_dict(space: SearchSpace, tensors: Mapping[str, np.ndarray]) -> tuple[dict, dict]:
    """Parameters and batch-norm statistics from a PyTorch supernet's state dict.

    Args:
      space: the search space that the checkpoint was trained on.
      tensors: arrays by the names of a released checkpoint. Shortcut convolutions inside a stage, which that code
        registers but never runs, are passed over.
    Returns:
      params, nested as `supernet.build` gives them, and statistics, as `Supernet.__call__` takes them (those that
      were stored for the biggest architecture).
    Raises:
      ValueError: tensors are missing; the message lists the first ones.
    """
    # Shapes are not looked at here (see `account`), so that the number of classes does not matter.
    wanted = list(_parameters(space, num_classes=0))
    stored = [(f"{theirs}.bn.bn.running_{kind}", ours) for theirs, ours in _norms(space) for kind in ("mean", "var")]
    missing = [name for name in [p.name for p in wanted] + [name for name, _ in stored] if name not in tensors]
    if missing:
        raise ValueError(
            f"state dict: {len(missing)} tensors of this search space are missing: {', '.join(missing[:5])}"
            f"{', ...' if len(missing) > 5 else ''}"
        )
    params: dict = {}
    for parameter in wanted:
        node = params
        for key in parameter.path[:-1]:
            node = node.setdefault(key, {})
        array = np.asarray(tensors[parameter.name], np.float32)
        node[parameter.path[-1]] = np.ascontiguousarray(parameter.convert(array))
    statistics: dict = {}
    for name, ours in stored:
        statistics[ours] = (*statistics.get(ours, ()), np.asarray(tensors[name], np.float32))
    return params, statistics
