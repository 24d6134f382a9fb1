"""Once-for-All's own forms of an architecture: `{"ks": [...], "e": [...], "d": [...], "r": 224}`, and ResNet's."""

from collections.abc import Mapping, Sequence
from typing import Any

from bignas_jax.spaces.architecture import Architecture
from bignas_jax.spaces.checks import make_divisible
from bignas_jax.spaces.mobilenet import Stage

KEYS = ("ks", "e", "d", "r")
RESNET_KEYS = ("d", "e", "w", "r")


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
    _check_keys(form, KEYS)
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


def _check_keys(form: Mapping[str, Any], keys: Sequence[str]) -> None:
    missing, unknown = [name for name in keys if name not in form], [str(name) for name in form if name not in keys]
    for kind, names in (("missing", missing), ("unknown", unknown)):
        if names:
            raise ValueError(f"architecture: found {kind} keys {', '.join(names)}, expected exactly {', '.join(keys)}")


def _entries(name: str, value: Any, count: int, kinds: type | tuple = int) -> list:
    """The entries of a list, or a single number for each."""
    wanted = "an integer" if kinds is int else "a number"
    entries = list(value) if isinstance(value, list | tuple) else [value] * count
    for entry in entries:
        if not isinstance(entry, kinds) or isinstance(entry, bool):
            raise ValueError(f"architecture: {name}: found {entry!r}, expected {wanted}, or a list of {count}")
    if len(entries) != count:
        raise ValueError(f"architecture: {name}: found {len(entries)} entries, expected {count}")
    return entries


def _by_stage(entries: Sequence[int], blocks: Sequence[int]):
    """The entries in parts, one for each stage."""
    start = 0
    for count in blocks:
        yield tuple(entries[start : start + count])
        start += count


def read_resnet_form(stages: Sequence[Any], values: Mapping[str, Any]) -> Architecture:
    """The architecture in Once-for-All's form of ResNet50D: `{"d": [...], "e": [...], "w": [...], "r": 224}`.

    `d` has an entry for the stem, whose residual convolution runs if it is the largest of all, and one for each stage:
    the blocks beyond the smallest depth. `e` has the ratio of each block at the largest depths; entries of blocks
    beyond the depth do nothing. `w` has positions: of the stem's output channels, which decide its middle channels, of
    the same again, and of each stage's. A single number goes to all. `r` is the resolution, alone or in a list.

    Args:
      stages: the stages of the space; the first one is part of the stem.
      values: the form.
    Raises:
      ValueError: a key is missing or unknown, or a value is malformed; the message names it.
    """
    _check_keys(values, RESNET_KEYS)
    stem, *others = stages
    most = max(stage.depth[-1] - stage.depth[0] for stage in others)
    blocks = [stage.depth[-1] for stage in others]
    residual, *more = _entries("d", values["d"], len(stages))
    if bad := [entry for entry in more if entry < 0]:
        raise ValueError(f"architecture: d: found {bad[0]}, expected at least 0")
    depth = [min(stage.depth[0] + entry, stage.depth[-1]) for stage, entry in zip(others, more, strict=True)]
    ratios = _by_stage(_entries("e", values["e"], sum(blocks), (int, float)), blocks)
    middle, *positions = _entries("w", values["w"], len(stages) + 1)
    width = [make_divisible(_at("w", stem.width, middle) // 2)]
    width += [_at("w", stage.width, position) for stage, position in zip(stages, positions, strict=True)]
    (resolution,) = _entries("r", values["r"], 1)
    return Architecture(
        resolution=resolution,
        width=tuple(width),
        kernel_size=tuple(stage.kernel_size[-1] for stage in stages),
        expand_ratio=(1, *(own[:count] for own, count in zip(ratios, depth, strict=True))),
        depth=(2 if residual == most else 1, *depth),
    )


def _at(name: str, values: Sequence[int], position: int) -> int:
    if not 0 <= position < len(values):
        raise ValueError(f"architecture: {name}: found {position}, expected a position from 0 to {len(values) - 1}")
    return values[position]
