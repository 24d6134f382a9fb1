"""The supernet: weights as wide and deep as the space's biggest architecture, of which every architecture is a slice.

A forward pass takes a static *bucket*, an architecture to which weights are sliced at trace time, and optionally
the *sizes* of a sampled architecture inside it, which are traced: what it leaves unused is masked (channels, kernel
border) or skipped (blocks). Without sizes, the bucket itself runs and no mask is traced.
"""

import dataclasses
from functools import cached_property

import jax
import jax.numpy as jnp
from flax import nnx

from bignas_jax import ops
from bignas_jax.kernels.activation import FUNCTIONS
from bignas_jax.kernels.precision import at_least_float32
from bignas_jax.nets.mbconv import MBConv
from bignas_jax.nets.mode import PLAIN, Mode
from bignas_jax.nets.sizes import ACTIVE, _block_sizes
from bignas_jax.ops import Size
from bignas_jax.spaces.architecture import Architecture
from bignas_jax.spaces.mobilenet import Block, SearchSpace, blocks, head_mid_width


class Supernet(nnx.Module):
    """All weights of a search space.

    Args:
      space: the search space. num_classes: classes of the linear classifier.
      dtype: of activations and of the products ('bfloat16' or 'float32'); parameters and statistics are float32.
    """

    def __init__(self, space: SearchSpace, num_classes: int, *, dtype: str = "float32", rngs: nnx.Rngs):
        biggest = space.biggest
        self.space = space
        self.dtype = dtype
        self.stem = ops.StemConv(3, biggest.width[0], space.stem_stride, rngs=rngs)
        self.stem_norm = ops.BatchNorm(biggest.width[0])
        self.blocks = nnx.List([MBConv(b, space.activation, rngs=rngs) for b in blocks(space, biggest)])
        last, head = biggest.width[-2:]
        mid = head_mid_width(biggest) if space.v3_head else head
        self.head = ops.PointwiseConv(last, mid, rngs=rngs)
        self.head_norm = ops.BatchNorm(mid)
        self.head_project = ops.PointwiseConv(mid, head, rngs=rngs, mask_out=True) if space.v3_head else None
        self.classifier = ops.Linear(head, num_classes, rngs=rngs)

    def __call__(self, x: jax.Array, bucket: Architecture, sampled: dict | None = None, mode: Mode = PLAIN):
        """Logits of a batch.

        Args:
          x: [B, R, R, 3] normalised images at the bucket's resolution (another one works too, where the strides
            allow it).
          bucket: the architecture to slice to. sampled: the result of `sizes`, possibly traced, or None.
        Returns:
          float32 [B, num_classes], and the batch-norm statistics if `mode.collect`, else None: a dictionary of
          layer name (`block3.expand`) to (mean, unbiased variance), each of the bucket's width.
        """
        space, statistics = self.space, {}
        x, statistics["stem"] = self.run_stem(x, bucket, sampled, mode)
        layout = blocks(space, bucket)
        for number, block in enumerate(layout):
            row = None if sampled is None else sampled["blocks"][number]
            x, collected = self.run_block(x, block, row, mode, drop_connect_rate(space, layout, number, mode))
            position = self._positions[block.stage, block.index]
            statistics |= {f"block{position}.{name}": values for name, values in collected.items()}
        logits, statistics["head"] = self.run_head(x, bucket, sampled, mode)
        return logits, (statistics if mode.collect else None)

    @cached_property
    def _positions(self) -> dict[tuple[int, int], int]:
        layout = blocks(self.space, self.space.biggest)
        return {(b.stage, b.index): position for position, b in enumerate(layout)}

    def run_stem(self, x, bucket: Architecture, sampled, mode: Mode):
        """Images to the first block's input, and the statistics of the stem's batch norm."""
        stem = Size(bucket.width[0], None if sampled is None else sampled["stem"])
        x = self.stem(x.astype(self.dtype), stem)
        return self.stem_norm(x, stem, activation=self.space.activation, **mode.of("stem"))

    def run_block(self, x, block: Block, row, mode: Mode, drop_rate: float = 0.0):
        """One block of the bucket: run, or skipped where the sampled architecture is shallower."""
        position = self._positions[block.stage, block.index]
        module = self.blocks[position]
        names = ["depthwise", "project"] if module.expand is None else ["expand", "depthwise", "project"]
        if mode.statistics is not None:
            stored = {name: mode.statistics[f"block{position}.{name}"] for name in names}
            mode = dataclasses.replace(mode, statistics=stored)
        rng = None if mode.rng is None else jax.random.fold_in(mode.rng, position)
        size = _block_sizes(self.space, block, row)

        def run(x):
            y, statistics = module(x, size, mode, drop_rate, rng)
            return y, (statistics if mode.collect else {})

        if mode.remat:
            run = jax.checkpoint(run)
        if row is None or block.index < self.space.stages[block.stage].depth[0]:
            return run(x)
        return jax.lax.cond(row[ACTIVE] > 0, run, lambda x: (x, _zero_statistics(names, block, mode)), x)

    def run_head(self, x, bucket: Architecture, sampled, mode: Mode):
        """The last block's output to logits, and the statistics of the head's batch norm."""
        head = Size(bucket.width[-1], None if sampled is None else sampled["head"])
        mid = head
        if self.head_project is not None:
            mid = Size(head_mid_width(bucket), None if sampled is None else sampled["head_mid"])
        x, statistics = self.head_norm(
            self.head(x, mid), mid, activation=self.space.activation, **mode.of("head")
        )
        x = jnp.mean(at_least_float32(x), (1, 2), keepdims=True).astype(self.dtype)
        if self.head_project is not None:
            x = FUNCTIONS[self.space.activation](self.head_project(x, head))
        x = at_least_float32(x[:, 0, 0])
        if mode.dropout and mode.rng is not None:
            keep = jax.random.bernoulli(jax.random.fold_in(mode.rng, len(self.blocks)), 1 - mode.dropout, x.shape)
            x = jnp.where(keep, x / (1 - mode.dropout), 0)
        return self.classifier(x), statistics


def drop_connect_rate(space: SearchSpace, layout: tuple[Block, ...], number: int, mode: Mode) -> float:
    """Rate x block index / number of blocks, in the last two stages, where input and output match in shape."""
    block = layout[number]
    drops = block.stage >= len(space.stages) - 2 and block.stride == 1 and block.in_width == block.out_width
    return mode.drop_connect * number / len(layout) if drops else 0.0




def _zero_statistics(names: list[str], block: Block, mode: Mode) -> dict:
    if not mode.collect:
        return {}
    width = {"expand": block.mid_width, "depthwise": block.mid_width, "project": block.out_width}
    return {name: (jnp.zeros(width[name]), jnp.zeros(width[name])) for name in names}






