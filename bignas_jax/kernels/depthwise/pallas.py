"""Depthwise convolution as Pallas kernels that Triton compiles for NVIDIA GPUs.

A program computes a tile of positions x channels. A position is one column in a strip of a few rows of one image: each
loaded value is used for all rows of the strip that need it. The positions of all images are numbered in one sequence,
so that only the last program has a partial tile. Channels are contiguous. Products and sums are float32. The kernels
load only the sampled channels; the results of all other channels are zeros.

Triton sets two limits. The number of entries of a tile is a power of two. Values cannot be shifted inside registers,
so that each tap is a load of its own (from the L1 cache, after the first).
"""

import dataclasses
import itertools
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from bignas_jax.kernels.sampled import as_array
from bignas_jax.kernels.target import current

_DTYPES = (jnp.float32, jnp.bfloat16, jnp.float16)
_WARPS = 4
# Entries of a tile by k: 4 for each thread, or 2. With twice as many, ptxas for sm_90 spills registers.
_ENTRIES = {3: 512, 5: 512, 7: 256}
_KERNEL_GRADIENT_ENTRIES = {3: 512, 5: 256, 7: 128}  # by k; each entry holds k^2 sums
_KERNEL_GRADIENT_PROGRAMS = 512  # about four for each multiprocessor; each one's k^2 sums a channel are added up later
_MOST_ROWS = 5  # of outputs that a program makes
_FEW_ROWS = {(5, 2): 3, (7, 1): 3, (7, 2): 3}  # of the forward pass, by k and stride: with more, ptxas spills


def supports(shape: tuple[int, ...], size: int, stride: int, dtype: jnp.dtype) -> bool:
    """Whether the kernels can compute it: static [B, H, W, C] below 2^31 entries, k of 3, 5 or 7, at most float32."""
    static = all(isinstance(side, int) for side in shape)
    known = size in _KERNEL_GRADIENT_ENTRIES and stride in (1, 2) and jnp.dtype(dtype) in map(jnp.dtype, _DTYPES)
    return static and known and shape[0] * shape[1] * shape[2] * shape[3] < 2**31


@dataclasses.dataclass(frozen=True)
class _Tiles:
    """How positions and channels are divided among programs.

    Attributes:
      batch: number of images.
      rows: rows of the grid that is computed, of one image.
      columns: columns of that grid.
      channels: channels of the arrays.
      strip: rows of the grid that one position covers.
      positions: positions of one program, a power of two.
      block: channels of one program, a power of two.
    """

    batch: int
    rows: int
    columns: int
    channels: int
    strip: int
    positions: int
    block: int

    @property
    def strips(self) -> int:
        """Strips of one image."""
        return pl.cdiv(self.rows, self.strip)

    @property
    def position_programs(self) -> int:
        """Programs that cover all positions of a block of channels."""
        return pl.cdiv(self.batch * self.strips * self.columns, self.positions)

    @property
    def channel_programs(self) -> int:
        """Programs that cover all channels of a position."""
        return pl.cdiv(self.channels, self.block)

    def place(self, program: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Image, first row and column of each position of a program.

        Positions past the last one get image numbers from `batch` on.
        """
        number = program * self.positions + lax.iota(jnp.int32, self.positions)
        strip = lax.div(number, jnp.int32(self.columns))
        image = lax.div(strip, jnp.int32(self.strips))
        return image, lax.rem(strip, jnp.int32(self.strips)) * self.strip, lax.rem(number, jnp.int32(self.columns))

    def channel(self, program: jax.Array) -> jax.Array:
        """int32 [block]: the channels of a program."""
        return program * self.block + lax.iota(jnp.int32, self.block)


def _tiles(
    shape: tuple[int, ...], rows: int, columns: int, size: int, step: int, entries: int, most_rows: int | None = None
) -> _Tiles:
    """Tiles for a grid of rows x columns outputs; neighbouring rows of it read rows that lie `step` apart."""
    batch, channels = shape[0], shape[3]

    def waste(block: int) -> float:
        return pl.cdiv(channels, block) * block / channels - 1

    blocks = (64, 32, 16, 8)
    block = next((b for b in blocks if waste(b) <= 1 / 8), min(blocks, key=waste))

    def work(strip: int) -> int:
        # Multiply-adds plus loads. A load, with its address and its conversion, costs about two multiply-adds.
        return pl.cdiv(rows, strip) * (strip * size**2 + 2 * size * (step * (strip - 1) + size))

    strip = min(range(1, (most_rows or _MOST_ROWS) + 1), key=work)
    return _Tiles(batch, rows, columns, channels, strip, max(1, entries // block), block)


def _address(shape: tuple[int, ...], image, row, column, channel, end) -> tuple[jax.Array, jax.Array]:
    """Offsets [positions, block] into a flat array of `shape`, and which lie inside it, in channels before `end`."""
    batch, height, width, channels = shape
    inside = (image < batch) & (row >= 0) & (row < height) & (column >= 0) & (column < width)
    offset = ((image * height + row) * width + column) * channels
    mask = inside[:, None] & (channel < end)[None, :]
    return offset[:, None] + channel[None, :], mask


def _load(ref, shape: tuple[int, ...], image, row, column, channel, used) -> jax.Array:
    """float32 [positions, block]; zeros outside the array and beyond the sampled channels."""
    offset, mask = _address(shape, image, row, column, channel, used)
    return plgpu.load(ref.at[offset], mask=mask, other=0.0).astype(jnp.float32)


def _store(ref, shape: tuple[int, ...], image, row, column, channel, value: jax.Array) -> None:
    offset, mask = _address(shape, image, row, column, channel, shape[3])
    plgpu.store(ref.at[offset], value.astype(ref.dtype), mask=mask)


def _taps(ref, size: int, column: int, channels: int, channel, turned: bool = False) -> list[jax.Array]:
    """One column of a flat kernel [k, k, C], or of this kernel turned by 180 degrees: k vectors [1, block]."""
    mask = channel < channels
    entries = [row * size + column for row in range(size)]
    offsets = [(size**2 - 1 - entry if turned else entry) * channels + channel for entry in entries]
    return [plgpu.load(ref.at[offset], mask=mask, other=0.0)[None, :] for offset in offsets]


def _moved(call) -> int:
    """Bytes that a call loads and stores, each address once; see `norm.pallas`. Neighbours come from the cache."""
    used, channels, _ = call.integers[-1]
    return sum(a.bytes * used // channels for a in call.operands[:-1]) + sum(a.bytes for a in call.results)


MOVED = dict.fromkeys(("depthwise_forward", "depthwise_transposed", "depthwise_kernel_gradient"), _moved)


def _run(name: str, kernel, tiles: _Tiles, output: jax.ShapeDtypeStruct, programs: int, interpret: bool | None,
         used: jax.Array | None, *arrays):  # fmt: skip
    """Runs a kernel on flat arrays, on a grid of programs x channel programs. A CPU interprets it, for tests."""
    channels = None if used is None else used[0]
    call = pl.pallas_call(
        kernel,
        out_shape=jax.ShapeDtypeStruct((output.size,), output.dtype),
        grid=(programs, tiles.channel_programs),
        compiler_params=plgpu.CompilerParams(num_warps=_WARPS, num_stages=1),
        interpret=current().platform == "cpu" if interpret is None else interpret,
        name=name,
    )
    return call(*(a.reshape(-1) for a in arrays), as_array(channels, tiles.channels)).reshape(output.shape)


def _in_used_block(tiles: _Tiles, used_ref, compute: Callable[[], None], store_zeros: Callable[[], None]) -> None:
    """Runs `compute` if the program has a sampled channel, otherwise `store_zeros`."""
    used = pl.program_id(1) * tiles.block < used_ref[0]
    pl.when(used)(compute)
    pl.when(jnp.logical_not(used))(store_zeros)


def _forward_kernel(
    tiles: _Tiles, shape, out_shape, size: int, stride: int, turned: bool, x_ref, kernel_ref, used_ref, y_ref
):
    image, row, column = tiles.place(pl.program_id(0))
    channel, used = tiles.channel(pl.program_id(1)), used_ref[0]
    zeros = jnp.zeros((tiles.positions, tiles.block), jnp.float32)

    def store(sums):
        for r, total in enumerate(sums):
            _store(y_ref, out_shape, image, row + r, column, channel, total)

    def compute():
        sums = [zeros] * tiles.strip
        top, left = row * stride - size // 2, column * stride - size // 2
        for j in range(size):
            taps = _taps(kernel_ref, size, j, tiles.channels, channel, turned)
            for q in range(stride * (tiles.strip - 1) + size):
                x = _load(x_ref, shape, image, top + q, left + j, channel, used)
                for r in range(tiles.strip):
                    if 0 <= q - stride * r < size:
                        sums[r] += x * taps[q - stride * r]
        store(sums)

    _in_used_block(tiles, used_ref, compute, lambda: store([zeros] * tiles.strip))


@partial(jax.jit, static_argnames=("stride", "interpret", "turned"))
def forward(
    x: jax.Array,
    kernel: jax.Array,
    stride: int,
    interpret: bool | None = None,
    turned: bool = False,
    used: jax.Array | None = None,
) -> jax.Array:
    """x [B, H, W, C] and kernel [k, k, C] -> [B, ceil(H / stride), ceil(W / stride), C] in the dtype of x.

    `turned` takes the kernel turned by 180 degrees. `used` is as for `choice.depthwise_conv`: its channels count.
    """
    size = kernel.shape[0]
    out = x.shape[0], pl.cdiv(x.shape[1], stride), pl.cdiv(x.shape[2], stride), x.shape[3]
    tiles = _tiles(x.shape, out[1], out[2], size, stride, _ENTRIES[size], _FEW_ROWS.get((size, stride)))
    body = partial(_forward_kernel, tiles, x.shape, out, size, stride, turned)
    output = jax.ShapeDtypeStruct(out, x.dtype)
    arrays = x, kernel.astype(jnp.float32)
    return _run("depthwise_forward", body, tiles, output, tiles.position_programs, interpret, used, *arrays)


def _transposed_kernel(tiles: _Tiles, shape, g_shape, size: int, g_ref, kernel_ref, used_ref, dx_ref):
    """The input gradient at stride 2.

    Each row of a position is a 2 x 2 square of dx. Its four values use different taps, by the parity of row and column.
    """
    image, row, column = tiles.place(pl.program_id(0))
    channel, used = tiles.channel(pl.program_id(1)), used_ref[0]
    half = size // 2
    reach = range(-(half // 2), (1 + half) // 2 + 1)
    outputs = list(itertools.product((0, 1), (0, 1), range(tiles.strip)))
    zeros = dict.fromkeys(outputs, jnp.zeros((tiles.positions, tiles.block), jnp.float32))

    def store(sums):
        for (a, b, r), total in sums.items():
            _store(dx_ref, shape, image, 2 * (row + r) + a, 2 * column + b, channel, total)

    def compute():
        sums = dict(zeros)
        for e in reach:
            taps = {b: _taps(kernel_ref, size, b + half - 2 * e, tiles.channels, channel)
                    for b in (0, 1) if 0 <= b + half - 2 * e < size}
            for q in range(reach[0], tiles.strip + reach[-1]):
                g = _load(g_ref, g_shape, image, row + q, column + e, channel, used)
                for a, b, r in outputs:
                    i = a + half - 2 * (q - r)
                    if b in taps and 0 <= i < size:
                        sums[a, b, r] += g * taps[b][i]
        store(sums)

    _in_used_block(tiles, used_ref, compute, lambda: store(zeros))


@partial(jax.jit, static_argnames=("stride", "shape", "interpret"))
def input_gradient(
    g: jax.Array,
    kernel: jax.Array,
    stride: int,
    shape: tuple[int, ...],
    interpret: bool | None = None,
    used: jax.Array | None = None,
) -> jax.Array:
    """The gradient with respect to x, of this shape [B, H, W, C], in the dtype of g."""
    if stride == 1:
        return forward(g, kernel, 1, interpret, turned=True, used=used)
    size = kernel.shape[0]
    tiles = _tiles(shape, g.shape[1], g.shape[2], size, 1, _ENTRIES[size])
    tiles = dataclasses.replace(tiles, strip=min(tiles.strip, 2))  # each row of a position has four sums
    body = partial(_transposed_kernel, tiles, shape, g.shape, size)
    output = jax.ShapeDtypeStruct(shape, g.dtype)
    arrays = g, kernel.astype(jnp.float32)
    return _run("depthwise_transposed", body, tiles, output, tiles.position_programs, interpret, used, *arrays)


def _kernel_gradient_kernel(
    tiles: _Tiles, rounds: int, programs: int, shape, g_shape, size: int, stride: int, x_ref, g_ref, used_ref, sums_ref
):
    """Sums over the positions of every `programs`-th tile: [k, k, block] for each program."""
    program, channel, used = pl.program_id(0), tiles.channel(pl.program_id(1)), used_ref[0]
    taps = list(itertools.product(range(size), repeat=2))

    def add(step, sums):
        sums = dict(zip(taps, sums, strict=True))
        image, row, column = tiles.place(program + step * programs)
        top, left = row * stride - size // 2, column * stride - size // 2
        g = [_load(g_ref, g_shape, image, row + r, column, channel, used) for r in range(tiles.strip)]
        for j in range(size):
            for q in range(stride * (tiles.strip - 1) + size):
                x = _load(x_ref, shape, image, top + q, left + j, channel, used)
                for r in range(tiles.strip):
                    if 0 <= q - stride * r < size:
                        sums[q - stride * r, j] += x * g[r]
        return tuple(sums.values())

    zeros = tuple(jnp.zeros((tiles.positions, tiles.block), jnp.float32) for _ in taps)
    # A block without sampled channels makes no round.
    rounds = jnp.where(pl.program_id(1) * tiles.block < used, jnp.int32(rounds), jnp.int32(0))
    for (i, j), total in zip(taps, lax.fori_loop(jnp.int32(0), rounds, add, zeros), strict=True):
        offset = ((program * size + i) * size + j) * tiles.channels + channel
        plgpu.store(sums_ref.at[offset], jnp.sum(total, 0), mask=channel < tiles.channels)


@partial(jax.jit, static_argnames=("size", "stride", "interpret"))
def kernel_gradient(
    x: jax.Array, g: jax.Array, size: int, stride: int, interpret: bool | None = None, used: jax.Array | None = None
) -> jax.Array:
    """The gradient with respect to the kernel: float32 [k, k, C].

    Each program writes its sums, and XLA adds them up, always in the same order. Atomic additions have no fixed order.
    """
    tiles = _tiles(x.shape, g.shape[1], g.shape[2], size, stride, _KERNEL_GRADIENT_ENTRIES[size])
    tiles = dataclasses.replace(tiles, strip=min(tiles.strip, 4))
    programs = min(tiles.position_programs, pl.cdiv(_KERNEL_GRADIENT_PROGRAMS, tiles.channel_programs))
    rounds = pl.cdiv(tiles.position_programs, programs)
    body = partial(_kernel_gradient_kernel, tiles, rounds, programs, x.shape, g.shape, size, stride)
    output = jax.ShapeDtypeStruct((programs, size, size, x.shape[3]), jnp.float32)
    return _run("depthwise_kernel_gradient", body, tiles, output, programs, interpret, used, x, g).sum(0)
