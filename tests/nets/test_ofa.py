"""Once-for-All's mobile networks: against what its own code computes, and their transformed kernels everywhere."""

import jax
import numpy as np
import pytest
from flax import nnx
from ofa_cases import CASES, GRADIENTS, LOGITS, SPACES, check_gradients, images, weights
from tiny import CLASSES, assert_close, disturbed, flat, relative_error

from bignas_jax.kernels.transform import transformed
from bignas_jax.nets.child import fold, forward, take
from bignas_jax.nets.mode import Mode
from bignas_jax.nets.sizes import sizes
from bignas_jax.nets.slicing import slice_params
from bignas_jax.nets.supernet import Supernet
from bignas_jax.ops.losses import cross_entropy
from bignas_jax.programs.buckets import shared
from bignas_jax.programs.weights import build
from bignas_jax.spaces.registry import space_of
from bignas_jax.step.optimizer import decayed
from configs import ofa_mbv3


def graph_of(space, classes=1000):
    return nnx.graphdef(nnx.eval_shape(lambda: Supernet(space, classes, rngs=nnx.Rngs(0))))


@pytest.mark.parametrize("name, mode, case, masked", [
    ("ofa_mbv3_w1.0", "eval", "r0", False), ("ofa_mbv3_w1.0", "train", "r0", True),
    ("ofa_proxyless_w1.3", "eval", "r0", True), ("ofa_proxyless_w1.3", "train", "min", False),
])  # fmt: skip
def test_logits_are_once_for_alls(name, mode, case, masked):
    space = SPACES[name]
    params, stored = weights(name)
    arch = space.read(CASES[name][case]["arch"])
    outer = shared(space, arch.resolution).arch if masked else arch
    row = sizes(space, outer, arch) if masked else None
    net, how = graph_of(space), Mode(statistics=stored if mode == "eval" else None)
    logits = jax.jit(lambda p, x: nnx.merge(net, p)(x, outer, row, how)[0])(params, images(0, 2, arch.resolution))
    assert relative_error(logits[:, :200], LOGITS[f"{name}/{mode}_{case}"]) < 1e-4


def test_gradients_are_once_for_alls():
    """Norms of the gradient of each tensor; those that the slice does not use are zero."""
    name = "ofa_mbv3_w1.0"
    case, space, (params, _) = GRADIENTS[name], SPACES[name], weights(name)
    arch = space.read(case["arch"])
    outer = shared(space, arch.resolution).arch
    net, row, x = graph_of(space), sizes(space, outer, arch), images(case["input_seed"], 2, arch.resolution)
    targets = np.eye(1000, dtype=np.float32)[[3, 7]]

    def loss(params):
        return cross_entropy(nnx.merge(net, params)(x, outer, row)[0], targets)

    check_gradients(name, *jax.jit(jax.value_and_grad(loss))(params), count=133)


def tiny_space():
    space = ofa_mbv3.get_config().space.to_dict()
    stage = dict(space["stages"]["mb2"], depth=(1, 2), width=(16,), stride=2,
                 kernel_size=((3, 5, 7),) * 2, expand_ratio=((3, 4),) * 2)  # fmt: skip
    stages = {"mb0": space["stages"]["mb0"] | {"width": (8,)}, "mb1": stage, "mb2": stage | {"activation": "h_swish"}}
    return space_of(space | dict(resolution=(16, 19), stem_width=(8,), head_width=(24,), stages=stages))


@pytest.fixture(scope="module")
def tiny_ofa():
    space = tiny_space()
    return space, *disturbed(space)


def test_masked_equals_sliced_with_the_gradients_of_the_matrices(tiny_ofa):
    space, graphdef, params = tiny_ofa
    rng = np.random.default_rng(1)
    targets = rng.dirichlet(np.ones(CLASSES), 3).astype(np.float32)
    outer = shared(space, 19).arch  # a side that no stride divides
    x = rng.standard_normal((3, 19, 19, 3)).astype(np.float32)

    def run(outer, row, params):
        return cross_entropy(nnx.merge(graphdef, params)(x, outer, row)[0], targets)

    masked = jax.jit(lambda row, params: jax.value_and_grad(lambda p: run(outer, row, p))(params))
    for kernels in ((3, 5), (5, 7)):
        arch = space.read({"ks": [*kernels, *kernels[::-1]], "e": [3, 4, 4, 3], "d": [2, 1], "r": 19})
        value, grads = masked(sizes(space, outer, arch), params)
        exact, theirs = jax.jit(jax.value_and_grad(lambda p, arch=arch: run(arch, None, p)))(params)
        np.testing.assert_allclose(value, exact, rtol=1e-5)
        assert_close(grads, theirs, rtol=1e-4, atol=1e-5)
        moved = {path for path, g in flat(grads).items() if path.endswith("matrix") and np.any(g)}
        used = {(1, kernels[0]), (2, kernels[1]), (3, kernels[1])}
        expected = {f"blocks.{block}.depthwise.to{side}_matrix" for block, k in used for side in (5, 3) if k <= side}
        assert moved == expected


def test_children_leave_with_their_kernels_baked_in(tiny_ofa):
    space, graphdef, params = tiny_ofa
    arch = space.read({"ks": [3, 5, 7, 3], "e": 4, "d": 2, "r": 16})
    names = {name for layer in space.layout(space.biggest) for name in layer.statistics()}
    x = np.random.default_rng(2).standard_normal((3, 16, 16, 3)).astype(np.float32)
    net = nnx.merge(graphdef, params)
    _, statistics = net(x, arch, None, Mode(collect=True))
    assert set(statistics) == names
    logits = net(x, arch, None, Mode(statistics=statistics))[0]
    child = take(space, params, statistics, arch)
    assert not [path for path in flat(child.params) if "matrix" in path]
    for made in (child, fold(child)):
        np.testing.assert_allclose(forward(made)(x), logits, rtol=1e-4, atol=1e-5)
    own = slice_params(space, params, arch)["blocks"][1]["depthwise"]["kernel"]
    wide = params["blocks"][1]["depthwise"]
    five = np.einsum("ij,jc->ic", wide["to5_matrix"], wide["kernel"][1:-1, 1:-1].reshape(25, -1)).reshape(5, 5, -1)
    three = np.einsum("ij,jc->ic", wide["to3_matrix"], five[1:-1, 1:-1].reshape(9, -1)).reshape(3, 3, -1)
    np.testing.assert_allclose(own, three[..., : own.shape[-1]], rtol=1e-4, atol=1e-6)


def test_matrices_start_as_the_identity_and_decay():
    _, params = build(tiny_space(), CLASSES)
    depthwise = params["blocks"][1]["depthwise"]
    np.testing.assert_array_equal(depthwise["to5_matrix"], np.eye(25))
    matrices = {side: depthwise[f"to{side}_matrix"] for side in (5, 3)}
    for border, side in ((0, 7), (1, 5), (2, 3)):
        cut = depthwise["kernel"][border : 7 - border, border : 7 - border]
        np.testing.assert_array_equal(transformed(depthwise["kernel"], matrices, side), cut)
    assert decayed(params)["blocks"][1]["depthwise"] == {"kernel": True, "to5_matrix": True, "to3_matrix": True}
    assert np.all(params["blocks"][1]["project_norm"]["scale"] == 1)  # nothing passes a zero without a shortcut
