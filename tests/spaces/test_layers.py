"""The description of a network, against the network itself."""

import importlib

import jax
import pytest
from flax import nnx

from bignas_jax.nets.mode import Mode
from bignas_jax.nets.slicing import param_shapes
from bignas_jax.nets.supernet import Supernet
from bignas_jax.spaces.layers import statistics, weight_name, weights
from bignas_jax.spaces.registry import space_of


@pytest.mark.parametrize("recipe", ["digits", "cifar10", "bignas", "attentive_nas"])
def test_weights_and_statistics_are_those_of_the_network(recipe):
    space = space_of(importlib.import_module(f"configs.{recipe}").get_config().space)
    net = nnx.eval_shape(lambda: Supernet(space, 7, rngs=nnx.Rngs(0)))
    graphdef, state = nnx.split(net)
    params = nnx.to_pure_dict(state)
    assert jax.tree.map(lambda a: a.shape, params) == jax.tree.map(lambda a: a.shape, param_shapes(space, 7))
    arch = space.smallest
    images = jax.ShapeDtypeStruct((2, arch.resolution, arch.resolution, 3), "float32")
    collect = jax.eval_shape(lambda p, x: nnx.merge(graphdef, p)(x, arch, None, Mode(collect=True))[1], params, images)
    found = {name: mean.shape[0] for name, (mean, _) in collect.items()}
    assert found == statistics(space.layout(arch))


def test_names_in_checkpoints_stay_as_they_were():
    """Runs of earlier versions are read by these names."""
    space = space_of(importlib.import_module("configs.attentive_nas").get_config().space)
    names = [weight.name for weight in weights(space.layout(space.smallest, 10))]
    assert names[:3] == ["stem.kernel", "stem_norm.scale", "stem_norm.bias"]
    assert names[-6:] == ["head.kernel", "head_norm.scale", "head_norm.bias", "head_project.kernel",
                          "classifier.kernel", "classifier.bias"]  # fmt: skip
    assert {"blocks.0.depthwise.kernel", "blocks.0.shortcut.conv.kernel", "blocks.2.expand_norm.scale",
            "blocks.7.squeeze_excite.reduce_kernel"} <= set(names)  # fmt: skip
    assert len(set(names)) == len(names)
    assert weight_name(("blocks", 3, "shortcut", "conv", "kernel")) == "blocks.3.shortcut.conv.kernel"


def test_a_layout_is_whole_and_in_order():
    space = space_of(importlib.import_module("configs.bignas").get_config().space)
    layout = space.layout(space.biggest, 1000)
    assert [layer.kind for layer in layout] == ["stem", *["mbconv"] * 26, "head", "classifier"]
    for before, after in zip(layout[:-1], layout[1:], strict=True):
        assert before.out_width == after.in_width
    sides = [layer.side for layer in layout]
    assert sides[0] == 320 and sides[1] == 160 and sides[-2] == 10 and layout[-1].out_width == 1000
    second = layout[2]
    assert (second.stage, second.index, second.optional, second.label) == (0, 1, True, "blocks.1")
    assert second.shortcut is not None and not second.shortcut.elastic and not second.shortcut.projects
