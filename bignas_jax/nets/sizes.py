"""The sizes of a sampled architecture, which a shared executable gets at run time."""

import jax
import numpy as np

from bignas_jax.ops import Size
from bignas_jax.spaces.architecture import Architecture
from bignas_jax.spaces.layers import Layer
from bignas_jax.spaces.space import Space

ACTIVE = 0  # the column that says whether a layer runs; the sizes of its dimensions stand in the next columns


def sizes(space: Space, outer: Architecture, arch: Architecture) -> np.ndarray:
    """The sizes of `arch` that an executable compiled for `outer` needs at run time.

    Args:
      space: the search space of both.
      outer: the architecture that the executable is compiled for.
      arch: the architecture that runs.
    Returns:
      int32 [layers of `outer`, columns]. The row of a layer that runs holds 1, then the sizes of its dimensions in
      order, then zeros. The row of a layer that is skipped holds zeros.
    Raises:
      ValueError: `arch` does not fit inside `outer`, or has another resolution.
    """
    refusal = f"architecture {arch.to_json()} does not fit inside {outer.to_json()}"
    try:
        layers, inner = space.layout(outer), {layer.path: layer for layer in space.layout(arch)}
    except ValueError as error:
        raise ValueError(refusal) from error
    rows = np.zeros((len(layers), 1 + max(len(layer.dims) for layer in layers)), np.int32)
    fits = arch.resolution == outer.resolution
    for row, layer in zip(rows, layers, strict=True):
        own = inner.pop(layer.path, None)
        if own is None:
            fits = fits and layer.optional
            continue
        row[ACTIVE], row[1 : 1 + len(own.dims)] = 1, [dim.size for dim in own.dims]
        fits = fits and all(a.size <= b.size for a, b in zip(own.dims, layer.dims, strict=True))
    if not fits or inner:
        raise ValueError(refusal)
    return rows


def layer_sizes(layer: Layer, row: jax.Array | None) -> dict[str, Size]:
    """The sizes of a layer's dimensions by name.

    Args:
      layer: a layer of the architecture that is compiled.
      row: the layer's row of `sizes`, possibly traced; None means that the compiled architecture itself runs.
    """
    return {
        dim.name: Size(dim.size, None if row is None else row[1 + column], dim.ends)
        for column, dim in enumerate(layer.dims)
    }
