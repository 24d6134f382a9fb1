"""Fresh weights of a supernet."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from bignas_jax.nets.supernet import Supernet
from bignas_jax.programs.kept import load_or_compile
from bignas_jax.spaces.space import Space


def build(space: Space, num_classes: int, *, dtype: str = "float32", seed: int = 0):
    """A supernet with fresh weights.

    Args:
      space: the search space.
      num_classes: classes of the classifier.
      dtype: dtype of activations and products, 'bfloat16' or 'float32'.
      seed: the seed of the random weights.
    Returns:
      graphdef: static and hashable; `nnx.merge(graphdef, params)` gives the Supernet.
      params: nested dictionary of float32 arrays.
    """
    graphdef = nnx.graphdef(nnx.eval_shape(lambda: Supernet(space, num_classes, dtype=dtype, rngs=nnx.Rngs(0))))
    return graphdef, draw_weights(space, num_classes, dtype=dtype, seed=seed)


def draw_weights(
    space: Space,
    num_classes: int,
    *,
    dtype: str = "float32",
    seed: int = 0,
    zero_gammas: bool = True,
    identity: str | None = None,
) -> Any:
    """Fresh weights of a supernet: a nested dictionary of float32 arrays.

    Args:
      space: the search space.
      num_classes: classes of the classifier.
      dtype: dtype of activations and products, 'bfloat16' or 'float32'.
      seed: the seed of the random weights.
      zero_gammas: whether the last batch norm of a block with a shortcut scales by 0 at first (Goyal et al., 2017,
        section 5.1), where the space says so; otherwise all scale by 1.
      identity: a text that determines `space`, `num_classes` and `dtype`; see `kept.Program`. None means that the
        weights are drawn by an ordinary function of JAX, which can itself be traced.
    """

    def init(key):
        net = Supernet(space, num_classes, dtype=dtype, rngs=nnx.Rngs(params=key))
        return nnx.to_pure_dict(nnx.state(net, nnx.Param))

    key = jax.random.key(seed)
    if identity is None:
        params = jax.jit(init)(key)
    else:
        params = load_or_compile(identity, "weights", lambda: jax.jit(init).lower(key))(key)
    if zero_gammas:
        return params
    return jax.tree_util.tree_map_with_path(lambda path, a: jnp.ones_like(a) if path[-1].key == "scale" else a, params)
