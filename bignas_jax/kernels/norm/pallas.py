"""The functions of `passes` as Pallas kernels that Triton compiles for NVIDIA GPUs.

Every kernel reads its arrays in their own dtype, sums in float32 and writes the dtype of x: nothing as large as x is
ever in memory as float32. `used`, an int32 scalar, is the number of sampled channels. The kernels load only these; the
results of all other channels are zeros.

Sums over positions are made in two steps, always in the same order: each program writes its own sums, and a second
kernel adds them up. Atomic additions have no fixed order.
"""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from bignas_jax.kernels.activation import DERIVATIVES, FUNCTIONS
from bignas_jax.kernels.norm.passes import Affine
from bignas_jax.kernels.norm.tiles import PROGRAMS, Block, Share, Tiles, Vectors, run, sums_over, tiles_of
from bignas_jax.kernels.sampled import as_array

_ADDED = (128, 16)  # the tile of the kernels that add up what programs wrote: programs x channels


def _moved(call) -> int:
    """Bytes that a call of a kernel loads and stores, each address once.

    Args:
      call: its name, `operands` and `results` (each with `shape` and `bytes`), and `integers`: the values of its small
        int32 operands, of which the last one is `as_array`'s.
    """
    used, channels, _ = call.integers[-1]
    wide = call.operands[0].shape
    # Arrays as large as x are loaded up to the sampled channels; vectors and arrays [B, C] are loaded whole at most.
    read = sum(a.bytes * used // channels if a.shape == wide else a.bytes for a in call.operands)
    return read + sum(a.bytes for a in call.results)


MOVED = dict.fromkeys(
    ("norm_moments", "norm_pooled", "norm_apply", "norm_gate_sums", "norm_reduce", "norm_input_gradient"), _moved
)


def _moments_kernel(share: Share, x_ref, used_ref, mean_ref, squares_ref):
    """Each program writes the mean of its positions, and the sum of the squared distances from it."""
    block, program = Block(share.tiles, used_ref), pl.program_id(0)
    first = program * (share.rounds * share.tiles.positions)
    # A value of the data itself is subtracted before squaring, as in `passes.moments`.
    pivot = plgpu.load(x_ref.at[first * share.tiles.channels + block.channel], mask=block.sampled, other=0.0)
    pivot = pivot.astype(jnp.float32)

    def terms(position, inside):
        centred = jnp.where(inside[:, None], block.load(x_ref, position, inside) - pivot[None, :], 0.0)
        return centred, centred * centred

    total, squares = share.sums(block, terms, 2)
    shift = total / share.size(program)
    block.store_row(mean_ref, program, pivot + shift)
    block.store_row(squares_ref, program, jnp.maximum(squares - total * shift, 0.0))


def _joined_moments_kernel(share: Share, tiles: Tiles, means_ref, squares_ref, mean_ref, variance_ref):
    """The moments of all positions, from those of each program (Chan, Golub and LeVeque, 1983)."""
    channel = pl.program_id(0) * tiles.block + lax.iota(jnp.int32, tiles.block)
    stored = channel < tiles.channels

    def rows(ref, step):
        row = step * tiles.positions + lax.iota(jnp.int32, tiles.positions)
        mask = (row < share.programs)[:, None] & stored[None, :]
        found = plgpu.load(ref.at[row[:, None] * tiles.channels + channel[None, :]], mask=mask, other=0.0)
        return found, jnp.where(row < share.programs, share.size(row), 0.0)[:, None]

    def add_means(step, total):
        means, size = rows(means_ref, step)
        return total + jnp.sum(means * size, 0)

    zeros, rounds = jnp.zeros(tiles.block, jnp.float32), pl.cdiv(share.programs, tiles.positions)
    mean = lax.fori_loop(0, rounds, add_means, zeros) / share.tiles.count

    def add_squares(step, total):
        means, size = rows(means_ref, step)
        return total + jnp.sum(rows(squares_ref, step)[0] + size * jnp.square(means - mean[None, :]), 0)

    variance = lax.fori_loop(0, rounds, add_squares, zeros) / share.tiles.count
    plgpu.store(mean_ref.at[channel], mean, mask=stored)
    plgpu.store(variance_ref.at[channel], variance, mask=stored)


def moments(x: jax.Array, used: jax.Array) -> tuple[jax.Array, jax.Array]:
    """See `passes.moments`."""
    share = Share.of(tiles_of("norm_moments", x.shape))
    results = [((share.programs, x.shape[-1]), jnp.float32)] * 2
    kernel = partial(_moments_kernel, share)
    parts = run("norm_moments", kernel, (share.programs, share.tiles.across), results, x, as_array(used, x.shape[-1]))
    return join_moments(share, *parts)


def join_moments(share: Share, means: jax.Array, squares: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and biased variance [C], from [programs, C] means and sums of squared distances from them."""
    tiles = _added(share)
    kernel = partial(_joined_moments_kernel, share, tiles)
    results = [((tiles.channels,), jnp.float32)] * 2
    mean, variance = run("norm_joined_moments", kernel, (tiles.across,), results, means, squares)
    return mean, variance


def _added(share: Share) -> Tiles:
    """Tiles of the arrays [programs, C] that the programs of a kernel write."""
    return dataclasses.replace(share.tiles, positions=_ADDED[0], block=_ADDED[1])


def _added_kernel(count: int, tiles: Tiles, *refs):
    """Sums over the rows of arrays [count, C]."""
    channel = pl.program_id(0) * tiles.block + lax.iota(jnp.int32, tiles.block)
    stored, refs = channel < tiles.channels, (refs[: len(refs) // 2], refs[len(refs) // 2 :])
    for ref, total_ref in zip(*refs, strict=True):

        def add(step, total, ref=ref):
            row = step * tiles.positions + lax.iota(jnp.int32, tiles.positions)
            mask = (row < count)[:, None] & stored[None, :]
            rows = plgpu.load(ref.at[row[:, None] * tiles.channels + channel[None, :]], mask=mask, other=0.0)
            return total + jnp.sum(rows, 0)

        total = lax.fori_loop(0, pl.cdiv(count, tiles.positions), add, jnp.zeros(tiles.block, jnp.float32))
        plgpu.store(total_ref.at[channel], total, mask=stored)


def _reduce_kernel(share: Share, activation: str, epsilon: float, kept: bool, x_ref, g_ref, *refs):
    *vectors, used_ref, bias_ref, scale_ref = refs
    keep_ref = vectors.pop() if kept else None
    block = Block(share.tiles, used_ref)
    affine = block.affine(vectors, epsilon)

    def terms(position, inside):
        normal = affine.normal(block.load(x_ref, position, inside))
        inner = block.load(g_ref, position, inside)  # zero outside, and so is every product with it
        if kept:
            inner *= _of_image(keep_ref, position, inside, share.tiles)
        if activation != "identity":
            inner *= DERIVATIVES[activation](affine.z(normal))
        return inner, inner * normal

    for ref, total in zip((bias_ref, scale_ref), share.sums(block, terms, 2), strict=True):
        block.store_row(ref, pl.program_id(0), total)


def _of_image(ref, position: jax.Array, inside: jax.Array, tiles: Tiles) -> jax.Array:
    """[positions, 1] of a vector [B]."""
    return plgpu.load(ref.at[position // tiles.image], mask=inside, other=0.0)[:, None]


def reduce(x, g, affine: Affine, used, activation: str, keep=None) -> tuple[jax.Array, jax.Array]:
    """See `passes.reduce`."""
    share = Share.of(tiles_of("norm_reduce", x.shape))
    results = [((share.programs, x.shape[-1]), jnp.float32)] * 2
    kernel = partial(_reduce_kernel, share, activation, affine.epsilon, keep is not None)
    arrays = x, g, *affine[:4], *([] if keep is None else [keep]), as_array(used, x.shape[-1])
    parts = run("norm_reduce", kernel, (share.programs, share.tiles.across), results, *arrays)
    tiles = _added(share)
    kernel, results = partial(_added_kernel, share.programs, tiles), [((tiles.channels,), jnp.float32)] * 2
    d_bias, d_scale = run("norm_added", kernel, (tiles.across,), results, *parts)
    return d_bias, d_scale


def _splits(tiles: Tiles, batch: int) -> int:
    """Into how many parts the positions of an image are divided, so that there are programs enough."""
    wanted = pl.cdiv(PROGRAMS // 2, batch * tiles.across)
    return max(1, min(wanted, tiles.image // tiles.positions))


def _image_sums_kernel(tiles: Tiles, splits: int, activation: str, epsilon: float, terms: Callable, count: int, *refs):
    """Sums over the positions of one part of an image: `count` rows of the result [splits, count, B, C]."""
    *arrays, mean, variance, scale, bias, used_ref, sums_ref = refs
    block, batch = Block(tiles, used_ref), tiles.count // tiles.image
    affine = block.affine((mean, variance, scale, bias), epsilon)
    image, part = pl.program_id(0), pl.program_id(2)
    rounds = pl.cdiv(tiles.image, tiles.positions * splits)
    first, end = image * tiles.image + part * (rounds * tiles.positions), (image + 1) * tiles.image

    def read(position, inside):
        loaded = [block.load(ref, position, inside) for ref in arrays]
        return [jnp.where(inside[:, None], term, 0.0) for term in terms(affine, *loaded)]

    for row, total in enumerate(sums_over(tiles, first, end, block.rounds(rounds), read, count)):
        block.store_row(sums_ref, (part * count + row) * batch + image, total)


def _image_sums(name: str, terms: Callable, count: int, activation: str, affine: Affine, used, *arrays) -> jax.Array:
    """[count, B, C]: sums of `terms(vectors, *arrays)` over the positions of each image."""
    shape = arrays[0].shape
    tiles = tiles_of(name, shape)
    splits = _splits(tiles, shape[0])
    kernel = partial(_image_sums_kernel, tiles, splits, activation, affine.epsilon, terms, count)
    result = (splits, count, shape[0], shape[-1]), jnp.float32
    inputs = *arrays, *affine[:4], as_array(used, shape[-1])
    (sums,) = run(name, kernel, (shape[0], tiles.across, splits), [result], *inputs)
    return sums[0] if splits == 1 else jnp.sum(sums, 0)


def pooled(x: jax.Array, affine: Affine, used: jax.Array, activation: str) -> jax.Array:
    """See `passes.pooled`."""
    share = 1 / (x.shape[1] * x.shape[2])

    def terms(vectors: Vectors, x):
        return [FUNCTIONS[activation](vectors.z(vectors.normal(x))) * share]

    return _image_sums("norm_pooled", terms, 1, activation, affine, used, x)[0]


def gate_sums(x: jax.Array, g: jax.Array, affine: Affine, used: jax.Array, activation: str) -> jax.Array:
    """See `passes.gate_sums`."""

    def terms(vectors: Vectors, x, g):
        normal = vectors.normal(x)
        z = vectors.z(normal)
        slope = DERIVATIVES[activation](z)
        return [g * FUNCTIONS[activation](z), g * slope, slope, g * slope * normal, slope * normal]

    return _image_sums("norm_gate_sums", terms, 5, activation, affine, used, x, g)


def _gated_reduce_kernel(tiles: Tiles, batch: int, sums_ref, gate_ref, extra_ref, bias_ref, scale_ref):
    """Sums over the images, for one block of channels."""
    channel = pl.program_id(0) * tiles.block + lax.iota(jnp.int32, tiles.block)
    stored = channel < tiles.channels
    bias = scale = jnp.zeros(tiles.block, jnp.float32)
    for first in range(0, batch, tiles.positions):
        image = first + lax.iota(jnp.int32, tiles.positions)
        mask = (image < batch)[:, None] & stored[None, :]

        def load(ref, row, image=image, mask=mask):
            offset = (row * batch + image)[:, None] * tiles.channels + channel[None, :]
            return plgpu.load(ref.at[offset], mask=mask, other=0.0)

        gate, extra = load(gate_ref, 0), load(extra_ref, 0)
        bias += jnp.sum(gate * load(sums_ref, 1) + extra * load(sums_ref, 2), 0)
        scale += jnp.sum(gate * load(sums_ref, 3) + extra * load(sums_ref, 4), 0)
    plgpu.store(bias_ref.at[channel], bias, mask=stored)
    plgpu.store(scale_ref.at[channel], scale, mask=stored)


def gated_reduce(sums: jax.Array, gate: jax.Array, extra: jax.Array) -> tuple[jax.Array, jax.Array]:
    """See `passes.gated_reduce`."""
    _, batch, channels = sums.shape
    rows = min(_ADDED[0], pl.next_power_of_2(batch))
    tiles = Tiles(batch, 1, channels, _ADDED[1], rows)
    kernel, results = partial(_gated_reduce_kernel, tiles, batch), [((channels,), jnp.float32)] * 2
    gates = (a.astype(jnp.float32) for a in (gate, extra))
    d_bias, d_scale = run("norm_gated_reduce", kernel, (tiles.across,), results, sums, *gates)
    return d_bias, d_scale


def _apply_kernel(tiles: Tiles, activation: str, epsilon: float, has: Sequence[bool], x_ref, *refs):
    refs, y_ref = list(refs[:-1]), refs[-1]
    residual_ref = refs.pop(0) if has[0] else None
    block = Block(tiles, refs.pop())
    affine = block.affine(refs[:4], epsilon)
    keep_ref, gate_ref = refs.pop() if has[2] else None, refs[4] if has[1] else None
    position = pl.program_id(0) * tiles.positions + lax.iota(jnp.int32, tiles.positions)
    inside = position < tiles.count
    y = FUNCTIONS[activation](affine.z(affine.normal(block.load(x_ref, position, inside))))
    if gate_ref is not None:
        y *= block.load(gate_ref, position // tiles.image, inside)
    if keep_ref is not None:
        y *= _of_image(keep_ref, position, inside, tiles)
    if residual_ref is not None:
        y += block.load(residual_ref, position, inside)
    block.store(y_ref, position, inside, y)


def apply(x, affine: Affine, gate, used, activation: str, keep=None, residual=None) -> jax.Array:
    """See `passes.apply`."""
    tiles = tiles_of("norm_apply", x.shape)
    has = residual is not None, gate is not None, keep is not None
    kernel = partial(_apply_kernel, tiles, activation, affine.epsilon, has)
    optional = [None if gate is None else gate.astype(jnp.float32), keep]
    arrays = x, residual, *affine[:4], *optional, as_array(used, x.shape[-1])
    grid = pl.cdiv(tiles.count, tiles.positions), tiles.across
    return run("norm_apply", kernel, grid, [(x.shape, x.dtype)], *(a for a in arrays if a is not None))[0]


def _input_gradient_kernel(
    tiles: Tiles, activation: str, epsilon: float, count: int, has: Sequence[bool], x_ref, g_ref, *refs
):
    refs, dx_ref = list(refs[:-1]), refs[-1]
    block = Block(tiles, refs.pop())
    affine, refs = block.affine(refs[:4], epsilon), refs[4:]
    gated, kept, own = has
    position = pl.program_id(0) * tiles.positions + lax.iota(jnp.int32, tiles.positions)
    inside = position < tiles.count
    normal = affine.normal(block.load(x_ref, position, inside))
    inner = block.load(g_ref, position, inside)
    if gated:
        image = position // tiles.image
        inner = inner * block.load(refs.pop(0), image, inside) + block.load(refs.pop(0), image, inside)
    if kept:
        inner *= _of_image(refs.pop(0), position, inside, tiles)
    if activation != "identity":
        inner *= DERIVATIVES[activation](affine.z(normal))
    if own:
        sum_g, sum_gn = (block.vector(ref) for ref in refs)
        inner = inner - sum_g * (1 / count) - normal * (sum_gn * (1 / count))
    block.store(dx_ref, position, inside, affine.scale * affine.inverse * inner)


def input_gradient(x, g, affine: Affine, gate, extra, sums, count: int, used, activation: str, keep=None) -> jax.Array:
    """See `passes.input_gradient`."""
    tiles = tiles_of("norm_input_gradient", x.shape)
    has = gate is not None, keep is not None, sums is not None
    kernel = partial(_input_gradient_kernel, tiles, activation, affine.epsilon, count, has)
    gates = [] if gate is None else [gate.astype(jnp.float32), extra.astype(jnp.float32)]
    arrays = x, g, *affine[:4], *gates, *([] if keep is None else [keep]), *(sums or ()), as_array(used, x.shape[-1])
    grid = pl.cdiv(tiles.count, tiles.positions), tiles.across
    return run("norm_input_gradient", kernel, grid, [(x.shape, x.dtype)], *arrays)[0]
