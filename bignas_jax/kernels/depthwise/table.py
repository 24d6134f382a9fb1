"""The implementation of a depthwise convolution that was measured to be the fastest on a kind of GPU.

`python benchmarks/depthwise.py --write-table` writes table.json: device kind to entries. An entry is one direction
('forward', 'input_gradient', 'kernel_gradient') of one convolution, with the milliseconds of every implementation that
ran. A shape that was not measured takes the answer of the nearest shape.
"""

import functools
import json
import math
import pathlib
from collections.abc import Mapping, Sequence

import jax.numpy as jnp

PATH = pathlib.Path(__file__).with_suffix(".json")

# For devices that were not measured. The Pallas kernels move the fewest bytes, where Triton can compile them. XLA
# compiles the shifted multiply-adds on every device. The speed of the grouped convolution depends on the library that
# computes it.
DEFAULTS = ("pallas", "shifted")

Entry = Mapping[str, object]  # direction, shape [B, H, W, C], size, stride, dtype, milliseconds: {name: ms}


def read(path: pathlib.Path) -> dict[str, list[Entry]]:
    """The table in a file: device kind to entries."""
    return json.loads(path.read_text())


@functools.cache
def load() -> dict[str, list[Entry]]:
    """The table of this package, read once."""
    return read(PATH)


def same_question(a: Entry, b: Entry) -> bool:
    """Whether two entries differ only in their shape and their milliseconds."""
    return all(a[name] == b[name] for name in ("direction", "size", "stride", "dtype"))


def _distance(a: Sequence[int], b: Sequence[int]) -> float:
    """How far two shapes [B, H, W, C] are apart, in factors of two. Symbolic dimensions do not count."""
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
    """The name of the implementation to use.

    It is looked up among the entries of the same direction, kernel size, stride and dtype: the fastest of `usable` in
    the entry of the nearest shape. If this kind of device has no such entry, it is the first of DEFAULTS that is
    usable.

    Args:
      kind: the kind of device, a key of the table.
      shape: [B, H, W, C] of the input; dimensions may be symbolic.
      size: side of the kernel.
      stride: 1 or 2.
      dtype: dtype of the input.
      direction: 'forward', 'input_gradient' or 'kernel_gradient'.
      usable: names of the implementations that can run on this shape.
      table: the table to look in; None means `load()`.
    """
    question = {"direction": direction, "size": size, "stride": stride, "dtype": jnp.dtype(dtype).name}
    entries = (load() if table is None else table).get(kind, ())
    entries = [e for e in entries if same_question(e, question) and set(e["milliseconds"]) & set(usable)]
    if not entries:
        return next((name for name in DEFAULTS if name in usable), DEFAULTS[-1])
    measured = min(entries, key=lambda entry: _distance(entry["shape"], shape))["milliseconds"]
    return min((name for name in measured if name in usable), key=measured.get)


def merge(
    table: Mapping[str, Sequence[Entry]], kind: str, entries: Sequence[Entry]
) -> dict[str, list[Entry]]:
    """The table with new entries of a device kind.

    A new entry replaces an old one of the same direction, kernel size, stride, dtype and shape.
    """

    def replaced(old: Entry) -> bool:
        return any(same_question(old, new) and list(old["shape"]) == list(new["shape"]) for new in entries)

    kept = [entry for entry in table.get(kind, ()) if not replaced(entry)]
    return dict(table) | {kind: [*kept, *entries]}


def dumps(table: Mapping[str, Sequence[Entry]]) -> str:
    """The table as JSON, with one line for each entry, so that a diff is easy to read."""
    kinds = []
    for kind, entries in sorted(table.items()):
        rows = ",\n".join(f"  {json.dumps(entry)}" for entry in entries)
        kinds.append(f" {json.dumps(kind)}: [\n{rows}\n ]")
    return "{\n" + ",\n".join(kinds) + "\n}\n" if kinds else "{}\n"
