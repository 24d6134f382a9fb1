"""A child's own weights: the slice of a supernet's that a forward pass of the child reads.

The child is the supernet of a space that leaves it no choice, so that whatever runs on a supernet (training,
calibration, evaluation, export) runs on a child, without a mask and without a weight too many.
"""

from typing import Any

import jax
import numpy as np
from flax import nnx

from bignas_jax.nets.supernet import Supernet
from bignas_jax.spaces.architecture import Architecture
from bignas_jax.spaces.mobilenet import SearchSpace, block_positions, single


def slice_params(space: SearchSpace, params: Any, arch: Architecture) -> dict:
    """The weights of `arch` as the supernet of `single(space, arch)` takes them: the same logits, bit by bit or nearly.

    Leading channels, the centre of each depthwise kernel, the first blocks of each stage.

    Args:
      params: of the supernet, nested as `supernet.build` gives them, NumPy or JAX arrays.
    Returns:
      Arrays of the same kind (NumPy's are views), nested alike; blocks are numbered without gaps.
    Raises:
      ValueError: `arch` is not in the space or differs inside a stage, or `params` are not of this space.
    """
    child = single(space, arch)
    form = param_shapes(child, params["classifier"]["kernel"].shape[1])
    positions = block_positions(space, child.biggest)
    try:
        kept = params | {"blocks": {n: params["blocks"][position] for n, position in enumerate(positions)}}
        return jax.tree_util.tree_map_with_path(_cut, form, kept)
    except (KeyError, ValueError) as error:
        raise ValueError(f"params: not those of this search space ({error})") from error


def param_shapes(space: SearchSpace, num_classes: int) -> dict:
    """The supernet's parameters as shapes."""
    net = nnx.eval_shape(lambda: Supernet(space, num_classes, rngs=nnx.Rngs(0)))
    return nnx.to_pure_dict(nnx.state(net, nnx.Param))


def _cut(path: tuple, form: jax.ShapeDtypeStruct, array: Any) -> Any:
    """The leading part of `array` in this form; of a kernel's two sides, [k, k, ...], the centre."""
    sides = 2 if len(form.shape) > 2 else 0
    starts = [(have - want) // 2 if axis < sides else 0
              for axis, (have, want) in enumerate(zip(array.shape, form.shape, strict=True))]  # fmt: skip
    part = array[tuple(slice(start, start + want) for start, want in zip(starts, form.shape, strict=True))]
    if part.shape != form.shape:
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        raise ValueError(f"{name}: found shape {array.shape}, expected at least {form.shape}")
    return part


def slice_statistics(space: SearchSpace, statistics: dict, arch: Architecture) -> dict:
    """Batch-norm statistics of `arch`, found on the supernet, under the names that its own slice gives them.

    Args:
      statistics: layer name to (mean, variance), each of the child's width or longer (those of a masked run).
    """
    child = single(space, arch)
    form = param_shapes(child, 2)
    widths = {"stem": child.biggest.width[0], "head": form["head_norm"]["scale"].shape[0]}
    names = {name: name for name in widths}
    for number, position in enumerate(block_positions(space, child.biggest)):
        for norm in ("expand", "depthwise", "project"):
            if f"{norm}_norm" in form["blocks"][number]:
                ours = f"block{number}.{norm}"
                names[ours] = f"block{position}.{norm}"
                widths[ours] = form["blocks"][number][f"{norm}_norm"]["scale"].shape[0]
    return {ours: tuple(np.asarray(a)[: widths[ours]] for a in statistics[name]) for ours, name in names.items()}
