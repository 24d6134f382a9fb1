"""A network in 8-bit integers, computed in JAX: beside the ONNX file in integers that onnxruntime runs.

A value near a tie falls to one side or the other by rounding in float32. From layer to layer such values become more.
So two exact computations in 8 bits end with other errors of the same size. Ranges and first layers are compared.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime
import pytest
from flax import nnx
from tiny import CLASSES, graphdef

from bignas_jax.evaluation import Evaluator
from bignas_jax.interop.exports import formats, integers
from bignas_jax.nets.child import fold, take
from bignas_jax.nets.mode import NOTED, Mode
from bignas_jax.nets.sizes import sizes
from bignas_jax.ops import prepare
from bignas_jax.programs.buckets import Bucket, shared
from bignas_jax.programs.devices import batch_sharding, make_mesh, replicate

EARLY = {"stem": "stem.conv.h_swish", "blocks.0": "blocks.0"}


@pytest.fixture(scope="module")
def arch(tiny_v3):
    space = tiny_v3.space
    width = (*(8, 16, 16, 24, 32), *space.biggest.width[5:])
    return dataclasses.replace(space.smallest, depth=(1, 2, 1), width=width, expand_ratio=(1, 2, 3))


@pytest.fixture(scope="module")
def images(arch):
    return np.random.default_rng(0).standard_normal((16, arch.resolution, arch.resolution, 3)).astype(np.float32)


def in_jax(tiny, outer, sampled, images):
    """The logits in 8 bits, the outputs of the first layers, and the ranges that both rest on."""
    definition = graphdef(tiny.space, CLASSES)

    @jax.jit
    def run(params, statistics, images):
        net, early, x = nnx.merge(definition, params), {}, images
        _, ranges = net(images, outer, sampled, Mode(statistics=statistics, ranges=NOTED))
        mode = Mode(statistics=statistics, ranges=ranges)
        for number, layer in enumerate(tiny.space.layout(outer)[:2]):
            x, _ = net.run(layer, x, None if sampled is None else sampled[number], mode)
            early[layer.label] = jnp.moveaxis(x, -1, 1)
        return net(images, outer, sampled, mode)[0], early, ranges

    with jax.default_matmul_precision("highest"):
        return jax.device_get(run(tiny.params, tiny.statistics, images))


@pytest.fixture(scope="module")
def own(tiny_v3, arch, images):
    return in_jax(tiny_v3, arch, None, images)


def of_file(path, first, names):
    """The values of some tensors of an ONNX file; each operator is run alone."""
    model = onnx.load(path)
    there = {output for node in model.graph.node for output in node.output}
    model.graph.output.extend(
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in names if name in there
    )
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return dict(zip((out.name for out in session.get_outputs()), session.run(None, {"images": first}), strict=True))


def rms(a):
    return float(np.sqrt(np.mean(np.square(a))))


def test_ranges_and_rounded_values_are_those_of_the_onnx_file(tiny_v3, arch, images, own, tmp_path):
    logits, early, ranges = own
    child, first = take(tiny_v3.space, tiny_v3.params, tiny_v3.statistics, arch), np.moveaxis(images, -1, 1)
    path = integers.write_integers(child, tmp_path, 0, {}, [first])
    held = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}
    tensors = {name.removesuffix("_scale") for name, a in held.items() if name.endswith("_scale") and a.size == 1}
    theirs = {(float(held[f"{name}_scale"]), int(held[f"{name}_zero_point"])) for name in tensors - {"logits"}}
    rows = np.concatenate(list(ranges.values()))
    ours = {(row.sum() / 255, round(-128 + row[0] / (row.sum() / 255))) for row in rows}
    assert len(theirs) > 20
    for found, others in ((ours, theirs), (theirs, ours)):
        for scale, zero in found:
            assert any(abs(scale / s - 1) < 1e-3 and abs(zero - z) <= 1 for s, z in others), (scale, zero)

    formats.write_onnx(fold(child), tmp_path, 0, {})
    exact, integer = (of_file(file, first, EARLY.values()) for file in (tmp_path / "child.onnx", path))
    for layer, name in EARLY.items():
        assert rms(early[layer] - integer[name]) < 0.25 * rms(integer[name] - exact[name]), layer
    size = rms(logits - exact["logits"]) / rms(integer["logits"] - exact["logits"])
    assert 0.6 < size < 1.6


def test_a_shared_program_rounds_as_the_architecture_itself(tiny_v3, arch, images, own):
    outer = shared(tiny_v3.space, arch.resolution).arch
    logits, early, ranges = in_jax(tiny_v3, outer, sizes(tiny_v3.space, outer, arch), images)
    assert set(own[2]) < set(ranges)  # the bucket has a block that is skipped
    for label, rows in own[2].items():
        if len(rows) == len(ranges[label]):  # otherwise a shortcut may project in the bucket
            np.testing.assert_allclose(ranges[label], rows, rtol=1e-3, atol=1e-3)
    for layer, values in own[1].items():
        np.testing.assert_allclose(early[layer][:, : values.shape[1]], values, atol=1e-5)
        assert not early[layer][:, values.shape[1] :].any()
    assert rms(logits - own[0]) < 0.02 * own[0].std()


def test_an_evaluator_takes_the_ranges_over_batches_and_devices(tiny_v3):
    space, arch, rng = tiny_v3.space, tiny_v3.space.smallest, np.random.default_rng(3)
    shape, labels = (8, 24, 24, 3), np.arange(8, dtype=np.int32) % CLASSES
    batches = [
        {"image": rng.integers(0, most, shape, np.uint8), "label": labels, "weight": np.ones(8, np.float32)}
        for most in (256, 99)
    ]
    mesh, bucket = make_mesh(2, {}), {arch: Bucket(arch, masked=False)}
    evaluator = Evaluator(space, graphdef(space, CLASSES), mesh, (0.5,) * 3, (0.25,) * 3, rounded=True)
    evaluator.compile(tiny_v3.params, bucket.values(), 24, 8, 8, progress=False)
    assert {key[0] for key in evaluator.executables} == {"calibrate", "ranges", "score"}
    placed = [jax.device_put(batch, batch_sharding(mesh)) for batch in batches]
    params = replicate(mesh, tiny_v3.params)
    statistics = evaluator.calibrate(params, bucket, placed, 2)
    outcomes, _ = evaluator.outcomes(params, bucket, statistics, placed)
    assert np.isfinite(outcomes[arch]).all() and len(outcomes[arch]) == 16
    norms, ranges = statistics[arch]
    images = [batch["image"] for batch in placed]
    parts = [evaluator._with_ranges(params, bucket, {arch: norms}, [image])[arch][1] for image in images]
    jax.tree.map(lambda whole, *part: np.testing.assert_array_equal(whole, np.maximum(*part)), ranges, *parts)
    pixels = prepare(np.concatenate([batch["image"] for batch in batches]), arch.resolution, (0.5,) * 3, (0.25,) * 3)
    np.testing.assert_allclose(ranges["stem"][0], [-pixels.min(), pixels.max()], rtol=1e-5)
