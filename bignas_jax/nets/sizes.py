"""The sizes of a sampled architecture: what a shared executable is told at run time."""

import numpy as np

from bignas_jax.ops import Size
from bignas_jax.spaces.architecture import Architecture
from bignas_jax.spaces.mobilenet import Block, SearchSpace, blocks, head_mid_width, middle_ends

ACTIVE, IN, MID, OUT, SE, KERNEL = range(6)


def sizes(space: SearchSpace, bucket: Architecture, arch: Architecture) -> dict[str, np.ndarray]:
    """What an executable of `bucket` must know of `arch` at run time.

    Returns:
      stem, head_mid, head: int32 scalars; blocks: int32 [blocks of the bucket, 6], a row being (1 if the block is
      active, then its input, middle, output and squeezed width and its kernel size).
    Raises:
      ValueError: `arch` does not fit inside `bucket`, or has another resolution.
    """
    active = {(b.stage, b.index): b for b in blocks(space, arch)}
    rows = []
    for outer in blocks(space, bucket):
        inner = active.pop((outer.stage, outer.index), None)
        # A skipped block passes the widths of its stage through.
        width = arch.width[outer.stage + 1]
        row = (0, width, 0, width, 0, outer.kernel_size) if inner is None else (1, *_widths(inner))
        if any(a > b for a, b in zip(row[1:], _widths(outer), strict=True)):
            raise ValueError(f"architecture {arch.to_json()} does not fit the bucket {bucket.to_json()}")
        rows.append(row)
    fits = arch.resolution == bucket.resolution and not active
    if not fits or arch.width[0] > bucket.width[0] or arch.width[-1] > bucket.width[-1]:
        raise ValueError(f"architecture {arch.to_json()} does not fit the bucket {bucket.to_json()}")
    return {
        "stem": np.int32(arch.width[0]),
        "blocks": np.array(rows, np.int32),
        "head_mid": np.int32(head_mid_width(arch)),
        "head": np.int32(arch.width[-1]),
    }


def _widths(block: Block) -> tuple[int, ...]:
    return block.in_width, block.mid_width, block.out_width, block.se_width, block.kernel_size


def _block_sizes(space: SearchSpace, block: Block, row) -> dict[str, Size]:
    def size(bucket: int, column: int, ends: tuple[int, ...] = ()) -> Size:
        return Size(bucket, None if row is None else row[column], ends)

    return {
        "in": size(block.in_width, IN),
        "mid": size(block.mid_width, MID, middle_ends(space, block)),
        "out": size(block.out_width, OUT),
        "se": size(block.se_width, SE),
        "kernel": size(block.kernel_size, KERNEL),
    }
