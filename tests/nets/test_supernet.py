"""The supernet: every architecture masked inside the biggest, sliced exactly, and in plain PyTorch."""

import contextlib
import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from flax import nnx
from native_kernels import needs_native
from reference_torch import load_slice
from tiny import CLASSES, assert_close, flat, graphdef, norm_statistics, relative_error, run_child, tiny_space

from bignas_jax.kernels import native
from bignas_jax.kernels.depthwise.choice import using
from bignas_jax.kernels.norm import normalize as norm
from bignas_jax.kernels.norm import pallas as norm_pallas
from bignas_jax.kernels.product import cpu as product_cpu
from bignas_jax.kernels.product import pallas as product_pallas
from bignas_jax.kernels.product import told
from bignas_jax.nets.mode import Mode
from bignas_jax.nets.sizes import sizes
from bignas_jax.nets.supernet import drop_connect_rate
from bignas_jax.ops.losses import cross_entropy
from bignas_jax.programs.weights import build
from bignas_jax.spaces.mobilenet import SearchSpace, Stage
from configs import bignas

VARIANTS = ("tiny", "tiny_v3", "tiny_relu")
BATCH = 4


def images_of(resolution, seed=0, count=BATCH):
    return np.random.default_rng(seed).standard_normal((count, resolution, resolution, 3)).astype(np.float32)


TARGETS = np.random.default_rng(9).dirichlet(np.ones(CLASSES), BATCH).astype(np.float32)


@partial(jax.jit, static_argnames=("net", "bucket", "remat"))
def differentiate(net, bucket, params, images, sampled=None, remat=False):
    """Loss, logits, statistics and gradients on the batch's own statistics."""
    def loss(params):
        mode = Mode(collect=True, remat=remat)
        logits, statistics = nnx.merge(net, params)(images, bucket, sampled, mode)
        return cross_entropy(logits, TARGETS), (logits, statistics)

    (value, (logits, statistics)), grads = jax.value_and_grad(loss, has_aux=True)(params)
    return value, logits, statistics, grads


@partial(jax.jit, static_argnames=("net", "bucket"))
def predict(net, bucket, params, images, statistics, sampled=None):
    return nnx.merge(net, params)(images, bucket, sampled, Mode(statistics=statistics))[0]


def bucket_at(space, resolution):
    return dataclasses.replace(space.biggest, resolution=resolution)


def some_archs(space, resolution, count):
    """The smallest, the biggest and random ones, of one resolution."""
    rng = np.random.default_rng(1)
    drawn = [space.smallest, space.biggest, *(space.sample(rng) for _ in range(count - 2))]
    return [dataclasses.replace(arch, resolution=resolution) for arch in drawn]


def assert_inside(padded, exact, rtol=1e-4):
    """Statistics of a masked run against those of the sliced one, on the channels that exist."""
    for name, pair in exact.items():
        for ours, theirs in zip(padded[name], pair, strict=True):
            assert relative_error(ours[: len(theirs)], theirs) < rtol, name


@pytest.mark.parametrize("variant, resolution",
                         [("tiny", 26), ("tiny", 20), ("tiny_v3", 26), ("tiny_relu", 20)])
def test_masked_equals_pytorch(variant, resolution, request):
    """Logits, loss, statistics and the gradient of every weight of the supernet, used or not."""
    made = request.getfixturevalue(variant)
    images, bucket = images_of(resolution), bucket_at(made.space, resolution)
    for arch in some_archs(made.space, resolution, 8):
        sampled = sizes(made.space, bucket, arch)
        value, logits, statistics, grads = differentiate(made.graphdef, bucket, made.params, images, sampled)
        child, leaves = made.child(arch)
        theirs = run_child(child.statistics("batch"), leaves, images)
        loss = F.cross_entropy(theirs, torch.tensor(TARGETS))
        loss.backward()
        assert relative_error(logits, theirs.detach()) < 1e-4
        assert relative_error(value, loss.item()) < 1e-5
        expected = made.gradients(leaves)
        assert_close(grads, expected, rtol=2e-4, atol=1e-5)
        for path, gradient in flat(expected).items():
            assert not flat(grads)[path][gradient == 0].any() or path == "blocks.4.project_norm.bias", path


@pytest.mark.parametrize("variant, resolution", [("tiny", 26), ("tiny_v3", 26), ("tiny_relu", 20)])
def test_masked_equals_sliced(variant, resolution, request):
    made = request.getfixturevalue(variant)
    images, bucket = images_of(resolution), bucket_at(made.space, resolution)
    smallest, _, drawn = some_archs(made.space, resolution, 3)
    for arch in (smallest, drawn):
        sampled = sizes(made.space, bucket, arch)
        masked = differentiate(made.graphdef, bucket, made.params, images, sampled)
        sliced = differentiate(made.graphdef, arch, made.params, images)
        assert relative_error(masked[0], sliced[0]) < 1e-5
        assert relative_error(masked[1], sliced[1]) < 1e-4
        assert_inside(masked[2], sliced[2])
        assert_close(masked[3], sliced[3], rtol=1e-4, atol=1e-5)
        assert {path for path, g in flat(masked[3]).items() if not g.any()} == {
            path for path, g in flat(sliced[3]).items() if not g.any()}


def interpret_gpu_kernels(monkeypatch):
    """A CPU interprets them, and memory that nothing was written to is NaN."""
    monkeypatch.setattr(told, "kernels", lambda *_: product_pallas)
    monkeypatch.setattr(norm, "_passes", lambda x: norm_pallas)
    return using("pallas")


def spoil_unwritten_memory(monkeypatch):
    """Of the native kernels: NaN in what they leave as it is."""
    multiply = product_cpu.multiply

    def loose(x, kernel, used, turned=False, whole=False, moments=False):
        y, found = multiply(x, kernel, used, turned, whole, moments)
        written = whole or used.outputs is None or jnp.arange(y.shape[-1]) < used.outputs
        return jnp.where(written, y, jnp.nan), found

    monkeypatch.setattr(product_cpu, "multiply", loose)
    monkeypatch.setattr(native, "unwritten", lambda shapes: [
        jnp.full(s.shape, jnp.nan if jnp.issubdtype(s.dtype, jnp.floating) else 1, s.dtype) for s in shapes
    ])  # fmt: skip
    return contextlib.nullcontext()


@pytest.mark.parametrize("spoil", [
    interpret_gpu_kernels,
    pytest.param(spoil_unwritten_memory, marks=needs_native),
])  # fmt: skip
def test_memory_that_kernels_leave_unwritten_is_not_read(spoil, monkeypatch):
    """It holds NaN here: whoever read it would spread it. Blocks that the sampled architecture lacks are skipped."""
    stages = (
        Stage("mb1", (8, 16), depth=(1,), kernel_size=(3,), expand_ratio=(1,), stride=1, se=False),
        Stage("mb2", (8, 24), depth=(1, 2), kernel_size=(3, 5), expand_ratio=(2, 3), stride=2, se=True),
    )
    space = SearchSpace(
        resolution=(12,), stem_width=(8, 16), stem_stride=2, stages=stages,
        head_width=(24, 40), v3_head=True, activation="h_swish",
    )  # fmt: skip
    (net, params), rng = build(space, CLASSES), np.random.default_rng(3)
    params = jax.tree.map(lambda a: a + 0.2 * rng.standard_normal(a.shape).astype(np.float32), params)  # no zero scales
    images, bucket = images_of(12), space.biggest
    archs = [space.smallest, space.sample(rng)]
    expected = [differentiate(net, arch, params, images) for arch in archs]
    quickly = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
    run = jax.jit(differentiate.__wrapped__, static_argnames=("net", "bucket", "remat"), compiler_options=quickly)
    with spoil(monkeypatch):
        for arch, sliced in zip(archs, expected, strict=True):
            masked = run(net, bucket, params, images, jnp.asarray(sizes(space, bucket, arch)))
            for value, exact in zip(masked[:2], sliced[:2], strict=True):
                assert relative_error(value, exact) < 1e-4
            assert_inside(masked[2], sliced[2])
            assert_close(masked[3], sliced[3], rtol=2e-4, atol=1e-5)


def test_statistics_and_calibrated_logits_equal_pytorch(tiny):
    """Batch statistics (mean and unbiased variance), then logits on their average."""
    resolution = 26
    bucket = bucket_at(tiny.space, resolution)
    for arch in some_archs(tiny.space, resolution, 5):
        sampled = sizes(tiny.space, bucket, arch)
        child = load_slice(tiny.child(arch)[0], tiny.tensors).statistics("calibrate")
        collected = []
        with torch.no_grad():
            for seed in (1, 2, 3):
                images = images_of(resolution, seed)
                child(torch.tensor(images.transpose(0, 3, 1, 2)))
                collected.append(differentiate(tiny.graphdef, bucket, tiny.params, images, sampled)[2])
            mean = jax.tree.map(lambda *values: sum(values) / 3, *collected)
            assert_inside(mean, norm_statistics(child))
            theirs = child.statistics("stored")(torch.tensor(images_of(resolution).transpose(0, 3, 1, 2)))
        ours = predict(tiny.graphdef, bucket, tiny.params, images_of(resolution), mean, sampled)
        assert relative_error(ours, theirs) < 1e-4


@pytest.mark.parametrize("variant", VARIANTS)
def test_stored_statistics_equal_pytorch(variant, request):
    made = request.getfixturevalue(variant)
    bucket, images = bucket_at(made.space, 20), images_of(20)
    for arch in some_archs(made.space, 20, 4):
        child, leaves = made.child(arch)
        with torch.no_grad():
            theirs = run_child(child.statistics("stored"), leaves, images)
        sampled = sizes(made.space, bucket, arch)
        ours = predict(made.graphdef, bucket, made.params, images, made.statistics, sampled)
        assert relative_error(ours, theirs) < 1e-4


def test_blocks_may_differ_inside_a_stage(tiny):
    arch = dataclasses.replace(tiny.space.biggest, resolution=20, kernel_size=(3, (5, 3), 3),
                               expand_ratio=(1, (2, 3), 3))
    bucket, images = bucket_at(tiny.space, 20), images_of(20)
    child, leaves = tiny.child(arch)
    with torch.no_grad():
        theirs = run_child(child.statistics("stored"), leaves, images)
    for outer, sampled in ((bucket, sizes(tiny.space, bucket, arch)), (arch, None)):
        ours = predict(tiny.graphdef, outer, tiny.params, images, tiny.statistics, sampled)
        assert relative_error(ours, theirs) < 1e-4


def test_sizes_are_what_the_blocks_of_the_architecture_say(tiny):
    space = tiny.space
    arch = dataclasses.replace(space.smallest, resolution=26)
    found = sizes(space, bucket_at(space, 26), arch)
    # Active, in, middle, out, squeezed, kernel; the second blocks of mb1 and mb2 are skipped.
    stem, *inside, head, classifier = found.tolist()
    assert inside == [[1, 8, 8, 8, 0, 3], [0, 0, 0, 0, 0, 0], [1, 8, 16, 16, 8, 3],
                      [0, 0, 0, 0, 0, 0], [1, 16, 48, 24, 0, 3]]
    assert (stem[:2], head[:2], classifier[:2]) == ([1, 8], [1, 32], [1, 0])


@pytest.mark.parametrize("change", [
    dict(resolution=20), dict(width=(24, 16, 24, 32, 40)), dict(width=(16, 16, 24, 32, 48)),
    dict(width=(16, 16, 32, 32, 40)), dict(depth=(3, 2, 1)), dict(kernel_size=(3, 7, 5)),
    dict(expand_ratio=(1, 4, 4)),
])
def test_an_architecture_that_does_not_fit_is_refused(change, tiny):
    arch = dataclasses.replace(tiny.space.biggest, **change)
    with pytest.raises(ValueError, match="does not fit inside"):
        sizes(tiny.space, tiny.space.biggest, arch)
    sizes(tiny.space, tiny.space.biggest, tiny.space.biggest)


def test_rematerialisation_changes_no_number(tiny):
    images, bucket = images_of(20), bucket_at(tiny.space, 20)
    sampled = sizes(tiny.space, bucket, dataclasses.replace(tiny.space.smallest, resolution=20))
    kept = differentiate(tiny.graphdef, bucket, tiny.params, images, sampled)
    again = differentiate(tiny.graphdef, bucket, tiny.params, images, sampled, remat=True)
    assert_close(again, kept, rtol=1e-5, atol=1e-6)
    jaxpr = jax.make_jaxpr(lambda *a: differentiate(tiny.graphdef, bucket, *a, remat=True))
    assert str(jaxpr(tiny.params, images, sampled)).count("remat") >= 5


def test_bfloat16_is_close_to_float32(tiny):
    images, bucket = images_of(20), bucket_at(tiny.space, 20)
    half = graphdef(tiny.space, CLASSES, "bfloat16")
    sampled = sizes(tiny.space, bucket, bucket)
    exact = predict(tiny.graphdef, bucket, tiny.params, images, tiny.statistics, sampled)
    rough = predict(half, bucket, tiny.params, images, tiny.statistics, sampled)
    assert rough.dtype == jnp.float32
    assert 1e-4 < relative_error(rough, exact) < 0.05
    _, _, statistics, grads = jax.eval_shape(
        lambda params: differentiate(half, bucket, params, images, sampled), tiny.params)
    assert {leaf.dtype for leaf in jax.tree.leaves((statistics, grads))} == {np.dtype(np.float32)}


def test_fresh_weights(tiny):
    """Every block starts as its shortcut, since the last scales are zero."""
    net, params = build(tiny.space, CLASSES, seed=3)
    assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, tiny.params)
    for block in params["blocks"].values():
        assert not block["project_norm"]["scale"].any() and not block["project_norm"]["bias"].any()
        assert (block["depthwise_norm"]["scale"] == 1).all()
        assert block["project"]["kernel"].any() and block["depthwise"]["kernel"].any()
    bucket = bucket_at(tiny.space, 20)
    shaken = params | {"blocks": {n: b | {"project": {"kernel": b["project"]["kernel"] + 1}}
                                  for n, b in params["blocks"].items()}}
    sampled, images = sizes(tiny.space, bucket, bucket), images_of(20)
    before, after = (differentiate(net, bucket, p, images, sampled)[1] for p in (params, shaken))
    np.testing.assert_array_equal(before, after)
    deviation = params["head"]["conv"]["kernel"].std()
    assert abs(deviation / (2 / 40) ** 0.5 - 1) < 0.1
    other = build(tiny.space, CLASSES, seed=4)[1]
    assert not np.array_equal(other["stem"]["conv"]["kernel"], params["stem"]["conv"]["kernel"])


def test_drop_connect_rates():
    """Rate x index / blocks in the last two stages, where shapes match: only the second block of mb2 here."""
    space = tiny_space()
    layout = space.layout(space.biggest)
    rates = [drop_connect_rate(layout, layer, Mode(drop_connect=0.2)) for layer in layout if layer.stage is not None]
    np.testing.assert_allclose(rates, [0, 0, 0, 0.2 * 3 / 5, 0])


def test_drop_connect_rates_of_the_large_space():
    """In mb6 and mb7 all blocks but the first, whose shape changes."""
    space = SearchSpace.from_config(bignas.get_config().space)
    layout = space.layout(space.biggest)
    rates = [drop_connect_rate(layout, layer, Mode(drop_connect=0.2)) for layer in layout if layer.stage is not None]
    depths = (2, 3, 3, 4, 6, 6, 2)
    total, first = sum(depths), sum(depths[:5])
    expected = np.zeros(total)
    expected[first + 1 : first + 6] = 0.2 * np.arange(first + 1, first + 6) / total
    expected[total - 1] = 0.2 * (total - 1) / total
    np.testing.assert_allclose(rates, expected)


@partial(jax.jit, static_argnames=("net", "bucket", "dropout", "drop_connect"))
def regularised(net, bucket, params, images, statistics, key, dropout, drop_connect):
    mode = Mode(statistics=statistics, rng=key, dropout=dropout, drop_connect=drop_connect)
    return nnx.merge(net, params)(images, bucket, None, mode)[0]


def test_dropout_keeps_the_mean_and_has_its_rate(tiny):
    """With the identity for a classifier, the logits are the features behind the dropout."""
    bucket, count, rate = bucket_at(tiny.space, 20), 256, 0.3
    images = np.repeat(images_of(20, count=1), count, 0)
    features = tiny.params["classifier"]["conv"]["kernel"].shape[0]
    eye = {"kernel": np.eye(features, dtype=np.float32), "bias": np.zeros(features, np.float32)}
    params, key = tiny.params | {"classifier": {"conv": eye}}, jax.random.key(0)
    net = graphdef(tiny.space, features)
    clean = regularised(net, bucket, params, images, tiny.statistics, None, rate, 0.0)
    noisy = regularised(net, bucket, params, images, tiny.statistics, key, rate, 0.0)
    kept = np.asarray(noisy != 0)
    assert abs(kept.mean() - (1 - rate)) < 4 * (rate * (1 - rate) / kept.size) ** 0.5
    np.testing.assert_allclose(noisy, np.where(kept, clean / (1 - rate), 0), rtol=1e-5)
    assert len(np.unique(kept, axis=0)) > 200, "images share a mask"


def test_drop_connect_drops_whole_branches(tiny):
    """An image has its block's branch scaled up, or not at all, with the stated odds; the key decides."""
    bucket, count = bucket_at(tiny.space, 20), 512
    images = np.repeat(images_of(20, count=1), count, 0)
    rate = 0.5 * 3 / 5

    def logits(key, branch=1.0):
        last = {name: a * np.float32(branch) for name, a in tiny.params["blocks"][3]["project_norm"].items()}
        blocks = tiny.params["blocks"] | {3: tiny.params["blocks"][3] | {"project_norm": last}}
        params = tiny.params | {"blocks": blocks}
        found = regularised(tiny.graphdef, bucket, params, images, tiny.statistics, key, 0.0, 0.5)
        return np.asarray(found)

    noisy, dropped, kept = logits(jax.random.key(0)), logits(None, 0.0), logits(None, 1 / (1 - rate))
    is_dropped, is_kept = (np.abs(noisy - outcome).max(1) < 1e-4 for outcome in (dropped, kept))
    assert (is_dropped ^ is_kept).all()
    assert abs(is_dropped.mean() - rate) < 4 * (rate * (1 - rate) / count) ** 0.5
    assert not np.array_equal(noisy, logits(jax.random.key(1)))
