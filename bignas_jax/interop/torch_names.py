"""The tensor names of PyTorch-BigNAS and AttentiveNAS checkpoints, read into the supernet's parameters."""

from collections.abc import Iterator, Mapping

import numpy as np

from bignas_jax.space import SearchSpace, blocks

Path = tuple[str | int, ...]


def _depthwise(a: np.ndarray) -> np.ndarray:
    return a[:, 0].transpose(1, 2, 0)  # [C, 1, k, k] -> [k, k, C]


def _dense(a: np.ndarray) -> np.ndarray:
    return a.transpose(2, 3, 1, 0)  # [O, I, k, k] -> [k, k, I, O]


def _matrix(a: np.ndarray) -> np.ndarray:
    return a.reshape(a.shape[:2]).T  # [O, I] or [O, I, 1, 1] -> [I, O]


def _same(a: np.ndarray) -> np.ndarray:
    return a


def _norm(torch_name: str, path: Path) -> Iterator[tuple]:
    yield f"{torch_name}.bn.bn.weight", (*path, "scale"), _same
    yield f"{torch_name}.bn.bn.bias", (*path, "bias"), _same


def _parameters(space: SearchSpace) -> Iterator[tuple]:
    """(PyTorch name, path of the parameter, conversion) of every parameter."""
    yield "first_conv.conv.conv.weight", ("stem", "kernel"), _dense
    yield from _norm("first_conv", ("stem_norm",))
    for number, block in enumerate(blocks(space, space.biggest)):
        conv, ours = f"blocks.{number}.mobile_inverted_conv", ("blocks", number)
        if block.expand_ratio != 1:
            yield f"{conv}.inverted_bottleneck.conv.conv.weight", (*ours, "expand", "kernel"), _matrix
            yield from _norm(f"{conv}.inverted_bottleneck", (*ours, "expand_norm"))
        yield f"{conv}.depth_conv.conv.conv.weight", (*ours, "depthwise", "kernel"), _depthwise
        yield from _norm(f"{conv}.depth_conv", (*ours, "depthwise_norm"))
        if block.se_width:
            for part in ("reduce", "expand"):
                name = f"{conv}.depth_conv.se.fc.{part}"
                yield f"{name}.weight", (*ours, "squeeze_excite", f"{part}_kernel"), _matrix
                yield f"{name}.bias", (*ours, "squeeze_excite", f"{part}_bias"), _same
        yield f"{conv}.point_linear.conv.conv.weight", (*ours, "project", "kernel"), _matrix
        yield from _norm(f"{conv}.point_linear", (*ours, "project_norm"))
        if block.index == 0:
            yield f"blocks.{number}.shortcut.conv.conv.weight", (*ours, "shortcut", "conv", "kernel"), _matrix
    yield from _head(space)
    yield "classifier.linear.linear.weight", ("classifier", "kernel"), _matrix
    yield "classifier.linear.linear.bias", ("classifier", "bias"), _same


def _head(space: SearchSpace) -> Iterator[tuple]:
    first = _head_name(space)
    yield f"{first}.conv.conv.weight", ("head", "kernel"), _matrix
    yield from _norm(first, ("head_norm",))
    if space.v3_head:
        yield "last_conv.feature_mix_layer.conv.conv.weight", ("head_project", "kernel"), _matrix


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
    wanted = list(_parameters(space))
    stored = [(f"{theirs}.bn.bn.running_{kind}", ours) for theirs, ours in _norms(space) for kind in ("mean", "var")]
    missing = [name for name, *_ in wanted + stored if name not in tensors]
    if missing:
        raise ValueError(
            f"state dict: {len(missing)} tensors of this search space are missing: {', '.join(missing[:5])}"
            f"{', ...' if len(missing) > 5 else ''}"
        )
    params: dict = {}
    for name, path, convert in wanted:
        node = params
        for key in path[:-1]:
            node = node.setdefault(key, {})
        node[path[-1]] = np.ascontiguousarray(convert(np.asarray(tensors[name], np.float32)))
    statistics: dict = {}
    for name, ours in stored:
        statistics[ours] = (*statistics.get(ours, ()), np.asarray(tensors[name], np.float32))
    return params, statistics
