"""Calibration and scores against PyTorch and NumPy, on any number of devices."""

import dataclasses

import jax
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from reference_torch import load_slice
from tiny import CLASSES, norm_statistics, relative_error

from bignas_jax.evaluation import Evaluator, placed
from bignas_jax.programs.buckets import Bucket, shared
from bignas_jax.programs.devices import batch_sharding, make_mesh, replicate

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
SIDE, CALIBRATION, BATCH = 24, 16, 8
RESOLUTION = 20


def batches(count, size, seed=0):
    rng = np.random.default_rng(seed)
    return [{"image": rng.integers(0, 256, (size, SIDE, SIDE, 3), np.uint8),
             "label": rng.integers(0, CLASSES, size).astype(np.int32),
             "weight": np.ones(size, np.float32)} for _ in range(count)]


def torch_images(batch):
    x = torch.tensor(batch["image"].transpose(0, 3, 1, 2).astype(np.float32)) / 255
    x = (x - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    return F.interpolate(x, (RESOLUTION, RESOLUTION), mode="bicubic", align_corners=False)


@pytest.fixture(scope="module")
def arch(tiny):
    return dataclasses.replace(tiny.space.biggest, resolution=RESOLUTION, width=(16, 8, 16, 32, 32),
                               depth=(1, 2, 1), kernel_size=(3, 3, 5))


@pytest.fixture(scope="module")
def runs(tiny, arch):
    """Evaluators by (devices, masked), each compiled for `arch`, with their bucket."""
    found = {}
    for devices, masked in ((1, False), (1, True), (8, True)):
        bucket = shared(tiny.space, RESOLUTION) if masked else Bucket(arch, masked=False)
        evaluator = Evaluator(tiny.space, tiny.graphdef, make_mesh(devices, {}), MEAN, STD)
        evaluator.compile(tiny.params, [bucket], SIDE, CALIBRATION, BATCH, progress=False)
        found[devices, masked] = evaluator, {arch: bucket}
    return found


def put(evaluator, found):
    return jax.device_put(found, batch_sharding(evaluator.mesh))


def calibrated(run, tiny, count=3):
    evaluator, archs = run
    params = replicate(evaluator.mesh, tiny.params)
    return evaluator.calibrate(params, archs, put(evaluator, batches(count, CALIBRATION)), count)


def scored(run, tiny, inputs):
    evaluator, archs = run
    params = replicate(evaluator.mesh, tiny.params)
    (score,) = evaluator.score(params, archs, calibrated(run, tiny), put(evaluator, inputs)).values()
    return score


@pytest.fixture(scope="module")
def child(tiny, arch):
    """The child in PyTorch, calibrated by its cumulative average."""
    child = load_slice(tiny.child(arch)[0], tiny.tensors).statistics("calibrate")
    with torch.no_grad():
        for batch in batches(3, CALIBRATION):
            child(torch_images(batch))
    return child.statistics("stored")


KINDS = [(1, False), (1, True), (8, True)]


@pytest.mark.parametrize("kind", KINDS)
def test_calibration_is_pytorchs_cumulative_average(kind, runs, tiny, arch, child):
    statistics = calibrated(runs[kind], tiny)[arch]
    for name, pair in norm_statistics(child).items():
        for ours, theirs in zip(statistics[name], pair, strict=True):
            assert relative_error(ours[: len(theirs)], theirs) < 1e-4, name


def test_biased_variances_are_those_of_whole_batches(runs, tiny, arch):
    (_, archs), (unbiased,) = runs[8, True], calibrated(runs[8, True], tiny).values()
    evaluator = Evaluator(tiny.space, tiny.graphdef, make_mesh(8, {}), MEAN, STD, biased=True)
    evaluator.compile(tiny.params, archs.values(), SIDE, CALIBRATION, 0, progress=False)
    (biased,) = calibrated((evaluator, archs), tiny).values()
    own = {name: conv for layer in tiny.space.layout(arch) for conv in layer.convs if conv.norm
           for name in [layer.statistics_name(conv)]}  # fmt: skip
    for name, conv in own.items():
        count = CALIBRATION * conv.side**2
        for ours, theirs, factor in zip(biased[name], unbiased[name], (1, (count - 1) / count), strict=True):
            np.testing.assert_allclose(ours, np.asarray(theirs) * np.float32(factor), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_scores_equal_a_count_in_numpy(kind, runs, tiny, child):
    inputs = batches(4, BATCH, seed=5)
    with torch.no_grad():
        logits = torch.cat([child(torch_images(batch)) for batch in inputs])
    labels = np.concatenate([batch["label"] for batch in inputs])
    order = np.argsort(-logits.numpy(), 1)
    score = scored(runs[kind], tiny, inputs)
    assert score.top1 == pytest.approx(np.mean(order[:, 0] == labels))
    assert score.top5 == pytest.approx(np.mean((order[:, :5] == labels[:, None]).any(1)))
    assert score.loss == pytest.approx(F.cross_entropy(logits, torch.tensor(labels).long()).item(), rel=1e-4)
    assert score.images == 4 * BATCH and score.images_per_second > 0
    assert 0 < score.top1 < score.top5 < 1, "a trivial case"


def test_padding_does_not_count(runs, tiny):
    inputs = batches(2, BATCH, seed=5)
    whole = scored(runs[8, True], tiny, inputs[:1])
    inputs[1]["weight"][:] = 0
    padded = scored(runs[8, True], tiny, inputs)
    assert dataclasses.replace(padded, images_per_second=0.0) == whole
    assert whole.images_per_second == 0  # one batch: nothing was timed
    inputs[0]["weight"][3:] = 0
    assert scored(runs[8, True], tiny, inputs).images == 3


def test_logits_that_are_not_numbers_or_tie_are_wrong_answers(runs, tiny, arch):
    evaluator, archs = runs[1, True]
    statistics = calibrated(runs[1, True], tiny)
    inputs = put(evaluator, batches(1, BATCH))
    for value, which in ((np.nan, ...), (0.0, ...), (np.nan, (..., 0))):  # no numbers; all equal; one is no number
        classifier = {name: np.array(a) for name, a in tiny.params["classifier"]["conv"].items()}
        for array in classifier.values():
            array[which] = value
        params = replicate(evaluator.mesh, tiny.params | {"classifier": {"conv": classifier}})
        score = evaluator.score(params, archs, statistics, inputs)[arch]
        assert (score.top1, score.top5) == (0, 0)
        assert np.isnan(score.loss) == np.isnan(value)


@pytest.mark.parametrize("came", [2, 4])
def test_another_number_of_batches_is_refused(came, runs, tiny):
    evaluator, archs = runs[1, True]
    inputs = put(evaluator, batches(came, CALIBRATION))
    with pytest.raises(ValueError, match=f"found {came} batches of images, expected 3"):
        evaluator.calibrate(replicate(evaluator.mesh, tiny.params), archs, inputs, 3)


@pytest.mark.parametrize("count", [0, 1])
def test_no_image_is_refused(count, runs, tiny):
    inputs = batches(count, BATCH)
    for batch in inputs:
        batch["weight"][:] = 0
    with pytest.raises(ValueError, match="found no image to score"):
        scored(runs[1, True], tiny, inputs)


def test_placement(tiny, arch):
    space = tiny.space
    archs = [space.biggest, arch, space.smallest]
    assert list(placed(space, archs, sliced=True).values()) == [Bucket(a, masked=False) for a in archs]
    assert placed(space, archs, sliced=False)[arch] == shared(space, RESOLUTION)
