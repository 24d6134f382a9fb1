"""The modules that compute layers, by the layers' kind.

A module is built as `Module(layer, rngs=...)` from its layer in the space's biggest architecture, whose `convs` name
its parts. It is called as `module(x, layer, size, mode, drop_rate, rng)` and returns its output and the statistics of
its batch norms:

    x: [B, H, W, C] input.
    layer: the layer of the architecture that is compiled.
    size: the sizes of the layer's dimensions by name.
    mode: with `statistics` of this layer alone, by the names of its convolutions.
    drop_rate: of drop-connect. rng: key of its own, or None.
    returns: [B, H', W', C'], and a dictionary of convolution name to (mean, unbiased variance).
"""

from flax import nnx

from bignas_jax.nets.ends import Classifier, Head, Mix, Stem
from bignas_jax.nets.mbconv import MBConv
from bignas_jax.plugins import find
from bignas_jax.spaces.layers import Layer

MODULES: dict[str, type[nnx.Module]] = {
    "stem": Stem,
    "mbconv": MBConv,
    "head": Head,
    "mix": Mix,
    "classifier": Classifier,
}


def module_of(layer: Layer) -> type[nnx.Module]:
    """The class of a layer's module.

    Raises:
      ConfigError: there is none of its kind.
    """
    return find(layer.kind, MODULES, "space: kind of layer")
