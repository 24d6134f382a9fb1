"""The supernet: weights as wide and deep as the space's biggest architecture, of which every architecture is a slice.

A forward pass takes a static *bucket*, an architecture to which weights are sliced at trace time, and optionally
the *sizes* of a sampled architecture inside it, which are traced: what it leaves unused is masked (channels, kernel
border) or skipped (blocks). Without sizes, the bucket itself runs and no mask is traced.
"""

import dataclasses
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from bignas_jax import ops
from bignas_jax.architecture import Architecture
from bignas_jax.ops import Size
from bignas_jax.ops.activation import FUNCTIONS
from bignas_jax.ops.size import at_least_float32
from bignas_jax.ops.squeeze_excite import gate as squeeze_excite_gate
from bignas_jax.programs import load_or_compile
from bignas_jax.space import Block, SearchSpace, blocks, head_mid_width, middle_ends

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


@dataclasses.dataclass(frozen=True)
class Mode:
    """How one forward pass treats batch norm and regularisation.

    Attributes:
      statistics: a child's batch-norm statistics to normalise with, as `Supernet.__call__` returns them; None:
        those of the batch itself.
      collect: also return the batch's statistics.
      axis_name: mesh axis over which batch statistics are shared, or None.
      rng: key for dropout and drop-connect; None switches both off.
      dropout, drop_connect: their rates.
      remat: recompute each block in the backward pass instead of keeping its insides.
    """

    statistics: Any = None
    collect: bool = False
    axis_name: str | None = None
    rng: jax.Array | None = None
    dropout: float = 0.0
    drop_connect: float = 0.0
    remat: bool = False

    def of(self, name: str) -> dict[str, Any]:
        """Arguments of the batch norm of this name."""
        stored = None if self.statistics is None else self.statistics[name]
        return {"statistics": stored, "axis_name": self.axis_name}


class MBConv(nnx.Module):
    """Inverted residual block (Sandler et al., 2018) with squeeze-and-excitation and a shortcut, always residual.

    Args:
      block: the block in the biggest architecture. activation: a name in `ops.activation.FUNCTIONS`.
    """

    def __init__(self, block: Block, activation: str, *, rngs: nnx.Rngs):
        mid = block.mid_width
        self.activation = activation
        self.expand = ops.PointwiseConv(block.in_width, mid, rngs=rngs) if block.expand_ratio != 1 else None
        self.expand_norm = ops.BatchNorm(mid) if block.expand_ratio != 1 else None
        self.depthwise = ops.DepthwiseConv(mid, block.kernel_size, block.stride, rngs=rngs)
        self.depthwise_norm = ops.BatchNorm(mid)
        self.squeeze_excite = ops.SqueezeExcite(mid, block.se_width, rngs=rngs) if block.se_width else None
        self.project = ops.PointwiseConv(mid, block.out_width, rngs=rngs)
        self.project_norm = ops.BatchNorm(block.out_width, zero_scale=True)
        first = block.index == 0
        self.shortcut = ops.Shortcut(block.in_width, block.out_width, block.stride, rngs=rngs) if first else None

    def __call__(self, x, size: dict[str, Size], mode: Mode, drop_rate: float = 0.0, rng=None):
        """[B, H, W, in] -> [B, ceil(H / stride), ceil(W / stride), out], and its batch norms' statistics by name.

        Args:
          size: `in`, `mid`, `out`, `se` and `kernel`. mode: its `statistics` are this block's own, by name.
          drop_rate: of drop-connect, with the key `rng`.
        """
        statistics = {}
        y = x
        if self.expand is not None:
            y, statistics["expand"] = self.expand_norm(
                self.expand(y, size["mid"]), size["mid"], activation=self.activation, **mode.of("expand")
            )
        elif size["mid"].bucket != x.shape[-1]:
            raise ValueError(f"expansion ratio 1 with {x.shape[-1]} channels in and {size['mid'].bucket} inside")
        y = self.depthwise(y, size["kernel"], size["mid"])
        gate, weights = None, ()
        if self.squeeze_excite is not None:
            gate, weights = squeeze_excite_gate, self.squeeze_excite.weights(y.shape[-1], size["se"], y.dtype)
        y, statistics["depthwise"] = self.depthwise_norm(
            y, size["mid"], activation=self.activation, gate=gate, weights=weights, **mode.of("depthwise")
        )
        y, statistics["project"] = self.project_norm(
            self.project(y, size["out"], size["mid"]), size["out"], **mode.of("project")
        )
        if drop_rate and rng is not None:
            y = _drop_images(y, drop_rate, rng)
        shortcut = x if self.shortcut is None else self.shortcut(x, size["in"], size["out"])
        return y + shortcut, statistics


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

    def __call__(self, x: jax.Array, bucket: Architecture, sampled: dict | None = None, mode: Mode = Mode()):
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


def _zero_statistics(names: list[str], block: Block, mode: Mode) -> dict:
    if not mode.collect:
        return {}
    width = {"expand": block.mid_width, "depthwise": block.mid_width, "project": block.out_width}
    return {name: (jnp.zeros(width[name]), jnp.zeros(width[name])) for name in names}


def _drop_images(x: jax.Array, rate: float, rng: jax.Array) -> jax.Array:
    """Drop-connect: zeroes the branch for some images, scales it for the others (Huang et al., 2016)."""
    keep = jax.random.bernoulli(rng, 1 - rate, (x.shape[0], 1, 1, 1))
    return jnp.where(keep, x / (1 - rate), 0).astype(x.dtype)


def build(space: SearchSpace, num_classes: int, *, dtype: str = "float32", seed: int = 0):
    """A supernet with fresh weights, as (graphdef, params).

    Returns:
      graphdef: static and hashable; `nnx.merge(graphdef, params)` gives the Supernet.
      params: nested dictionary of float32 arrays.
    """
    graphdef = nnx.graphdef(nnx.eval_shape(lambda: Supernet(space, num_classes, dtype=dtype, rngs=nnx.Rngs(0))))
    return graphdef, draw_weights(space, num_classes, dtype=dtype, seed=seed)


def draw_weights(
    space: SearchSpace, num_classes: int, *, dtype: str = "float32", seed: int = 0, identity: str | None = None
) -> Any:
    """Fresh weights of a supernet: a nested dictionary of float32 arrays.

    Args:
      identity: determines `space`, `num_classes` and `dtype`; see `programs.Program`. None: an ordinary function of
        JAX, which may be traced.
    """

    def init(key):
        net = Supernet(space, num_classes, dtype=dtype, rngs=nnx.Rngs(params=key))
        return nnx.to_pure_dict(nnx.state(net, nnx.Param))

    key = jax.random.key(seed)
    if identity is None:
        return jax.jit(init)(key)
    return load_or_compile(identity, "weights", lambda: jax.jit(init).lower(key))(key)
