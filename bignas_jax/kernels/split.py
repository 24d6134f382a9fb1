"""A vector divided among arrays of many sizes, in a few kernels on GPUs.

XLA copies every slice with a kernel of its own. A supernet has hundreds of arrays, and most of them are small: to start
a kernel takes longer than to copy its slice.
"""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from bignas_jax.kernels.target import current

_ENTRIES = 4096  # entries of a program
_OUTPUTS = 64  # arrays that one kernel writes


def split(vector: jax.Array, shapes: Sequence[tuple[int, ...]]) -> list[jax.Array]:
    """The consecutive parts of a vector, as arrays of these shapes.

    Args:
      vector: [n].
      shapes: shapes of the parts, with n entries in all.
    """
    sizes = [int(np.prod(shape)) for shape in shapes]
    *starts, end = np.concatenate([[0], np.cumsum(sizes, dtype=int)]).tolist()
    if end != vector.size:
        raise ValueError(f"split: found parts of {end} entries, expected the vector's {vector.size}")
    parts = []
    for first in range(0, len(sizes), _OUTPUTS):
        parts += _part(vector, starts[first : first + _OUTPUTS], sizes[first : first + _OUTPUTS])
    return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]


def _part(vector: jax.Array, starts: Sequence[int], sizes: Sequence[int]) -> Sequence[jax.Array]:
    programs = [pl.cdiv(size, _ENTRIES) for size in sizes]
    call = pl.pallas_call(
        partial(_copy, tuple(starts), tuple(sizes), tuple(programs)),
        out_shape=[jax.ShapeDtypeStruct((size,), vector.dtype) for size in sizes],
        grid=(sum(programs),),
        compiler_params=plgpu.CompilerParams(num_warps=4, num_stages=1),
        interpret=current().platform == "cpu",
        name="split",
    )
    return call(vector)


def _copy(starts, sizes, programs, vector_ref, *refs):
    """Each program copies a piece of one array."""
    program, first = pl.program_id(0), 0
    for start, size, count, ref in zip(starts, sizes, programs, refs, strict=True):

        @pl.when((program >= first) & (program < first + count))
        def _(first=first, start=start, size=size, ref=ref):
            entry = (program - first) * _ENTRIES + lax.iota(jnp.int32, _ENTRIES)
            inside = entry < size
            plgpu.store(ref.at[entry], plgpu.load(vector_ref.at[start + entry], mask=inside, other=0.0), mask=inside)

        first += count


def _moved(call) -> int:
    """Bytes that a call loads and stores: the parts that it writes, each read once."""
    return 2 * sum(result.bytes for result in call.results)


MOVED = {"split": _moved}
