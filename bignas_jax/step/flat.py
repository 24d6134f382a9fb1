"""Trees of arrays as two vectors, so that an update on a GPU is a few large kernels and not hundreds of small ones."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bignas_jax.kernels.split import split
from bignas_jax.step.optimizer import decayed


@dataclasses.dataclass(frozen=True)
class Flat:
    """How trees in the form of the weights are joined to {'kernel': [n], 'rest': [m]}.

    'kernel' holds what weight decay acts on (`optimizer.decayed`, with the same answer for these names). An optax
    transformation that treats all entries alike, up to this difference, does the same to the vectors as to the tree.

    Attributes:
      treedef: the structure of the weights.
      shapes: the shape of each array.
      kernels: positions of the arrays in 'kernel'.
      rest: positions of the arrays in 'rest'.
    """

    treedef: Any
    shapes: tuple[tuple[int, ...], ...]
    kernels: tuple[int, ...]
    rest: tuple[int, ...]

    @classmethod
    def of(cls, params: Any) -> "Flat":
        """The form of these weights, or of their shapes.

        Raises:
          ValueError: the arrays have several dtypes.
        """
        arrays, treedef = jax.tree.flatten(params)
        dtypes = {str(a.dtype) for a in arrays}
        if len(dtypes) != 1:
            raise ValueError(f"flat: found weights of the dtypes {sorted(dtypes)}, expected one")
        masks = jax.tree.leaves(decayed(params))
        positions = [tuple(n for n, mask in enumerate(masks) if mask == wanted) for wanted in (True, False)]
        return cls(treedef, tuple(a.shape for a in arrays), *positions)

    def join(self, tree: Any) -> dict[str, jax.Array]:
        """The vectors of one tree in the form of the weights."""
        arrays = jax.tree.leaves(tree)
        return {"kernel": _vector(arrays, self.kernels), "rest": _vector(arrays, self.rest)}

    def split(self, vectors: dict[str, jax.Array]) -> Any:
        """The tree of these vectors."""
        arrays: list[Any] = [None] * len(self.shapes)
        for name, positions in (("kernel", self.kernels), ("rest", self.rest)):
            parts = split(vectors[name], [self.shapes[n] for n in positions])
            for n, part in zip(positions, parts, strict=True):
                arrays[n] = part
        return jax.tree.unflatten(self.treedef, arrays)

    def join_within(self, state: Any) -> Any:
        """A state of optax, in which each tree in the form of the weights is joined."""
        return jax.tree.map(lambda n: self.join(n) if self._is_tree(n) else n, state, is_leaf=self._is_tree)

    def split_within(self, state: Any) -> Any:
        """The inverse of `join_within`."""
        return jax.tree.map(lambda n: self.split(n) if _is_joined(n) else n, state, is_leaf=_is_joined)

    def divide(self, vector: jax.Array) -> tuple[dict[str, jax.Array], jax.Array]:
        """The vectors at the start of a longer one, kernels first, and what comes after them."""
        kernels, rest = (int(sum(np.prod(self.shapes[n]) for n in part)) for part in (self.kernels, self.rest))
        return {"kernel": vector[:kernels], "rest": vector[kernels : kernels + rest]}, vector[kernels + rest :]

    def _is_tree(self, node: Any) -> bool:
        return jax.tree.structure(node) == self.treedef


def _is_joined(node: Any) -> bool:
    return isinstance(node, dict) and set(node) == {"kernel", "rest"}


def _vector(arrays: Sequence[jax.Array], positions: Sequence[int]) -> jax.Array:
    return jnp.concatenate([arrays[n].reshape(-1) for n in positions])
