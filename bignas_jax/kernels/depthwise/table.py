"""Which implementation of a depthwise convolution was fastest, by measurement, on kinds of GPU.

table.json holds what `python benchmarks/depthwise.py --write-table` measured: device kind to entries, each a
direction ('forward', 'input_gradient', 'kernel_gradient') of one convolution with the milliseconds of every
implementation that ran. A shape that was not measured takes the answer of the nearest one.
"""

import functools
import json
import math
import pathlib
from collections.abc import Mapping, Sequence

import jax.numpy as jnp

PATH = pathlib.Path(__file__).with_suffix(".json")

# Of a device that nobody measured. One fused loop that XLA makes for every device; the grouped convolution depends on
# which library it ends in, and the Pallas kernels have Triton's own list of GPUs.
DEFAULT = "shifted"

Entry = Mapping[str, object]  # direction, shape [B, H, W, C], size, stride, dtype, milliseconds: {name: ms}


def read(path: pathlib.Path) -> dict[str, list[Entry]]:
    """A table from a file: device kind to entries."""
    return json.loads(path.read_text())


@functools.cache
def load() -> dict[str, list[Entry]]:
    """The table of this package, read once."""
    return read(PATH)


def same_question(a: Entry, b: Entry) -> bool:
    """Whether two entries differ in nothing but their shape and their figures."""
    return all(a[name] == b[name] for name in ("direction", "size", "stride", "dtype"))


def _distance(a: Sequence[int], b: Sequence[int]) -> float:
    """Of two shapes [B, H, W, C]: factors of two between their sides, their channels and, if known, their batches."""
    pairs = [(x, y) for x, y in zip(a, b, strict=True) if isinstance(x, int) and isinstance(y, int)]
    return sum(abs(math.log2(x / y)) for x, y in pairs)


def fastest(
    kind: str,
    shape: tuple[int, ...],
    size: int,
    stride: int,
    dtype: jnp.dtype,
    direction: str,
    usable: Sequence[str],
    table: Mapping[str, Sequence[Entry]] | None = None,
) -> str:
    """The name of the implementation to use; DEFAULT where nothing like it was measured on this kind of device.

    Among the entries of the same direction, kernel size, stride and dtype, the one of the nearest shape answers, with
    the fastest of the implementations in `usable`.

    Args:
      shape: [B, H, W, C] of the input, symbolic dimensions allowed. usable: names that can run on this very shape.
      table: instead of `load()`.
    """
    question = {"direction": direction, "size": size, "stride": stride, "dtype": jnp.dtype(dtype).name}
    entries = (load() if table is None else table).get(kind, ())
    entries = [e for e in entries if same_question(e, question) and set(e["milliseconds"]) & set(usable)]
    if not entries:
        return DEFAULT
    measured = min(entries, key=lambda entry: _distance(entry["shape"], shape))["milliseconds"]
    return min((name for name in measured if name in usable), key=measured.get)


def merge(
    table: Mapping[str, Sequence[Entry]], kind: str, entries: Sequence[Entry]
) -> dict[str, list[Entry]]:
    """The table with new entries of a device kind in the place of those of the same question and shape."""

    def replaced(old: Entry) -> bool:
        return any(same_question(old, new) and list(old["shape"]) == list(new["shape"]) for new in entries)

    kept = [entry for entry in table.get(kind, ()) if not replaced(entry)]
    return dict(table) | {kind: [*kept, *entries]}


def dumps(table: Mapping[str, Sequence[Entry]]) -> str:
    """JSON with a line for each entry, so that changes are read easily."""
    kinds = []
    for kind, entries in sorted(table.items()):
        rows = ",\n".join(f"  {json.dumps(entry)}" for entry in entries)
        kinds.append(f" {json.dumps(kind)}: [\n{rows}\n ]")
    return "{\n" + ",\n".join(kinds) + "\n}\n" if kinds else "{}\n"
