"""The supernet: weights as wide and deep as the space's biggest architecture. Every architecture is a slice of them.

A forward pass takes an *outer* architecture, which is static: weights are sliced to it at trace time. It can also take
the *sizes* of a sampled architecture inside the outer one, which are traced. Channels and kernel borders that the
sampled architecture does not use are masked, and blocks that it does not have are skipped. Without sizes, the outer
architecture itself runs and no mask is traced.
"""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from bignas_jax.kernels import native
from bignas_jax.nets.kinds import module_of
from bignas_jax.nets.mode import NOTED, PLAIN, Mode
from bignas_jax.nets.optional import run_or_skip
from bignas_jax.nets.sizes import ACTIVE, layer_sizes
from bignas_jax.ops import Size, rounding
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
          If ranges are noted, they come in place of the statistics: by the label of a layer, as `Tape.noted`.
        """
        layout, statistics, into = self.layout(outer), {}, None
        for number, layer in enumerate(layout):
            row = None if sampled is None else sampled[number]
            x, found = self.run(layer, x, row, mode, drop_connect_rate(layout, layer, mode), into)
            statistics |= found
            into = _behind(layer, row, into)
        return x, (statistics if mode.collect or mode.ranges is NOTED else None)

    def run(
        self,
        layer: Layer,
        x: jax.Array,
        row: jax.Array | None = None,
        mode: Mode = PLAIN,
        drop_rate: float = 0.0,
        into: Size | None = None,
    ) -> tuple[jax.Array, dict]:
        """Runs one layer, or skips it if the sampled architecture does not have it.

        Args:
          layer: a layer of the outer architecture.
          x: [B, H, W, C] input.
          row: the layer's row of `sizes`, or None.
          mode: how batch norm and regularisation act.
          drop_rate: the rate of drop-connect at this layer.
          into: the channels of x where they are rounded, or None.
        Returns:
          The output, and the statistics of the layer's batch norms by name (none without `mode.collect`), or the ranges
          of its tensors by its label.
        """
        module, position = (self.blocks[layer.path[1]], layer.path[1]) if layer.stage is not None else (
            getattr(self, layer.path[0]), len(self.blocks))  # fmt: skip
        if mode.statistics is not None:
            stored = {conv.name: mode.statistics[layer.statistics_name(conv)] for conv in layer.convs if conv.norm}
            mode = dataclasses.replace(mode, statistics=stored)
        rng = None if mode.rng is None else jax.random.fold_in(mode.rng, position)
        size = layer_sizes(layer, row)
        x = x.astype(self.dtype)

        def compute(x, module, size, mode, rng):
            y, statistics = module(x, layer, size, mode, drop_rate, rng)
            return y, (statistics if mode.collect else {})

        def run(x):
            return compute(x, module, size, mode, rng)

        def skip(x):
            return x, _zero_statistics(layer, mode)

        if mode.ranges is not None:
            return _on_tape(layer, x, row, mode, run, into)
        if mode.remat and layer.stage is not None:
            run = jax.checkpoint(run)
        if row is None or not layer.optional:
            y, found = run(x)
        elif native.usable(x.dtype) and not mode.remat:
            graphdef, params = nnx.split(module)

            def run_with(x, params, rest):
                row, statistics, rng = rest
                own = dataclasses.replace(mode, statistics=statistics, rng=rng)
                return compute(x, nnx.merge(graphdef, params), layer_sizes(layer, row), own, rng)

            rest = row, mode.statistics, rng
            y, found = run_or_skip(run_with, skip, row[ACTIVE] > 0, x, params, rest)
        else:
            y, found = jax.lax.cond(row[ACTIVE] > 0, run, skip, x)
        return y, {layer.statistics_name(conv): found[conv.name] for conv in layer.convs if conv.name in found}


def _behind(layer: Layer, row: jax.Array | None, before: Size | None) -> Size | None:
    """The channels behind a layer, of which `before` were before it; None where all are sampled."""
    out = layer_sizes(layer, row).get("out")
    if row is None or out is None:
        return None
    if layer.optional and before is not None:
        return Size(out.computed, jnp.where(row[ACTIVE] > 0, out.sampled, before.sampled))
    return out


def _on_tape(layer: Layer, x: jax.Array, row, mode: Mode, run: Callable, into: Size | None) -> tuple[jax.Array, dict]:
    """Runs one layer with the ranges of its tensors noted, or with its tensors rounded; see `ops.rounding`.

    What comes in is rounded at once where a convolution takes it, so that a shortcut around this gets the same.
    """
    label, noting = layer.label, mode.ranges is NOTED
    rounds = bool(layer.convs) and not (layer.pools and not layer.convs[0].norm)  # a classifier takes the mean first

    def taped(x):
        with rounding.on(rounding.Tape(None if noting else mode.ranges[label], into)) as tape:
            y, _ = run(tape.values(x) if rounds else x)
        return y, (tape.noted if noting else ())

    if row is None or not layer.optional:
        y, found = taped(x)
    else:
        form = jax.eval_shape(taped, x)[1]
        nothing = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), form)
        y, found = jax.lax.cond(row[ACTIVE] > 0, taped, lambda x: (x, nothing), x)
    return y, ({label: found} if noting else {})


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
