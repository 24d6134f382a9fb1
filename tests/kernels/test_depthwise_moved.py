"""The bytes that the depthwise kernels for GPUs state are those of the addresses that they load and store."""

from collections import namedtuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bignas_jax.kernels.depthwise import pallas

Call, Array = namedtuple("Call", "operands results integers"), namedtuple("Array", "bytes")
# Direction, k, stride, [B, H, W, C], sampled channels: a part of one block of channels, and blocks without any.
CASES = [
    ("forward", 3, 1, (2, 5, 4, 40), 24),
    ("input_gradient", 3, 2, (1, 5, 4, 136), 56),
    ("kernel_gradient", 3, 2, (2, 6, 4, 40), 24),
]


@pytest.mark.parametrize("direction, size, stride, shape, used", CASES)
def test_a_call_states_the_bytes_of_the_addresses_that_it_touches(direction, size, stride, shape, used, monkeypatch):
    jax.clear_caches()  # a kernel that was traced before would not tell what it touches
    loaded, stored = {}, {}

    def telling(function, places, has_end):
        def tell(ref, whole, image, row, column, channel, last):
            offset, mask = pallas._address(whole, image, row, column, channel, last if has_end else whole[3])

            def note(offset, mask):
                places.setdefault(whole, set()).update(np.asarray(offset)[np.asarray(mask)].tolist())

            jax.debug.callback(note, offset, mask)
            return function(ref, whole, image, row, column, channel, last)

        return tell

    stated, written = [], []

    def recorded(name, kernel, tiles, output, programs, interpret, given, *arrays):
        channels = arrays[0].shape[-1]
        operands = [Array(a.size * a.dtype.itemsize) for a in arrays] + [Array(12)]
        results = [Array(output.size * output.dtype.itemsize)]
        written.append(results[0].bytes)
        stated.append(pallas.MOVED[name](Call(operands, results, [(used, channels, 0)])))
        return run(name, kernel, tiles, output, programs, interpret, given, *arrays)

    run = pallas._run
    monkeypatch.setattr(pallas, "_run", recorded)
    monkeypatch.setattr(pallas, "_load", telling(pallas._load, loaded, has_end=True))
    monkeypatch.setattr(pallas, "_store", telling(pallas._store, stored, has_end=False))
    batch, height, width, channels = shape
    out = batch, -(-height // stride), -(-width // stride), channels
    x, g, kernel = jnp.ones(shape, jnp.bfloat16), jnp.ones(out, jnp.bfloat16), jnp.ones((size, size, channels))
    sampled = jnp.array([used, size], jnp.int32)
    if direction == "forward":
        jax.block_until_ready(pallas.forward(x, kernel, stride, used=sampled))
    elif direction == "input_gradient":
        jax.block_until_ready(pallas.input_gradient(g, kernel, stride, shape, used=sampled))
    else:
        jax.block_until_ready(pallas.kernel_gradient(x, g, size, stride, used=sampled))
    jax.effects_barrier()
    touched = 2 * sum(map(len, loaded.values())) + 2 * sum(map(len, stored.values()))
    # These have another path: the taps, and the sums of a kernel's gradient, which each program writes.
    others = 4 * kernel.size * used // channels if direction != "kernel_gradient" else written[0]
    assert touched + others == stated[0]
    jax.clear_caches()
