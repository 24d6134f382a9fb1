"""Children from Python: their logits, their statistics, and what is kept of them."""

import contextlib
import json

import jax
import jax.monitoring
import jax.numpy as jnp
import numpy as np
import pytest
from data_folders import picture
from flax import nnx
from PIL import Image
from saved_run import save, tiny_config

import bignas_jax
from bignas_jax.api import run as api_run
from bignas_jax.config.files import load_run_options
from bignas_jax.errors import CheckpointError, ConfigError, CorruptImage, DataError, UserError
from bignas_jax.interop.exports.preprocess import load_spec, preprocess
from bignas_jax.nets.supernet import Supernet
from bignas_jax.runs import assess
from bignas_jax.runs.checkpoint import Checkpoints
from bignas_jax.spaces.cost import count


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return save(tmp_path_factory.mktemp("runs") / "tiny", tiny_config(), steps=(7, 9))


@pytest.fixture(scope="module")
def run(workdir):
    return bignas_jax.open_run(workdir)


def images(child, number=3):
    shape = (number, child.resolution, child.resolution, 3)
    return np.random.default_rng(number).standard_normal(shape).astype(np.float32)


@contextlib.contextmanager
def compiles():
    found = []

    def listen(event, duration, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            found.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield found
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def test_what_a_child_says_of_itself(run):
    child = run.child("max")
    cost = count(run.space, run.space.biggest, 10)
    assert (child.macs, child.params, child.arch, child.resolution) == (cost.macs, cost.params, run.space.biggest, 11)
    assert sum(np.size(a) for a in jax.tree.leaves(child.weights)) == child.params
    assert run.child("min").macs < child.macs and "step 9" in repr(child)
    assert run.space == bignas_jax.load_space(load_run_options(run.workdir / "config.json").to_dict())


def test_its_files_compute_its_logits(run, tmp_path):
    """PyTorch and onnxruntime, in processes that cannot import this package."""
    child = run.child(run.sample(seed=3))
    files = child.export("torch,onnx", tmp_path / "real", images=20)
    assert {name: path.name for name, path in files.items()} == {"torch": "child.pt", "onnx": "child.onnx"}
    child.export(["onnx"], tmp_path / "noise", images=0)
    for folder, split in ((tmp_path / "real", "holdout"), (tmp_path / "noise", "noise")):
        row = json.loads((folder / "export.json").read_text())
        assert row["split"] == split and row["macs"] == child.macs and row["step"] == 9
        for file in row["files"]:
            assert file["difference"] < 1e-5 and file["agreement"] == 1
    with pytest.raises(ConfigError, match="holds another architecture"):
        run.child("min").export("onnx", tmp_path / "real")


def test_its_accuracy_is_that_of_the_command(run, workdir):
    options = load_run_options(workdir / "config.json")
    for split in ("val", "holdout"):
        (row,), *_ = assess.evaluate_run(options, workdir, ["max"], split)
        score = run.child("max").evaluate(split)
        assert (score.top1, score.top5, score.loss, score.images) == (
            row["top1"], row["top5"], row["loss"], row["images"]
        )  # fmt: skip
        seen = run.child("max").inspect(split, wrong=2)
        assert seen.top1 == pytest.approx(score.top1) and seen.confusion.sum() == score.images


def test_a_folder_may_have_some_of_the_classes(run, tmp_path):
    child = run.child("min")
    for label in ("3", "8"):
        (tmp_path / "some" / label).mkdir(parents=True)
        for number in range(5):
            picture(number + 10 * int(label)).save(tmp_path / "some" / label / f"{number}.png")
    score = child.evaluate(tmp_path / "some")
    files = sorted((tmp_path / "some").rglob("*.png"))
    right = [found.name == file.parent.name for found, file in zip(child.predict(files), files, strict=True)]
    assert score.images == 10 and score.top1 == pytest.approx(np.mean(right))
    (tmp_path / "some" / "eleven").mkdir()
    picture(0).save(tmp_path / "some" / "eleven" / "0.png")
    with pytest.raises(DataError, match="none of the run's 10 classes: eleven; expected names such as 0, 1"):
        child.evaluate(tmp_path / "some")
    with pytest.raises(DataError, match="no folder .*nowhere: expected <folder>/<class>/<image>"):
        child.evaluate(tmp_path / "nowhere")


def test_a_second_call_neither_calibrates_nor_compiles(run, workdir, monkeypatch):
    arch = run.sample(seed=1).to_dict()
    child = run.child(arch)
    first = child(images(child, 5)), child.predict(picture(1))
    assert (workdir / "statistics").is_dir()
    monkeypatch.setattr(api_run.Session, "calibrate", lambda *_: pytest.fail("calibrated again"))
    with compiles() as found:
        again = run.child(json.dumps(arch))
        second = again(images(child, 5)), again.predict(picture(1))
        again(images(child, 7))  # runs in the program for 8, as 5 images do
    assert again is child and not found
    np.testing.assert_array_equal(first[0], second[0])
    assert first[1] == second[1]


def test_another_process_opens_no_data_set_for_statistics_that_are_kept(run, workdir, monkeypatch):
    before = run.child("max").statistics
    (workdir / "classes.json").write_text(json.dumps([f"digit {n}" for n in range(10)]))
    try:
        monkeypatch.setattr(api_run.Session, "open", lambda *_, **__: pytest.fail("opened the data"))
        other = bignas_jax.open_run(workdir)
        child = other.child("max")
        assert child is not run.child("max")
        for name, (mean, variance) in before.items():
            np.testing.assert_array_equal(child.statistics[name], (mean, variance))
        assert child.predict(picture(0))[0].name.startswith("digit ")
    finally:
        (workdir / "classes.json").unlink()


def test_statistics_of_other_weights_or_other_images_are_others(workdir):
    found = [bignas_jax.open_run(workdir, checkpoint).child("max").statistics["head"][0] for checkpoint in (7, 9)]
    assert np.abs(found[0] - found[1]).max() > 1e-3
    fewer = bignas_jax.open_run(workdir, overrides={"calibration.num_images": 48}).child("max").statistics["head"][0]
    assert np.abs(fewer - found[1]).max() > 1e-6
    kept = next((workdir / "statistics").glob("*.npz"))
    kept.write_bytes(kept.read_bytes()[:100])  # cut short by a kill: made again
    again = bignas_jax.open_run(workdir, 7).child("max").statistics["head"][0]
    np.testing.assert_allclose(again, found[0], rtol=1e-6)


def test_predictions_go_through_the_preprocessing_of_the_run(run, tmp_path):
    child = run.child("max")
    picture(5, (50, 33)).save(tmp_path / "photo.png")
    child.export("safetensors", tmp_path / "files", images=5)
    prepared = preprocess(tmp_path / "photo.png", load_spec(tmp_path / "files" / "preprocessing.json"))
    logits = child(np.moveaxis(prepared, 0, -1)[None])[0]
    expected = np.exp(logits) / np.exp(logits).sum()
    image = Image.open(tmp_path / "photo.png")
    given = [tmp_path / "photo.png", str(tmp_path / "photo.png"), image, np.asarray(image)]
    found = child.predict(given, top=10)
    assert len(found) == 4
    for one in found:
        assert one == found[0] and one.name == one.names[0] == run.class_names[int(logits.argmax())]
        probabilities = dict(zip(one.names, one.probabilities, strict=True))
        np.testing.assert_allclose([probabilities[name] for name in run.class_names], expected, rtol=1e-4)
    assert sorted(found[0].probabilities, reverse=True) == list(found[0].probabilities)
    (alone,) = child.predict(image, top=10)
    assert alone.names == found[0].names and alone.probability == pytest.approx(found[0].probability, rel=1e-5)
    assert child.predict([]) == []


def test_grey_and_many_images(run):
    child = run.child("max")
    grey = np.random.default_rng(0).integers(0, 256, (70, 14, 12), np.uint8)
    assert child.predict(list(grey)) == child.predict(np.repeat(grey[..., None], 3, -1))
    assert len(child.predict(iter(grey))) == 70  # more than a program takes
    assert child.predict(Image.fromarray(grey[0])) == child.predict(grey[0])


def test_statistics_of_the_batch(run):
    """As the supernet itself computes without statistics."""
    child = run.child("max", statistics="batch")
    x = images(child, 5)
    net = nnx.merge(nnx.graphdef(nnx.eval_shape(lambda: Supernet(run.space, 10, rngs=nnx.Rngs(0)))), run.weights)
    expected, _ = net(jnp.asarray(x), run.space.biggest)
    np.testing.assert_allclose(child(x), expected, rtol=1e-4, atol=1e-4)
    assert np.abs(child(x[:3]) - child(x)[:3]).max() > 1e-2  # each depends on those beside it
    for call in (lambda: child.evaluate("val"), lambda: child.export("onnx", run.workdir / "none")):
        with pytest.raises(ConfigError, match="found a child with statistics='batch'"):
            call()


def test_statistics_that_are_given(run):
    calibrated = run.child("min")
    given = run.child("min", statistics=calibrated.statistics)
    np.testing.assert_array_equal(given(images(given)), calibrated(images(given)))
    doubled = {name: (mean, 2 * variance) for name, (mean, variance) in calibrated.statistics.items()}
    other = run.child("min", statistics=doubled)
    assert np.abs(other(images(given)) - calibrated(images(given))).max() > 1e-2
    assert other.evaluate("val").loss != calibrated.evaluate("val").loss
    for wrong, message in (
        (doubled | {"none": 1}, "found 'none', expected the layers stem, "),
        ({}, "found no stem, no block0.expand"),
        (doubled | {"head": (np.zeros(3), np.zeros(16))}, "head: found shapes .*expected mean and variance of 16 each"),
        (3, "found 3, expected calibrated, stored, batch"),
        ("best", "found 'best', expected calibrated, stored, batch"),
    ):
        with pytest.raises(ConfigError, match=message):
            run.child("min", statistics=wrong)


def test_statistics_that_a_checkpoint_keeps(run, tmp_path, workdir):
    child = run.child("max")
    imported = tmp_path / "imported"
    imported.mkdir()
    (imported / "config.json").write_text((workdir / "config.json").read_text())
    checkpoints = Checkpoints(imported)
    checkpoints.save_imported(run.weights, dict(child.statistics))
    checkpoints.close()
    stored = bignas_jax.open_run(imported).child("max", statistics="stored")
    np.testing.assert_allclose(stored(images(child)), child(images(child)), rtol=1e-5, atol=1e-6)
    with pytest.raises(ConfigError, match="expected it with 'max'"):
        bignas_jax.open_run(imported).child("min", statistics="stored")
    with pytest.raises(CheckpointError, match="keeps no batch-norm statistics"):
        run.child("max", statistics="stored")


def test_it_is_a_function_of_jax(run):
    child = run.child("max")
    x = images(child, 2)
    np.testing.assert_allclose(jax.jit(lambda x: 2 * child(x))(x), 2 * child(x), rtol=1e-4, atol=1e-4)
    found = jax.grad(lambda x: child(x)[0, 3])(x)
    step = np.zeros_like(x)
    step[0, 5, 5, 1] = 1e-2
    slope = (child(x + step)[0, 3] - child(x - step)[0, 3]) / 2e-2
    assert np.asarray(found)[0, 5, 5, 1] == pytest.approx(slope, rel=0.05, abs=1e-3)
    assert not np.asarray(found)[1].any()


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda r: r.child(), ConfigError, "found nothing, expected an architecture"),
        (lambda r: r.child("max", macs=1e6), ConfigError, "found both an architecture and a limit"),
        (lambda r: r.child("nowhere.json"), ConfigError, "arch: cannot read nowhere.json"),
        (lambda r: r.child({"resolution": 8}), ConfigError, "arch: architecture: found missing keys width"),
        (lambda r: r.child(3), ConfigError, "arch: architecture: found 3, expected an object with resolution"),
        (lambda r: r.child(macs=10), ConfigError, "macs: found 10, expected at least 28832, what 'min' costs"),
        (lambda r: r.child(macs=1e9), ConfigError, r"found no search.*call run.search\(max_macs=1000000000\) first"),
        (lambda r: r.front(), ConfigError, r"found no search in it, expected one; call run.search\(\) first"),
        (lambda r: r.search(macs=3), ConfigError, "search: found 'macs'.*expected fields of config.search: strategy"),
        (lambda r: r.search(seed=-1), ConfigError, "config.search.seed: found -1"),
        (lambda r: r.child("max")(np.zeros((1, 4, 4, 3), "f")), ValueError, r"float32 \[1, 4, 4, 3\], expected .* 11"),
        (lambda r: r.child("max")(np.zeros((1, 11, 11, 3), np.uint8)), ValueError, "child.predict takes images as"),
        (lambda r: r.child("max").predict(np.zeros((9, 9, 3), "f")), DataError, r"found float32 \[9, 9, 3\]"),
        (lambda r: r.child("max").predict([None]), DataError, "found NoneType, expected a path"),
        (lambda r: r.child("max").predict("nowhere.jpg"), DataError, "nowhere.jpg cannot be read"),
        (lambda r: r.child("max").predict(Image.new("F", (9, 9))), CorruptImage, "floating-point values"),
        (lambda r: r.child("max").predict([], top=0), ConfigError, "top: found 0"),
        (lambda r: r.child("max").export("tflite", "x"), ConfigError, "found 'tflite', expected some of onnx"),
        (lambda r: bignas_jax.open_run("nowhere"), ConfigError, "found no nowhere/config.json, expected the folder"),
        (lambda r: bignas_jax.open_run(r.workdir, 8), CheckpointError, "found 8, expected newest, best or one of 7, 9"),
        (lambda r: bignas_jax.open_run(r.workdir, overrides={"data.rot": 1}), ConfigError, "did you mean config.data"),
        (lambda r: bignas_jax.open_run(r.workdir, overrides={"model.num_classes": 5}), ConfigError, "trained with a"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(run, call, error, message):
    with pytest.raises(error, match=message) as caught:
        call(run)
    assert issubclass(caught.type, (UserError, ValueError)) and "\n" not in str(caught.value)
