"""Names of the arrays of parameters and of an optimizer's state: what they are stored under, and found again by."""

import collections
from collections.abc import Iterable
from typing import Any

import jax

from bignas_jax.spaces.layers import weight_name


def state_names(tree: Any) -> list[str]:
    """Names of an optimizer state's arrays, in the order of its leaves, such as 'trace.blocks.3.expand.kernel'.

    They do not tell where in a chain a transformation stands: clipping may come and go. An array whose name would not
    be its own has the class of its state in front, then a number.
    """
    found = list(_state_paths(tree, ()))
    names = _told_apart([".".join(path) for _, path in found], [owner for owner, _ in found])
    number = {name: iter(range(1, len(names) + 1)) for name in names}
    return [f"{name}#{next(number[name])}" if names.count(name) > 1 else name for name in names]


def _told_apart(names: list[str], owners: list[str]) -> list[str]:
    """The names, with their owners in front where a name occurs more than once."""
    times = collections.Counter(names)
    return [f"{owner}.{name}" if times[name] > 1 else name for name, owner in zip(names, owners, strict=True)]


def _state_paths(node: Any, path: tuple[str, ...], owner: str = "") -> Iterable[tuple[str, tuple[str, ...]]]:
    """The innermost class of a state and the path inside it, of each array."""
    if isinstance(node, tuple) and hasattr(node, "_fields"):
        for field in node._fields:
            yield from _state_paths(getattr(node, field), (field,), type(node).__name__)
    elif isinstance(node, tuple | list):
        for part in node:
            yield from _state_paths(part, path, owner)
    elif isinstance(node, dict):
        for key in sorted(node):
            yield from _state_paths(node[key], (*path, str(key)), owner)
    elif node is not None:
        yield owner, path


def named(tree: Any) -> dict[str, Any]:
    """The arrays by `weight_name` (`blocks.3.expand.kernel`): a form that does not depend on orbax or flax."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {weight_name(tuple(key.key for key in path)): leaf for path, leaf in leaves}


def unnamed(arrays: dict[str, Any], like: Any) -> Any:
    names = named(like)
    return jax.tree.unflatten(jax.tree.structure(like), [arrays[name] for name in names])
