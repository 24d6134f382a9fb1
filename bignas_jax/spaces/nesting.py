"""Spaces inside other spaces: the same network, with fewer choices open."""

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

from bignas_jax.spaces.architecture import Architecture
from bignas_jax.spaces.layers import Path
from bignas_jax.spaces.space import RESOLUTION, Choice, Space


def why_not_within(smaller: Space, larger: Space) -> str | None:
    """The reason why a space is not a part of another one; None if it is.

    A part has the same biggest architecture, and no value of a choice that the other lacks. So all weights of its
    supernet are weights of the other supernet. Resolutions do not matter, because no weight depends on them.

    Args:
      smaller: the space that may be a part; 'there' in the reason.
      larger: the other one.
    """
    here, there = _choices(larger), _choices(smaller)
    for key in dict.fromkeys([*there, *here]):
        ours, theirs = here.get(key), there.get(key) or there.get((*key[:2], None))
        if ours is None and key[2] is None and any(other[:2] == key[:2] for other in here):
            continue  # all blocks of the stage have one value there, and their own here: each block is compared
        label = (ours or theirs).label
        ours, theirs = (() if choice is None else choice.values for choice in (ours, theirs))
        if ours[-1:] != theirs[-1:] or not set(theirs) <= set(ours):
            return f"{label}: {ours}, there {theirs}"
    # What is left are strides and the like. A space of one architecture shows them.
    ours, theirs = (_flat(space.restricted(only=space.biggest).to_dict()) for space in (larger, smaller))
    for name in dict.fromkeys([*theirs, *ours]):
        if name != RESOLUTION and ours.get(name) != theirs.get(name):
            return f"{name}: {ours.get(name)!r}, there {theirs.get(name)!r}"
    return None


def _choices(space: Space) -> dict[tuple[str, str, int | None], Choice]:
    """The choices by kind, part and block."""
    return {(choice.kind, choice.part, choice.block): choice for choice in space.choices if choice.part != RESOLUTION}


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found = {}
    for name, value in values.items():
        found |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return found


def middle_widths(space: Space) -> dict[Path, frozenset[int]]:
    """The numbers of middle channels that each block can have, by the block's path."""
    found: dict[Path, set[int]] = {}
    for arch in narrower(space):
        for layer in space.layout(arch):
            if "mid" in layer.sizes:
                found.setdefault(layer.path, set()).add(layer.sizes["mid"])
    return {path: frozenset(widths) for path, widths in found.items()}


def narrower(space: Space) -> Iterator[Architecture]:
    """Architectures of all blocks that together have every number of middle channels that a block can have.

    Middle channels follow from one width, which is that of the block's input or output, and from the expansion ratio.
    The architectures therefore go through all pairs of positions among the widths and among the ratios. Where a choice
    has fewer values, its smallest one repeats.
    """
    widths, ratios = (max((len(choice) for choice in space.choices if choice.kind == kind), default=1)
                      for kind in ("width", "expand_ratio"))  # fmt: skip
    for width, ratio in itertools.product(range(widths), range(ratios)):
        down = {"width": width, "expand_ratio": ratio}
        yield space.at([max(len(choice) - 1 - down.get(choice.kind, 0), 0) for choice in space.choices])
