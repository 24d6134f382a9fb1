"""Tiles, blocks of channels, and sums over positions: what the Pallas kernels of batch norm are made of.

A program computes tiles of positions x channels. Channels are contiguous. The kernels load only the sampled channels;
the results of all other channels are zeros.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from bignas_jax.kernels.target import current

_DTYPES = (jnp.float32, jnp.bfloat16, jnp.float16)
# By kernel: its warps, and the entries of its tiles. A thread computes 8 entries at a time, or 4 with five sums each.
_WARPS = {"norm_moments": 8, "norm_reduce": 8}
_ENTRIES = {"norm_moments": 2048, "norm_reduce": 2048, "norm_gate_sums": 512}
_USUAL_WARPS, _USUAL_ENTRIES = 4, 1024
PROGRAMS = 528  # of a kernel that sums: four for each of an H100's multiprocessors


def supports(shape: tuple[int, ...], dtype: jnp.dtype) -> bool:
    """Whether the kernels can compute it: static [B, H, W, C] below 2^31 entries, at most float32."""
    static = all(isinstance(side, int) for side in shape)
    return static and jnp.dtype(dtype) in map(jnp.dtype, _DTYPES) and 0 < int(np.prod(shape)) < 2**31


@dataclasses.dataclass(frozen=True)
class Tiles:
    """How positions and channels are divided among programs.

    Attributes:
      count: positions of the whole array.
      image: positions of one image.
      channels: channels of the arrays.
      block: channels of one program, a power of two.
      positions: positions of one tile, a power of two.
    """

    count: int
    image: int
    channels: int
    block: int
    positions: int

    @property
    def across(self) -> int:
        """Programs that cover all channels of a position."""
        return pl.cdiv(self.channels, self.block)


def tiles_of(name: str, shape: tuple[int, ...]) -> Tiles:
    """Tiles of the kernel of this name for arrays [B, H, W, C]."""
    batch, height, width, channels = shape

    def waste(block: int) -> float:
        return pl.cdiv(channels, block) * block / channels - 1

    # Few channels are one block: idle lanes cost less than loads of a part of a position's channels.
    narrow = max(8, pl.next_power_of_2(channels))
    block = narrow if narrow <= 64 else next((b for b in (128, 64) if waste(b) <= 1 / 8), 32)
    return Tiles(batch * height * width, height * width, channels, block, _ENTRIES.get(name, _USUAL_ENTRIES) // block)


class Block:
    """What a program knows of its block of channels.

    Args:
      tiles: the tiles of its kernel.
      used_ref: the number of sampled channels.
      axis: the axis of the grid that numbers the blocks.
    """

    def __init__(self, tiles: Tiles, used_ref, axis: int = 1):
        self.tiles = tiles
        self.channel = pl.program_id(axis) * tiles.block + lax.iota(jnp.int32, tiles.block)
        self.sampled = self.channel < used_ref[0]
        self.any_sampled = pl.program_id(axis) * tiles.block < used_ref[0]
        self.stored = self.channel < tiles.channels

    def rounds(self, count: int) -> jax.Array:
        """The number of times that a loop runs: none in a block without sampled channels."""
        return jnp.where(self.any_sampled, jnp.int32(count), jnp.int32(0))

    def vector(self, ref, other: float = 0.0) -> jax.Array:
        """[1, block] of a vector [C]; `other` beyond the sampled channels."""
        return plgpu.load(ref.at[self.channel], mask=self.sampled, other=other).astype(jnp.float32)[None, :]

    def affine(self, refs: Sequence, epsilon: float) -> "Vectors":
        """The vectors of batch norm, from the refs of mean, variance, scale and bias."""
        mean, variance, scale, bias = refs
        inverse = lax.rsqrt(self.vector(variance, 1.0) + epsilon)
        return Vectors(self.vector(mean), inverse, self.vector(scale), self.vector(bias))

    def load(self, ref, row: jax.Array, inside: jax.Array) -> jax.Array:
        """float32 [rows, block] of an array [rows, C]; zeros outside and beyond the sampled channels."""
        mask = inside[:, None] & self.sampled[None, :]
        return plgpu.load(ref.at[self._offset(row)], mask=mask, other=0.0).astype(jnp.float32)

    def store(self, ref, row: jax.Array, inside: jax.Array, value: jax.Array) -> None:
        """Writes [rows, block] into an array [rows, C]."""
        mask = inside[:, None] & self.stored[None, :]
        plgpu.store(ref.at[self._offset(row)], value.astype(ref.dtype), mask=mask)

    def store_row(self, ref, row: jax.Array | int, value: jax.Array) -> None:
        """Writes [block] into one row of an array [rows, C]."""
        plgpu.store(ref.at[row * self.tiles.channels + self.channel], value.astype(ref.dtype), mask=self.stored)

    def _offset(self, row: jax.Array) -> jax.Array:
        return row[:, None] * self.tiles.channels + self.channel[None, :]


class Vectors(NamedTuple):
    """The vectors of batch norm of one block of channels, [1, block] each, zero beyond the sampled channels."""

    mean: jax.Array
    inverse: jax.Array
    scale: jax.Array
    bias: jax.Array

    def normal(self, x: jax.Array) -> jax.Array:
        return (x - self.mean) * self.inverse

    def z(self, normal: jax.Array) -> jax.Array:
        return normal * self.scale + self.bias


def run(
    name: str,
    kernel: Callable,
    grid: tuple[int, ...],
    results,
    *arrays: jax.Array,
    warps: int = _USUAL_WARPS,
    stages: int = 1,
) -> list[jax.Array]:
    """Runs a kernel on flat arrays. A CPU interprets it, for tests.

    Args:
      name: the kernel's name, by which it is found in a compiled program.
      kernel: a function of the refs of `arrays` and `results`.
      grid: the number of programs on each axis.
      results: (shape, dtype) of each result.
      *arrays: what the kernel reads.
      warps: of a program, where `_WARPS` does not say it.
      stages: of a loop's loads that are in flight at a time.
    """
    call = pl.pallas_call(
        kernel,
        out_shape=[jax.ShapeDtypeStruct((int(np.prod(shape)),), dtype) for shape, dtype in results],
        grid=grid,
        compiler_params=plgpu.CompilerParams(num_warps=_WARPS.get(name, warps), num_stages=stages),
        interpret=current().platform == "cpu",
        name=name,
    )
    found = call(*(a.reshape(-1) for a in arrays))
    return [flat.reshape(shape) for flat, (shape, _) in zip(found, results, strict=True)]


@dataclasses.dataclass(frozen=True)
class Share:
    """The positions of each program of a kernel that sums over all positions.

    Attributes:
      tiles: the tiles of the kernel.
      rounds: tiles of one program, one after the other.
      programs: the number of programs; each has at least one position.
    """

    tiles: Tiles
    rounds: int
    programs: int

    @classmethod
    def of(cls, tiles: Tiles) -> "Share":
        """As many programs as keep a GPU busy."""
        count = pl.cdiv(tiles.count, tiles.positions)
        rounds = pl.cdiv(count, max(1, PROGRAMS // tiles.across))
        return cls(tiles, rounds, pl.cdiv(count, rounds))

    def size(self, program: jax.Array) -> jax.Array:
        """The number of positions of a program, float32."""
        share = self.rounds * self.tiles.positions
        return jnp.minimum(share, self.tiles.count - program * share).astype(jnp.float32)

    def sums(self, block: Block, terms: Callable, count: int) -> tuple[jax.Array, ...]:
        """Sums [block] over the program's positions.

        Args:
          block: the program's channels.
          terms: (position, inside) -> `count` arrays [positions, block], zero where `inside` is false.
          count: the number of sums.
        """
        first = pl.program_id(0) * (self.rounds * self.tiles.positions)
        return sums_over(self.tiles, first, self.tiles.count, block.rounds(self.rounds), terms, count)


def sums_over(tiles: Tiles, first, end, rounds: jax.Array, terms: Callable, count: int) -> tuple[jax.Array, ...]:
    """Sums [block] over `rounds` tiles of positions from `first` on, as far as they lie before `end`."""

    def add(step, sums):
        position = first + step * tiles.positions + lax.iota(jnp.int32, tiles.positions)
        return tuple(s + t for s, t in zip(sums, terms(position, position < end), strict=True))

    zeros = (jnp.zeros((tiles.positions, tiles.block), jnp.float32),) * count
    return tuple(jnp.sum(s, 0) for s in lax.fori_loop(jnp.int32(0), rounds, add, zeros))
