"""The modules that compute layers, by the layers' kind.

A module is built as `Module(layer, rngs=...)`, where `layer` belongs to the space's biggest architecture. The `convs`
of the layer name the parts of the module. It is called as `module(x, layer, size, mode, drop_rate, rng)`:

    x: [B, H, W, C] input.
    layer: the layer of the architecture that is compiled.
    size: the sizes of the layer's dimensions by name.
    mode: a Mode; its `statistics` hold this layer alone, by convolution name.
    drop_rate: the rate of drop-connect.
    rng: the layer's own random key, or None.
    returns: the output [B, H', W', C'], and a dictionary of convolution name to (mean, unbiased variance).

Channels of the output that the sampled architecture lacks are zero. Their gradient may be anything, NaN included: an
elastic batch norm at the end of a module does not read it; a module that ends otherwise must not, either.
"""

from flax import nnx

from bignas_jax.nets.bottleneck import Bottleneck
from bignas_jax.nets.ends import Classifier, Head, Mix, Stem
from bignas_jax.nets.mbconv import MBConv
from bignas_jax.plugins import find
from bignas_jax.spaces.layers import Layer

MODULES: dict[str, type[nnx.Module]] = {
    "stem": Stem,
    "mbconv": MBConv,
    "bottleneck": Bottleneck,
    "head": Head,
    "mix": Mix,
    "classifier": Classifier,
}


def module_of(layer: Layer) -> type[nnx.Module]:
    """The class of a layer's module.

    Raises:
      ConfigError: there is no module of this kind.
    """
    return find(layer.kind, MODULES, "space: kind of layer")
