"""Images of a search on the devices: the same outcomes as the evaluation of a split, without a compile or a read."""

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from bignas_jax.config.options import Options
from bignas_jax.data import DataError, Loader
from bignas_jax.evaluation import score_of
from bignas_jax.programs.buckets import shared
from bignas_jax.programs.devices import replicate
from bignas_jax.programs.weights import build
from bignas_jax.runs.session import Session
from bignas_jax.search import held_out as images
from bignas_jax.search.held_out import HeldOut, Part
from configs import digits

HELD_OUT = 90


def config(devices: int = 2, **search) -> ConfigDict:
    found = digits.get_config()
    stage = dict(depth=(1, 2), kernel_size=(3,), expand_ratio=(2,), se=False)
    found.space = ConfigDict(dict(
        resolution=(8,), stem_width=(8,), stem_stride=1, head_width=(16,), v3_head=False, activation="swish",
        stages=dict(mb1=dict(stage, width=(8, 16), stride=2), mb2=dict(stage, width=(16,), stride=2, se=True)),
    ))
    found.data.image_size = found.data.eval_resize = 8
    found.data.holdout, found.num_devices = HELD_OUT, devices
    found.calibration.num_images, found.calibration.batch_size = 96, 48
    found.evaluation.batch_size = 64
    found.search.first_part = 0.3
    found.search.update(search)
    return found


def opened(config: ConfigDict) -> Session:
    return Session.open(Options.of(config))


@pytest.fixture(scope="module")
def lab():
    """A session on two devices, weights that tell digits apart a little, and the images both ways."""
    session = opened(config())
    _, params = build(session.space, 10, seed=1)
    # Fresh supernets end every block with a zero scale; a scale of one makes architectures differ.
    params = jax.tree.map_with_path(
        lambda path, a: np.ones_like(a) if "project_norm" in str(path) and "scale" in str(path) else a, params
    )
    weights = replicate(session.mesh, params)
    both = {}
    for resident in (True, False):
        both[resident] = HeldOut(session, weights, images.plan(session), resident)
    both[True].compile([8], progress=False)
    archs = [arch for arch in session.space.enumerate()][:4]
    return session, weights, both, archs


def outcomes(held_out, arch):
    statistics = held_out.calibrate(arch)
    return [held_out.outcomes(arch, statistics, part) for part in (Part.FIRST, Part.REST)]


def test_sizes(lab):
    sizes = lab[2][True].sizes
    assert (sizes.calibration, sizes.calibration_batch, sizes.held_out) == (96, 48, HELD_OUT)
    assert (sizes.first, sizes.batch) == (27, 48)
    every = images.plan(opened(config(first_part=1.0, calibration_images=50)))
    assert (every.first, every.batch, every.calibration) == (HELD_OUT, 48, 48)
    one = images.plan(opened(config(first_part=0.001)))
    assert (one.first, one.batch) == (1, 48)
    # The number of devices changes the batch alone.
    eight = images.plan(opened(config(devices=8, first_part=0.6)))
    assert (eight.first, eight.batch) == (54, 56)
    assert every.preview == eight.preview == 0
    few = config(devices=8, first_part=0.6, preview=True)
    few.evaluation.batch_size = 24
    assert (images.plan(opened(few)).first, images.plan(opened(few)).preview) == (54, 18)
    assert images.plan(opened(config(first_part=1.0, preview=True))).preview == 45
    same = images.plan(opened(config(first_part=0.3, preview=True, calibration_images=48)))
    assert same.preview == 0, "the preview would be the first part"
    large = config(first_part=0.8)
    large.evaluation.batch_size = 50
    assert (images.plan(opened(large)).first, images.plan(opened(large)).batch) == (72, 48)


def test_the_sum_of_both_parts_is_the_evaluation_of_the_split(lab):
    session, weights, both, archs = lab
    placement = {arch: shared(session.space, 8) for arch in archs}
    session.compile_evaluation(placement.values(), progress=False)
    expected = session.evaluate(weights, placement, "holdout")
    for arch in archs:
        first, rest = outcomes(both[True], arch)
        assert (len(first), len(rest)) == (27, HELD_OUT - 27)
        found = score_of(np.concatenate([first, rest]))
        assert (found.top1, found.top5, found.images) == (expected[arch].top1, expected[arch].top5, HELD_OUT)
        assert found.loss == pytest.approx(expected[arch].loss, rel=1e-5)
    assert len({score.loss for score in expected.values()}) == len(archs), "a trivial case"


def test_a_preview_is_of_the_first_parts_images_on_one_batchs_statistics(lab):
    session, weights, both, archs = lab
    previewed = opened(config(preview=True))
    held_out = HeldOut(previewed, weights, images.plan(previewed), resident=True)
    held_out.compile([8], progress=False)
    assert held_out.sizes.preview == 27 and held_out.checksum == both[True].checksum
    one = opened(config(calibration_images=48))
    alone = HeldOut(one, weights, images.plan(one), resident=True)
    alone.compile([8], progress=False)
    for arch in archs:
        rows = held_out.outcomes(arch, held_out.calibrate(arch, preview=True), Part.PREVIEW)
        np.testing.assert_array_equal(rows, outcomes(alone, arch)[0])
        for ours, theirs in zip(outcomes(held_out, arch), outcomes(both[True], arch), strict=True):
            np.testing.assert_array_equal(ours, theirs)
        assert not np.array_equal(rows, outcomes(held_out, arch)[0]), "a trivial case"


def test_corrupt_images_are_left_out_and_counted(lab, monkeypatch):
    session, weights, both, _ = lab
    sizes = images.plan(session)
    once = Loader.once

    def some_corrupt(loader):
        for batch in once(loader):
            corrupt = np.arange(len(batch["weight"])) % 10 == 3
            yield batch | {"weight": np.where(corrupt, 0, batch["weight"]).astype(np.float32)}

    monkeypatch.setattr(Loader, "once", some_corrupt)
    found = HeldOut(session, weights, sizes, resident=True)
    assert found.skipped == 9 and found.sizes.held_out == HELD_OUT - 9 and found.sizes.first == 24
    assert found.checksum != both[True].checksum == both[False].checksum
    monkeypatch.setattr(Loader, "once", lambda loader: (b | {"weight": 0 * b["weight"]} for b in once(loader)))
    with pytest.raises(DataError, match="no held-out image could be read"):
        HeldOut(session, weights, sizes, resident=True)


def test_images_in_host_memory_give_the_same_numbers(lab):
    _, _, both, archs = lab
    for ours, theirs in zip(outcomes(both[True], archs[1]), outcomes(both[False], archs[1]), strict=True):
        assert (ours == theirs).all()


def test_a_candidate_needs_no_compile_and_no_reading(lab, monkeypatch):
    _, _, both, archs = lab
    outcomes(both[True], archs[0])
    monkeypatch.setattr(Session, "loader", lambda *a, **k: pytest.fail("read"))
    compiles = []

    def listen(name, *_, **__):
        compiles.extend([name] * ("compile" in name))

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        for arch in archs:
            outcomes(both[True], arch)
            outcomes(both[False], arch)
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert not compiles


def test_the_first_part_is_a_sample_of_all_classes(lab):
    labels = np.concatenate([np.asarray(batch["label"]) for batch in lab[2][True]._parts[Part.FIRST][:1]])
    assert len(set(labels)) >= 8
    assert (np.diff(labels) < 0).sum() > 5, "in order"


def test_images_lie_in_parts_on_the_devices(lab):
    image = lab[2][True]._parts[Part.FIRST][0]["image"]
    assert [shard.data.shape for shard in image.addressable_shards] == [(24, 8, 8, 3)] * 2
    assert isinstance(lab[2][False]._parts[Part.FIRST][0]["image"], np.ndarray)


def test_memory(lab):
    session = lab[0]
    assert images.device_bytes(session, images.plan(session)) == (96 + HELD_OUT) * 8 * 8 * 3 / 2
    previewed = opened(config(preview=True))
    assert images.device_bytes(previewed, images.plan(previewed)) == (96 + HELD_OUT + 27) * 8 * 8 * 3 / 2
    assert images.allowed_bytes(session) > 1e6
    limited = opened(config(resident_gb=1e-6))
    assert images.allowed_bytes(limited) == 1000


def test_too_few_images_are_refused():
    with pytest.raises(DataError, match="holdout split has no images: set config.data.holdout"):
        none = config()
        none.data.holdout = 0
        images.plan(opened(none))
    with pytest.raises(DataError, match="2000 images of the calibration .* lower config.search.calibration_images"):
        images.plan(opened(config(calibration_images=2000)))
