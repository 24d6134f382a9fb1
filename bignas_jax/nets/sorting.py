"""Middle channels of blocks in the order of their importance, so that a narrower slice keeps the most important ones.

Once-for-All (Cai et al., 2020, section 3.3) sorts them before smaller expansion ratios are trained. The importance of a
channel is the L1 norm of what leaves it: of its row in the kernel that takes it in. The function of the biggest network
stays the same.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import jax
import numpy as np

from bignas_jax.nets.slicing import at, put
from bignas_jax.spaces.architecture import Architecture
from bignas_jax.spaces.layers import Layer
from bignas_jax.spaces.nesting import middle_widths, narrower
from bignas_jax.spaces.space import Space


def sort_for(space: Space, params: Any, before: Space) -> Any:
    """A supernet's weights, with sorted channels where blocks can be narrower than they were trained to be.

    Args:
      space: the space that is trained from now on.
      params: the weights of its supernet.
      before: the part of the space that the weights were trained in. All its architectures keep their functions.
    Returns:
      The weights of `sort_channels`, or `params` themselves where no block gets a new number of middle channels.
    """
    if middle_widths(space) == middle_widths(before):
        return params
    return sort_channels(space, params, narrower(before))


def sort_channels(space: Space, params: Any, trained: Iterable[Architecture] = ()) -> Any:
    """A supernet's weights with the middle channels of its blocks in the order of their importance.

    In an inverted residual block an order permutes the outputs of the expansion, its norm, the depthwise convolution,
    its norm, the squeeze and excitation, and the inputs of the projection. The inner units of a squeeze and excitation
    are sorted likewise, by the L1 norm of what leaves them. In a bottleneck, the channels before and after the middle
    convolution are sorted each on their own. Blocks without an expansion stay as they are.

    Args:
      space: the search space.
      params: its weights, nested NumPy or JAX arrays; they are not changed.
      trained: smaller architectures that were trained already. Channels do not cross the borders of their slices, so
        that these keep their functions, too.
    Returns:
      NumPy arrays, nested in the same way.
    """
    params = jax.tree.map(np.asarray, params)  # new dictionaries
    own = {layer.path: [] for layer in space.layout(space.biggest)}
    for arch in trained:
        for layer in space.layout(arch):
            own[layer.path].append(layer)
    for layer in space.layout(space.biggest):
        names = {conv.name for conv in layer.convs}
        for parts, sort in ((_INVERTED, _sort_inverted), (_BOTTLENECK, _sort_bottleneck)):
            if names >= parts:
                sort(at(params, layer.path), own[layer.path])
    return params


_INVERTED, _BOTTLENECK = {"expand", "depthwise", "project"}, {"reduce", "middle", "expand"}


def _sort_inverted(held: dict, narrower: Sequence[Layer]) -> None:
    """Sorts the channels of an inverted residual block, and the units of its squeeze and excitation, in place.

    Args:
      held: the block's weights.
      narrower: the block in architectures that are trained already.
    """
    borders = [layer.sizes["mid"] for layer in narrower]
    order = _order(np.abs(held["project"]["kernel"]).sum(-1), borders)
    for name in ("expand", "depthwise"):
        _take_outputs(held, name, order)
    _take(held, ("project", "kernel"), 0, order)
    if "squeeze_excite" in held:
        _take(held, ("squeeze_excite", "reduce_kernel"), 0, order)
        _take(held, ("squeeze_excite", "expand_kernel"), 1, order)
        _take(held, ("squeeze_excite", "expand_bias"), 0, order)
        borders = [conv.squeeze for layer in narrower for conv in layer.convs if conv.squeeze]
        units = _order(np.abs(held["squeeze_excite"]["expand_kernel"]).sum(-1), borders)
        _take(held, ("squeeze_excite", "reduce_kernel"), 1, units)
        _take(held, ("squeeze_excite", "reduce_bias"), 0, units)
        _take(held, ("squeeze_excite", "expand_kernel"), 0, units)


def _sort_bottleneck(held: dict, narrower: Sequence[Layer]) -> None:
    """Sorts the channels behind and before the middle convolution of a bottleneck, in place. Arguments as above."""
    borders = [layer.sizes["mid"] for layer in narrower]
    for name, after in (("middle", "expand"), ("reduce", "middle")):
        kernel = held[after]["kernel"]  # [..., in, out]
        order = _order(np.abs(kernel).sum(-1).reshape(-1, kernel.shape[-2]).sum(0), borders)
        _take_outputs(held, name, order)
        _take(held, (after, "kernel"), -2, order)


def _take_outputs(held: dict, name: str, order: np.ndarray) -> None:
    """Permutes the output channels of a convolution and of the norm behind it."""
    _take(held, (name, "kernel"), -1, order)
    _take(held, (f"{name}_norm", "scale"), 0, order)
    _take(held, (f"{name}_norm", "bias"), 0, order)


def _take(held: dict, path: tuple[str, ...], axis: int, order: np.ndarray) -> None:
    put(held, path, np.take(at(held, path), order, axis))


def _order(importance: np.ndarray, borders: Sequence[int]) -> np.ndarray:
    """Positions by falling importance, inside each of the groups that end at the borders."""
    group = np.searchsorted(sorted(set(borders)), np.arange(len(importance)), side="right")
    return np.lexsort((np.arange(len(importance)), -importance, group))
