"""Once-for-All's own form of an architecture: `{"ks": [...], "e": [...], "d": [...], "r": 224}`."""

from collections.abc import Mapping, Sequence
from typing import Any

from bignas_jax.spaces.architecture import Architecture
from bignas_jax.spaces.mobilenet import Stage

KEYS = ("ks", "e", "d", "r")


def is_form(values: Any) -> bool:
    """Whether a JSON value is in this form, or is meant to be."""
    return isinstance(values, Mapping) and bool({"ks", "e", "d"} & set(values))


def read_form(stages: Sequence[Stage], width: Sequence[int], values: Mapping[str, Any]) -> Architecture:
    """The architecture in this form.

    Stages without an expansion are no part of it. `ks` and `e` have the kernel and the ratio of each block of the other
    stages at their largest depth. `d` has the depth of each. A single number goes to all. Entries of blocks beyond the
    depth do nothing, and a depth beyond the blocks means all of them. `r` is the resolution, alone or in a list. `wid`
    may stand beside them, if it is null.

    Args:
      stages: the stages of the space.
      width: the channels of all parts, which have no choice in this form.
      values: the form.
    Raises:
      ValueError: a key is missing or unknown, or a value is malformed; the message names it.
    """
    form = {name: value for name, value in values.items() if (name, value) != ("wid", None)}
    missing, unknown = [name for name in KEYS if name not in form], [str(name) for name in form if name not in KEYS]
    for kind, names in (("missing", missing), ("unknown", unknown)):
        if names:
            raise ValueError(f"architecture: found {kind} keys {', '.join(names)}, expected exactly {', '.join(KEYS)}")
    own = [stage.of_block("expand_ratio", 0) != (1,) for stage in stages]
    blocks = [stage.depth[-1] for stage, has in zip(stages, own, strict=True) if has]
    depths = iter(_entries("d", form["d"], len(blocks)))
    kernels, ratios = (_by_stage(_entries(name, form[name], sum(blocks)), blocks) for name in ("ks", "e"))
    found = []
    for stage, has in zip(stages, own, strict=True):
        if has:
            depth = min(next(depths), stage.depth[-1])
            found.append((depth, next(kernels)[: max(depth, 0)], next(ratios)[: max(depth, 0)]))
        else:
            found.append((stage.depth[-1], stage.of_block("kernel_size", 0)[-1], 1))
    depth, kernel_size, expand_ratio = zip(*found, strict=True)
    (resolution,) = _entries("r", form["r"], 1)
    return Architecture(resolution, tuple(width), kernel_size, expand_ratio, depth)


def _entries(name: str, value: Any, count: int) -> list[int]:
    """The entries of a list, or a single number for each."""
    entries = list(value) if isinstance(value, list | tuple) else [value] * count
    for entry in entries:
        if not isinstance(entry, int) or isinstance(entry, bool):
            raise ValueError(f"architecture: {name}: found {entry!r}, expected an integer, or a list of {count}")
    if len(entries) != count:
        raise ValueError(f"architecture: {name}: found {len(entries)} entries, expected {count}")
    return entries


def _by_stage(entries: Sequence[int], blocks: Sequence[int]):
    """The entries in parts, one for each stage."""
    start = 0
    for count in blocks:
        yield tuple(entries[start : start + count])
        start += count
