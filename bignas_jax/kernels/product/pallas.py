"""Matrix products of activations and a kernel, told the sampled sizes: Pallas kernels that Triton compiles for GPUs.

A program computes a tile of positions x output channels. It loads only the sampled channels, and sums in float32. What
it writes of channels that are not sampled is nothing (whatever was in memory stays) or, with `whole`, zeros: batch
norm behind it, and the gradient of what comes before it, load no more than the sampled channels either.

The forward product can also give the moments of its result, which batch norm needs: a pass over the result less.
Sums over positions are made in two steps, always in the same order; see `norm.pallas`.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from bignas_jax.kernels.norm import tiles as norm_tiles
from bignas_jax.kernels.norm.pallas import join_moments
from bignas_jax.kernels.norm.tiles import Share, Tiles
from bignas_jax.kernels.product.used import Used

_POSITIONS, _MOST, _DEEP = 128, 128, 32  # of a tile: positions, output channels, and input channels at a time
_WARPS, _STAGES = 8, 3
_PROGRAMS = 264  # of the kernel's gradient: two for each of an H100's multiprocessors
_LEAST_ROUNDS = 4  # tiles of positions of each, so that the parts are small beside what is read


def supports(shape: tuple[int, ...], outputs: int, dtype: jnp.dtype) -> bool:
    """Whether the kernels can compute it: what batch norm's can, for the input [B, H, W, I] and for the result."""
    return all(norm_tiles.supports((*shape[:3], channels), dtype) for channels in (shape[3], outputs))


def _moved(call) -> int:
    """Bytes that a call loads and stores, each address once; see `norm.pallas`.

    Programs that need the same positions run side by side, so that all but the first find them in the cache.
    """
    inputs, all_inputs, outputs, all_outputs, _ = call.integers[-1]
    x, second, *_ = call.operands
    if call.name == "product_kernel_gradient":
        parts = sum(a.bytes for a in call.results)
        return x.bytes * inputs // all_inputs + second.bytes * outputs // all_outputs + parts
    y, *moments = call.results
    kernel = second.bytes * inputs * outputs // (all_inputs * all_outputs)
    written = y.bytes if call.name == "product_whole" else y.bytes * outputs // all_outputs
    return x.bytes * inputs // all_inputs + kernel + written + sum(a.bytes for a in moments)


MOVED = dict.fromkeys(("product", "product_whole", "product_kernel_gradient"), _moved)


def _block(channels: int) -> int:
    """Channels of a tile: a power of two, 16 or more, that leaves few lanes idle."""
    if channels <= _MOST:
        return max(16, pl.next_power_of_2(channels))
    return min((_MOST, _MOST // 2), key=lambda block: pl.cdiv(channels, block) * block)


def _product_kernel(sides: tuple[int, int, int], turned: bool, whole: bool, x_ref, kernel_ref, used_ref, y_ref, *sums):
    """A tile of x @ kernel, or of x @ kernel.T if `turned`; `sums` get the mean and the squared distances from it."""
    count, depth, width = sides
    block, inputs, outputs = _block(width), used_ref[0], used_ref[2]
    row = pl.program_id(1) * _POSITIONS + lax.iota(jnp.int32, _POSITIONS)
    column = pl.program_id(0) * block + lax.iota(jnp.int32, block)
    inside, sampled = row < count, column < outputs

    def add(step, total):
        deep = step * _DEEP + lax.iota(jnp.int32, _DEEP)
        mask = inside[:, None] & (deep < inputs)[None, :]
        x = plgpu.load(x_ref.at[row[:, None] * depth + deep[None, :]], mask=mask, other=0.0)
        offset = column[None, :] * depth + deep[:, None] if turned else deep[:, None] * width + column[None, :]
        mask = (deep < inputs)[:, None] & sampled[None, :]
        kernel = plgpu.load(kernel_ref.at[offset], mask=mask, other=0.0)
        return total + _dot(x, kernel.astype(x.dtype), 1)

    # A tile without sampled channels makes no round.
    rounds = jnp.where(pl.program_id(0) * block < outputs, (inputs + _DEEP - 1) // _DEEP, 0)
    total = lax.fori_loop(jnp.int32(0), rounds, add, jnp.zeros((_POSITIONS, block), jnp.float32))
    y = total.astype(y_ref.dtype)
    stored = column < width if whole else sampled
    plgpu.store(y_ref.at[row[:, None] * width + column[None, :]], y, mask=inside[:, None] & stored[None, :])
    if sums:
        # Of what is written, as batch norm's own pass over it would give: rounded.
        size = jnp.minimum(_POSITIONS, count - pl.program_id(1) * _POSITIONS).astype(jnp.float32)
        y = jnp.where(inside[:, None], y.astype(jnp.float32), 0.0)
        mean = jnp.sum(y, 0) / size
        squares = jnp.sum(jnp.where(inside[:, None], jnp.square(y - mean[None, :]), 0.0), 0)
        for ref, vector in zip(sums, (mean, squares), strict=True):
            plgpu.store(ref.at[pl.program_id(1) * width + column], vector, mask=column < width)


def multiply(x, kernel, used: Used, turned: bool = False, whole: bool = False, moments: bool = False):
    """See `cpu.multiply`."""
    (count, depth), width = x.shape, kernel.shape[0 if turned else 1]
    rows = pl.cdiv(count, _POSITIONS)
    results = [((count, width), x.dtype)] + [((rows, width), jnp.float32)] * (2 if moments else 0)
    name = "product_whole" if whole else "product"
    body = partial(_product_kernel, (count, depth, width), turned, whole)
    y, *parts = _run(name, body, (pl.cdiv(width, _block(width)), rows), results, x, kernel, _array(used, depth, width))
    return y, _joined(count, *parts) if parts else None


def _joined(count: int, means: jax.Array, squares: jax.Array) -> tuple[jax.Array, jax.Array]:
    rows, channels = means.shape
    tiles = Tiles(count, count, channels, _block(channels), _POSITIONS)
    return join_moments(Share(tiles, 1, rows), means, squares)


def _kernel_gradient_kernel(sides: tuple[int, int, int], rounds: int, x_ref, g_ref, used_ref, parts_ref):
    """A tile of x.T @ g, over the positions of one part."""
    count, inputs, outputs = sides
    down, across = _block(inputs), _block(outputs)
    tile, part = pl.program_id(0), pl.program_id(1)
    columns = pl.cdiv(outputs, across)
    i = (tile // columns) * down + lax.iota(jnp.int32, down)
    o = (tile % columns) * across + lax.iota(jnp.int32, across)
    rows = _positions(down, across)

    def add(step, total):
        row = (part * rounds + step) * rows + lax.iota(jnp.int32, rows)

        def load(ref, width, channel, used):
            mask = (row < count)[:, None] & (channel < used)[None, :]
            return plgpu.load(ref.at[row[:, None] * width + channel[None, :]], mask=mask, other=0.0)

        x, g = load(x_ref, inputs, i, used_ref[0]), load(g_ref, outputs, o, used_ref[2])
        return total + _dot(x, g, 0)

    sampled = ((tile // columns) * down < used_ref[0]) & ((tile % columns) * across < used_ref[2])
    turns = jnp.where(sampled, jnp.int32(rounds), jnp.int32(0))
    total = lax.fori_loop(jnp.int32(0), turns, add, jnp.zeros((down, across), jnp.float32))
    offset = (part * inputs + i[:, None]) * outputs + o[None, :]
    plgpu.store(parts_ref.at[offset], total, mask=(i < inputs)[:, None] & (o < outputs)[None, :])


def _dot(a: jax.Array, b: jax.Array, contracted: int) -> jax.Array:
    """The product of two tiles over an axis of `a` and the first of `b`, in float32."""
    return lax.dot_general(a, b, (((contracted,), (0,)), ((), ())), preferred_element_type=jnp.float32)


def _positions(down: int, across: int) -> int:
    """Positions that the kernel's gradient adds at a time: fewer where its tiles are larger."""
    return 32 if down + across > 128 else 64


def kernel_gradient(x: jax.Array, g: jax.Array, used: Used) -> jax.Array:
    """x.T @ g: float32 [I, O]. Each part of the positions is summed by itself, and XLA adds the parts."""
    (count, inputs), outputs = x.shape, g.shape[1]
    across = pl.cdiv(inputs, _block(inputs)) * pl.cdiv(outputs, _block(outputs))
    steps = pl.cdiv(count, _positions(_block(inputs), _block(outputs)))
    rounds = max(pl.cdiv(steps, max(1, _PROGRAMS // across)), min(steps, _LEAST_ROUNDS))
    parts = pl.cdiv(steps, rounds)
    body = partial(_kernel_gradient_kernel, (count, inputs, outputs), rounds)
    results = [((parts, inputs, outputs), jnp.float32)]
    (sums,) = _run("product_kernel_gradient", body, (across, parts), results, x, g, _array(used, inputs, outputs))
    return sums[0] if parts == 1 else jnp.sum(sums, 0)


def _array(used: Used, inputs: int, outputs: int) -> jax.Array:
    """int32 [5], the last operand of a kernel: sampled and all input channels, the same of the output, and 0."""
    sampled = used.numbers(inputs, outputs)
    numbers = sampled[0], inputs, sampled[1], outputs, 0  # not all equal: see `sampled.as_array`
    if used == Used():
        return jnp.asarray(np.array(numbers, np.int32))
    return jnp.stack([jnp.asarray(n, jnp.int32) for n in numbers])


def _run(name: str, kernel, grid: tuple[int, ...], results, *arrays: jax.Array) -> list[jax.Array]:
    return norm_tiles.run(name, kernel, grid, results, *arrays, warps=_WARPS, stages=_STAGES)
