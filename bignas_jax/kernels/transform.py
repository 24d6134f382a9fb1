"""Smaller depthwise kernels as trained transforms of the next larger one (Cai et al., 2020, Once-for-All, section 3.3).

A kernel of a smaller side is the centre of the one before it, multiplied by a matrix that all channels of the layer
share. The functions take NumPy's and JAX's arrays alike.
"""

from collections.abc import Mapping, Sequence
from typing import Any


def centre(kernel: Any, side: int) -> Any:
    """[k, k, C] -> [side, side, C], the middle of the kernel."""
    border = (kernel.shape[0] - side) // 2
    return kernel[border : border + side, border : border + side]


def transformed(kernel: Any, matrices: Mapping[int, Any], side: int) -> Any:
    """The kernel of this side.

    Args:
      kernel: [k, k, C], of the largest side.
      matrices: by smaller side s, the matrix [s s, s s] that acts on the centre of the next larger kernel, flattened
        row by row.
      side: k, or a key of `matrices`.
    Returns:
      [side, side, C].
    """
    for smaller in sorted(matrices, reverse=True):
        if smaller < side:
            break
        cut = centre(kernel, smaller)
        kernel = (matrices[smaller] @ cut.reshape(smaller * smaller, -1)).reshape(cut.shape)
    return kernel


def matrix_name(side: int) -> str:
    """The name of the matrix that makes the kernel of this side."""
    return f"to{side}_matrix"


def smaller_sides(sides: Sequence[int]) -> tuple[int, ...]:
    """The sides that are made by a transform, the largest first: all of `sides` but the largest."""
    return tuple(sorted(sides, reverse=True))[1:]
