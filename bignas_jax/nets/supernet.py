"""The supernet: weights as wide and deep as the space's biggest architecture. Every architecture is a slice of them.

A forward pass takes an *outer* architecture, which is static: weights are sliced to it at trace time. It can also take
the *sizes* of a sampled architecture inside the outer one, which are traced. Channels and kernel borders that the
sampled architecture does not use are masked, and blocks that it does not have are skipped. Without sizes, the outer
architecture itself runs and no mask is traced.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from bignas_jax.nets.kinds import module_of
from bignas_jax.nets.mode import PLAIN, Mode
from bignas_jax.nets.sizes import ACTIVE, layer_sizes
from bignas_jax.spaces.architecture import Architecture
from bignas_jax.spaces.layers import Layer
from bignas_jax.spaces.space import Space


class Supernet(nnx.Module):
    """All weights of a search space: a module for each layer of its biggest architecture.

    Args:
      space: the search space.
      num_classes: classes of the linear classifier.
      dtype: dtype of activations and products, 'bfloat16' or 'float32'; parameters and statistics are float32.
    """

    def __init__(self, space: Space, num_classes: int, *, dtype: str = "float32", rngs: nnx.Rngs):
        self.space = space
        self.num_classes = num_classes
        self.dtype = dtype
        blocks = []
        for layer in space.layout(space.biggest, num_classes):
            module = module_of(layer)(layer, rngs=rngs)
            if layer.path == ("blocks", len(blocks)):
                blocks.append(module)
            else:
                (name,) = layer.path
                setattr(self, name, module)
        self.blocks = nnx.List(blocks)

    def layout(self, arch: Architecture) -> tuple[Layer, ...]:
        """The layers of an architecture."""
        return self.space.layout(arch, self.num_classes)

    def __call__(
        self, x: jax.Array, outer: Architecture, sampled: jax.Array | None = None, mode: Mode = PLAIN
    ) -> tuple[jax.Array, dict | None]:
        """Logits of a batch.

        Args:
          x: [B, R, R, 3] normalised images at the outer architecture's resolution (another resolution works too, if
            the strides allow it).
          outer: the architecture that weights are sliced to.
          sampled: the result of `sizes`, possibly traced; None means that the outer architecture itself runs.
          mode: how batch norm and regularisation act.
        Returns:
          float32 [B, num_classes] logits, and the batch-norm statistics if `mode.collect`; otherwise None. The
          statistics map a layer name (`block3.expand`) to (mean, unbiased variance), each of the outer width.
        """
        layout, statistics = self.layout(outer), {}
        for number, layer in enumerate(layout):
            row = None if sampled is None else sampled[number]
            x, found = self.run(layer, x, row, mode, drop_connect_rate(layout, layer, mode))
            statistics |= found
        return x, (statistics if mode.collect else None)

    def run(
        self, layer: Layer, x: jax.Array, row: jax.Array | None = None, mode: Mode = PLAIN, drop_rate: float = 0.0
    ) -> tuple[jax.Array, dict]:
        """Runs one layer, or skips it if the sampled architecture does not have it.

        Args:
          layer: a layer of the outer architecture.
          x: [B, H, W, C] input.
          row: the layer's row of `sizes`, or None.
          mode: how batch norm and regularisation act.
          drop_rate: the rate of drop-connect at this layer.
        Returns:
          The output, and the statistics of the layer's batch norms by name (none without `mode.collect`).
        """
        module, position = (self.blocks[layer.path[1]], layer.path[1]) if layer.stage is not None else (
            getattr(self, layer.path[0]), len(self.blocks))  # fmt: skip
        if mode.statistics is not None:
            stored = {conv.name: mode.statistics[layer.statistics_name(conv)] for conv in layer.convs if conv.norm}
            mode = dataclasses.replace(mode, statistics=stored)
        rng = None if mode.rng is None else jax.random.fold_in(mode.rng, position)
        size = layer_sizes(layer, row)
        x = x.astype(self.dtype)

        def run(x):
            y, statistics = module(x, layer, size, mode, drop_rate, rng)
            return y, (statistics if mode.collect else {})

        if mode.remat and layer.stage is not None:
            run = jax.checkpoint(run)
        if row is None or not layer.optional:
            y, found = run(x)
        else:
            y, found = jax.lax.cond(row[ACTIVE] > 0, run, lambda x: (x, _zero_statistics(layer, mode)), x)
        return y, {layer.statistics_name(conv): found[conv.name] for conv in layer.convs if conv.name in found}


def drop_connect_rate(layout: Sequence[Layer], layer: Layer, mode: Mode) -> float:
    """Rate x block index / number of blocks if the layer may be dropped, otherwise 0 (Tan and Le, 2019)."""
    if not (mode.drop_connect and layer.drops):
        return 0.0
    blocks = [other.path for other in layout if other.stage is not None]
    return mode.drop_connect * blocks.index(layer.path) / len(blocks)


def _zero_statistics(layer: Layer, mode: Mode) -> dict:
    if not mode.collect:
        return {}
    return {conv.name: (jnp.zeros(conv.out_width), jnp.zeros(conv.out_width)) for conv in layer.convs if conv.norm}
