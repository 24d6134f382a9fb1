"""What an architecture costs: the one place that counts multiply-adds and parameters."""

import dataclasses

from bignas_jax.spaces.architecture import Architecture
from bignas_jax.spaces.mobilenet import Block, SearchSpace, blocks, head_mid_width, middle_ends


@dataclasses.dataclass(frozen=True)
class Cost:
    """Multiply-adds of one image's forward pass, and the number of trained parameters."""

    macs: int
    params: int

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.macs + other.macs, self.params + other.params)


def _conv(in_width: int, out_width: int, side: int, kernel_size: int = 1) -> Cost:
    """A convolution without bias; `side` is that of its square output."""
    weights = kernel_size ** 2 * in_width * out_width
    return Cost(weights * side ** 2, weights)


def _norm(width: int) -> Cost:
    return Cost(0, 2 * width)


def _linear(in_width: int, out_width: int) -> Cost:
    return Cost(in_width * out_width, (in_width + 1) * out_width)


def _after_stride(side: int, stride: int) -> int:
    return -(-side // stride)


def _block(block: Block, side: int) -> Cost:
    """`side` is that of the block's input; its shortcut counts only where the widths differ."""
    out_side = _after_stride(side, block.stride)
    cost = _conv(1, block.mid_width, out_side, block.kernel_size) + _norm(block.mid_width)
    if block.expand_ratio != 1:
        cost += _conv(block.in_width, block.mid_width, side) + _norm(block.mid_width)
    if block.se_width:
        cost += _linear(block.mid_width, block.se_width) + _linear(block.se_width, block.mid_width)
    if block.in_width != block.out_width:
        cost += _conv(block.in_width, block.out_width, out_side)
    return cost + _conv(block.mid_width, block.out_width, out_side) + _norm(block.out_width)


def _head(space: SearchSpace, arch: Architecture, side: int, num_classes: int) -> Cost:
    last, head = arch.width[-2:]
    classifier = _linear(head, num_classes)
    if not space.v3_head:
        return _conv(last, head, side) + _norm(head) + classifier
    mid = head_mid_width(arch)
    return _conv(last, mid, side) + _norm(mid) + _conv(mid, head, 1) + classifier


def count(space: SearchSpace, arch: Architecture, num_classes: int) -> Cost:
    """Multiply-adds and parameters of `arch` on its own resolution.

    Multiply-adds are those of convolutions (shortcuts included), squeeze-and-excitation and the classifier;
    nothing else counts. Parameters include batch norm's scales and biases.

    Raises:
      ValueError: `arch` has another number of stages than the space.
    """
    side = _after_stride(arch.resolution, space.stem_stride)
    cost = _conv(3, arch.width[0], side, kernel_size=3) + _norm(arch.width[0])
    for block in blocks(space, arch):
        cost += _block(block, side)
        side = _after_stride(side, block.stride)
    return cost + _head(space, arch, side, num_classes)


def executed(space: SearchSpace, bucket: Architecture, arch: Architecture, num_classes: int) -> int:
    """Multiply-adds that one image's forward pass of `arch` takes in the program that `bucket`'s architectures share.

    They are counted as `count` does, for XLA's own operations: every product and convolution at the bucket's widths
    and kernel sizes, except that blocks are skipped and that the products of a block's middle channels stop at one
    of `middle_ends`. The native kernels of the CPU stop earlier, with the sampled channels and kernel size.

    Args:
      bucket: the architecture that the program was compiled for. arch: one that fits inside it.
    """
    active = {(b.stage, b.index): b for b in blocks(space, arch)}
    side = _after_stride(bucket.resolution, space.stem_stride)
    total = _conv(3, bucket.width[0], side, kernel_size=3)
    for outer in blocks(space, bucket):
        inner = active.get((outer.stage, outer.index))
        if inner is not None:
            total += _executed_block(outer, _first_that_holds(middle_ends(space, outer), inner.mid_width), side)
        side = _after_stride(side, outer.stride)
    return (total + _head(space, bucket, side, num_classes)).macs


def _executed_block(block: Block, mid_width: int, side: int) -> Cost:
    """A block of a shared program, of whose middle channels the products take `mid_width`."""
    out_side = _after_stride(side, block.stride)
    cost = _conv(1, block.mid_width, out_side, block.kernel_size)
    if block.expand_ratio != 1:
        cost += _conv(block.in_width, mid_width, side)
    if block.se_width:
        cost += _linear(block.mid_width, block.se_width) + _linear(block.se_width, block.mid_width)
    if block.index == 0:
        # Whether the widths differ is known at run time only.
        cost += _conv(block.in_width, block.out_width, out_side)
    return cost + _conv(mid_width, block.out_width, out_side)


def _first_that_holds(ends: tuple[int, ...], width: int) -> int:
    return next(end for end in ends if end >= width)
