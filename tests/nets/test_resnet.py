"""Once-for-All's ResNet50D: against what its own code computes, masked against sliced, and exported."""

import jax
import numpy as np
import pytest
import torch
from flax import nnx
from ofa_cases import CASES, GRADIENTS, LOGITS, SPACES, check_gradients, images, weights
from tiny import CLASSES, assert_close, disturbed, relative_error

from bignas_jax.nets.child import fold, forward, take
from bignas_jax.nets.mode import Mode
from bignas_jax.nets.sizes import sizes
from bignas_jax.nets.supernet import Supernet
from bignas_jax.ops.losses import cross_entropy
from bignas_jax.ops.shortcut import average_pool_whole
from bignas_jax.programs.buckets import shared
from bignas_jax.spaces.registry import space_of
from configs import ofa_resnet50

NAME = "ofa_resnet50"


@pytest.mark.parametrize("mode, case", [("eval", "r0"), ("train", "min")])
def test_logits_are_once_for_alls(mode, case):
    space, (params, stored) = SPACES[NAME], weights(NAME)
    arch = space.read(CASES[NAME][case]["arch"])
    net = nnx.graphdef(nnx.eval_shape(lambda: Supernet(space, 1000, rngs=nnx.Rngs(0))))
    how, x = Mode(statistics=stored if mode == "eval" else None), images(0, 2, arch.resolution)
    logits = jax.jit(lambda p: nnx.merge(net, p)(x, arch, None, how)[0])(params)
    assert relative_error(logits[:, :200], LOGITS[f"{NAME}/{mode}_{case}"]) < 1e-4


def test_gradients_are_once_for_alls():
    space, (params, _), case = SPACES[NAME], weights(NAME), GRADIENTS[NAME]
    arch = space.read(case["arch"])
    net = nnx.graphdef(nnx.eval_shape(lambda: Supernet(space, 1000, rngs=nnx.Rngs(0))))
    x, targets = images(case["input_seed"], 2, arch.resolution), np.eye(1000, dtype=np.float32)[[3, 7]]

    def loss(params):
        return cross_entropy(nnx.merge(net, params)(x, arch, None)[0], targets)

    check_gradients(NAME, *jax.jit(jax.value_and_grad(loss))(params), count=122)


def tiny_space():
    space = ofa_resnet50.get_config().space.to_dict()
    stages = {name: dict(stage, depth=(1, 2), width=(16, 24)) for name, stage in list(space["stages"].items())[:3]}
    for name in ("rb1", "rb2"):
        stages[name].update(width=(32, 48, 64), expand_ratio=((0.25, 0.5, 0.75),) * 2)
    return space_of(space | dict(resolution=(32, 35), stem_width=(8, 16), stages=stages))


@pytest.fixture(scope="module")
def tiny_resnet():
    space = tiny_space()
    return space, *disturbed(space)


ARCHS = [
    {"d": [1, 1, 0], "e": [0.25, 0.75, 0.5, 0.25], "w": [1, 1, 0, 2], "r": 35},
    {"d": [0, 0, 1], "e": [0.5, 0.5, 0.25, 0.5], "w": [0, 0, 1, 1], "r": 35},
]


@pytest.mark.parametrize("form", ARCHS)
def test_masked_equals_sliced(tiny_resnet, form):
    """At a side that no stride divides, with and without the residual of the stem."""
    space, graphdef, params = tiny_resnet
    rng = np.random.default_rng(1)
    targets = rng.dirichlet(np.ones(CLASSES), 3).astype(np.float32)
    outer, arch = shared(space, 35).arch, space.read(form)
    x = rng.standard_normal((3, 35, 35, 3)).astype(np.float32)

    def run(outer, row, params):
        logits, statistics = nnx.merge(graphdef, params)(x, outer, row, Mode(collect=True))
        return cross_entropy(logits, targets), statistics

    masked = jax.jit(lambda row, p: jax.value_and_grad(lambda p: run(outer, row, p), has_aux=True)(p))
    (value, moments), grads = masked(sizes(space, outer, arch), params)
    sliced = jax.jit(jax.value_and_grad(lambda p: run(arch, None, p), has_aux=True))
    (exact, own), theirs = sliced(params)
    np.testing.assert_allclose(value, exact, rtol=1e-5)
    assert_close(grads, theirs, rtol=1e-4, atol=1e-5)
    for name, pair in own.items():
        for a, b in zip(moments[name], pair, strict=True):
            np.testing.assert_allclose(a[: len(b)], b, rtol=1e-4, atol=1e-5, err_msg=name)
            assert not np.any(np.asarray(a[len(b) :]))


def test_a_child_is_the_slice_and_leaves_as_it_is(tiny_resnet, tmp_path):
    import onnxruntime as ort

    from bignas_jax.interop.exports import torch_child
    from bignas_jax.interop.exports.onnx_graph import onnx_model
    from bignas_jax.interop.exports.tensors import describe, tensors

    space, graphdef, params = tiny_resnet
    for form in ARCHS:
        arch = space.read(form)
        x = np.random.default_rng(2).standard_normal((3, 35, 35, 3)).astype(np.float32)
        net = nnx.merge(graphdef, params)
        _, statistics = net(x, arch, None, Mode(collect=True))
        logits = net(x, arch, None, Mode(statistics=statistics))[0]
        child = take(space, params, statistics, arch)
        for made in (child, fold(child)):
            np.testing.assert_allclose(forward(made)(x), logits, rtol=1e-4, atol=1e-4)
            images, named = x.transpose(0, 3, 1, 2), tensors(made)
            module = torch_child.Child(describe(made))
            module.load_state_dict({n: torch.from_numpy(a) for n, a in named.items()}, strict=made.folded)
            found = module(torch.from_numpy(images)).detach().numpy()
            np.testing.assert_allclose(found, logits, rtol=1e-4, atol=1e-4)
            model = onnx_model(made, named, 0, {}).SerializeToString()
            (found,) = ort.InferenceSession(model, providers=["CPUExecutionProvider"]).run(None, {"images": images})
            np.testing.assert_allclose(found, logits, rtol=1e-4, atol=1e-4)
            maps = module.features(torch.from_numpy(images))
            sides = {name: value.shape[-1] for name, value in maps.items()}
            assert sides == {"stride4": 9, "stride8": 5}


@pytest.mark.parametrize("side", [4, 5])
def test_the_last_window_of_an_odd_side_divides_by_its_own_pixels(side):
    x = np.random.default_rng(0).standard_normal((2, side, side + 1, 3)).astype(np.float32)
    expected = torch.nn.functional.avg_pool2d(torch.from_numpy(x.transpose(0, 3, 1, 2)), 2, 2, ceil_mode=True)
    np.testing.assert_allclose(average_pool_whole(x), expected.numpy().transpose(0, 2, 3, 1), rtol=1e-5, atol=1e-6)
