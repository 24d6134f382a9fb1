"""The teacher that a config names: from a run and from an ONNX file, kept for the run to go on with, or refused."""

import jax
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from saved_run import save, tiny_config

from bignas_jax.config.fields import canonical
from bignas_jax.config.options import Options
from bignas_jax.errors import ConfigError
from bignas_jax.runs.assess import evaluate_run
from bignas_jax.runs.session import Session
from bignas_jax.training.teacher import keep, open_teacher


def session(source, **changes):
    config = tiny_config()
    config.batch_size = 24
    config.teacher.source = str(source)
    config.update_from_flattened_dict(changes)
    return Session.open(Options.of(canonical(config)), training=True)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return save(tmp_path_factory.mktemp("teacher") / "run", tiny_config(), steps=(3, 7))


def logits_of(teacher, images, mesh):
    placed = jax.device_put(images, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data")))
    programs = {key: trace().lower().compile() for key, trace in teacher.programs(placed).items()}
    return np.asarray(teacher.logits(programs, placed))


@pytest.fixture(scope="module")
def opened(run):
    """The smallest architecture of the run's first checkpoint."""
    made = session(run, **{"teacher.arch": "min", "teacher.checkpoint": "3"})
    return made, open_teacher(made, None, goes_on=False)


def test_a_run_teaches_what_its_evaluation_says(run, opened):
    made, teacher = opened
    rows, *_ = evaluate_run(made.options, run, ["min"], "val", checkpoint="3")
    batches = list(made.loader("val", 16).once())
    images, labels, weights = (np.concatenate([b[name] for b in batches]) for name in ("image", "label", "weight"))
    logits = logits_of(teacher, images, made.mesh)[weights > 0].astype(np.float64)
    labels = labels[weights > 0]
    losses = np.log(np.exp(logits).sum(-1)) - logits[range(len(labels)), labels]
    np.testing.assert_allclose(losses.mean(), rows[0]["loss"], rtol=1e-4)
    np.testing.assert_allclose((logits.argmax(-1) == labels).mean(), rows[0]["top1"], atol=1e-3)


def test_a_run_keeps_its_teacher_to_the_bit(tmp_path, opened):
    made, teacher = opened
    keep(teacher, tmp_path)
    images = np.random.default_rng(0).integers(0, 256, (8, 10, 10, 3), dtype=np.uint8)
    away = session(tmp_path / "nowhere")  # where the other run was, nothing is left
    kept = open_teacher(away, tmp_path, goes_on=True)
    np.testing.assert_array_equal(logits_of(kept, images, made.mesh), logits_of(teacher, images, made.mesh))
    (tmp_path / "teacher" / "weights.npz").write_bytes(b"PK")
    with pytest.raises(ConfigError, match="teacher: found no teacher of this run .* put it back"):
        open_teacher(away, tmp_path, goes_on=True)


def file_of(path, side=10, classes=10, weights=None, batch="batch"):
    """A linear classifier of the mean colour: [B, 3, side, side] to [B, classes]."""
    weights = np.ones((3, classes), np.float32) if weights is None else weights
    graph = helper.make_graph(
        [helper.make_node("GlobalAveragePool", ["image"], ["mean"]),
         helper.make_node("Flatten", ["mean"], ["flat"]),
         helper.make_node("MatMul", ["flat", "weights"], ["logits"])],
        "linear",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [batch, 3, side, side])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, classes])],
        [onnx.numpy_helper.from_array(weights, "weights")],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def test_an_onnx_file_teaches_and_is_kept(tmp_path):
    weights = np.random.default_rng(1).normal(size=(3, 10)).astype(np.float32)
    made = session(file_of(tmp_path / "net.onnx", weights=weights), num_devices=2)
    teacher = open_teacher(made, None, goes_on=False)
    images = np.random.default_rng(0).integers(0, 256, (24, 10, 10, 3), dtype=np.uint8)
    mean, std = made.options.data.mean, made.options.data.std
    expected = ((images / 255 - mean) / std).mean((1, 2)) @ weights
    np.testing.assert_allclose(logits_of(teacher, images, made.mesh), expected, rtol=1e-4, atol=1e-5)
    keep(teacher, tmp_path)
    kept = open_teacher(session(tmp_path / "gone.onnx", num_devices=2), tmp_path, goes_on=True)
    np.testing.assert_array_equal(kept.run(images), teacher.run(images))


@pytest.mark.parametrize(
    "made, message",
    [
        (dict(side=12), r"found the inputs float \['batch', 3, 12, 12\], expected one input, float32 \[24 or any, 3"),
        (dict(batch=4), r"found the inputs float \[4, 3, 10, 10\], expected one input, float32 \[24 or any"),
        (dict(classes=9), r"found an output \[24, 9\], expected logits \[24, 10\]"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(tmp_path, made, message):
    with pytest.raises(ConfigError, match=f"^config.teacher.source: .*net.onnx: {message}"):
        open_teacher(session(file_of(tmp_path / "net.onnx", **made)), None, goes_on=False)


def test_what_is_no_teacher_is_refused_in_one_line(tmp_path, run):
    (tmp_path / "bad.onnx").write_bytes(b"no file of ONNX")
    (tmp_path / "empty").mkdir()
    for source, changes, message in (
        (tmp_path / "bad.onnx", {}, "onnxruntime cannot read it"),
        (tmp_path / "missing.onnx", {}, "missing.onnx: cannot be read"),
        (tmp_path / "missing", {}, "expected the folder of a run or an .onnx file"),
        (tmp_path / "empty", {}, "found no checkpoint under"),
        (run, {"data.image_size": 11}, r"found images of 10 pixels in .*, expected 11 as in this run"),
        (run, {"sandwich.loss": "labels"}, "beside config.sandwich.loss=labels, expected a loss"),
        (run, {"teacher.arch": "{}"}, "config.teacher.arch"),
        (run, {"teacher.checkpoint": "5"}, "config.teacher.checkpoint: found 5, expected newest, best or one of"),
    ):
        with pytest.raises(ConfigError, match=message) as error:
            open_teacher(session(source, **changes), None, goes_on=False)
        assert str(error.value).startswith("config.teacher.") and "\n" not in str(error.value)


def test_other_classes_are_refused(tmp_path):
    config = tiny_config()
    config.model.num_classes = 9
    other = save(tmp_path / "other", config)
    with pytest.raises(ConfigError, match=r"^config.teacher.source: found 9 classes in .*, expected 10 as in this run"):
        open_teacher(session(other), None, goes_on=False)


def test_without_a_source_there_is_none(opened):
    assert open_teacher(session(""), None, goes_on=False) is None
