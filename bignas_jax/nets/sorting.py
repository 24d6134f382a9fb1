"""Middle channels of blocks in the order of their importance, so that a narrower slice keeps the most important ones.

Once-for-All (Cai et al., 2020, section 3.3) sorts them before smaller expansion ratios are trained. The importance of a
channel is the L1 norm of its row in the projection's kernel. The function of the biggest network stays the same.
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from bignas_jax.nets.slicing import at, put
from bignas_jax.spaces.architecture import Architecture
from bignas_jax.spaces.layers import Layer
from bignas_jax.spaces.space import Space


def sort_channels(space: Space, params: Any, trained: Sequence[Architecture] = ()) -> Any:
    """A supernet's weights with the middle channels of its inverted residual blocks in the order of their importance.

    Each order permutes the outputs of the expansion, its norm, the depthwise convolution, its norm, the squeeze and
    excitation, and the inputs of the projection. The inner units of a squeeze and excitation are sorted likewise, by
    the L1 norm of what leaves them. Blocks without an expansion stay as they are.

    Args:
      space: the search space.
      params: its weights, nested NumPy or JAX arrays; they are not changed.
      trained: smaller architectures that were trained already. Channels do not cross the borders of their slices, so
        that these keep their functions, too.
    Returns:
      NumPy arrays, nested in the same way.
    """
    params = jax.tree.map(np.asarray, params)  # new dictionaries
    narrower = {layer.path: [] for layer in space.layout(space.biggest)}
    for arch in trained:
        for layer in space.layout(arch):
            narrower[layer.path].append(layer)
    for layer in space.layout(space.biggest):
        if {"expand", "depthwise", "project"} <= _convs(layer).keys():
            _sort(layer, params, narrower[layer.path])
    return params


def _convs(layer: Layer) -> dict[str, Any]:
    return {conv.name: conv for conv in layer.convs}


def _sort(layer: Layer, params: Any, narrower: Sequence[Layer]) -> None:
    """Sorts the channels of a block, and the units of its squeeze and excitation, in place."""
    held = at(params, layer.path)
    kernel = held["project"]["kernel"]
    borders = [_convs(other)["project"].in_width for other in narrower if "project" in _convs(other)]
    order = _order(np.abs(kernel).sum(-1), borders)

    def take(path: tuple[str, ...], axis: int, by: np.ndarray) -> None:
        put(held, path, np.take(at(held, path), by, axis))

    for name in ("expand", "depthwise"):
        take((name, "kernel"), -1, order)
        take((f"{name}_norm", "scale"), 0, order)
        take((f"{name}_norm", "bias"), 0, order)
    take(("project", "kernel"), 0, order)
    if "squeeze_excite" in held:
        take(("squeeze_excite", "reduce_kernel"), 0, order)
        take(("squeeze_excite", "expand_kernel"), 1, order)
        take(("squeeze_excite", "expand_bias"), 0, order)
        borders = [conv.squeeze for other in narrower for conv in other.convs if conv.squeeze]
        units = _order(np.abs(held["squeeze_excite"]["expand_kernel"]).sum(-1), borders)
        take(("squeeze_excite", "reduce_kernel"), 1, units)
        take(("squeeze_excite", "reduce_bias"), 0, units)
        take(("squeeze_excite", "expand_kernel"), 0, units)


def _order(importance: np.ndarray, borders: Sequence[int]) -> np.ndarray:
    """Positions by falling importance, inside each of the groups that end at the borders."""
    group = np.searchsorted(sorted(set(borders)), np.arange(len(importance)), side="right")
    return np.lexsort((np.arange(len(importance)), -importance, group))
