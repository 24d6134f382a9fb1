"""What a session refuses before work starts, what it writes, and the classes of another run."""

import dataclasses
import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from data_folders import CLASSES, data_options, make_folder
from tiny import flat, seeded_tensors, tiny_space

from bignas_jax.config.options import Options
from bignas_jax.errors import ConfigError, DataError
from bignas_jax.interop.imports.bignas_names import read_state_dict
from bignas_jax.runs.identity import Use
from bignas_jax.runs.session import Session, _tell_skipped, class_names
from bignas_jax.spaces.mobilenet import SearchSpace
from configs import digits

TRAIN, VAL = 12, 3  # of each of three classes


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("images"), TRAIN, VAL)


def options(root, **changes):
    """Of a run on the folder, with two devices; a change of a part's field is `part__field`."""
    config = digits.get_config()
    config.data.update(source="folder", root=str(root), image_size=16, eval_resize=20, holdout=6)
    config.model.num_classes, config.num_devices, config.batch_size = 3, 2, 8
    config.calibration.update(num_images=16, batch_size=8)
    config.evaluation.batch_size = 4
    for name, value in changes.items():
        part, _, field = name.rpartition("__")
        (config[part] if part else config)[field] = value
    return Options.of(config)


@pytest.mark.parametrize("changes, message", [
    (dict(model__num_classes=4), "config.model.num_classes: found 4, expected 3, the classes of the data"),
    (dict(batch_size=9), "config.batch_size: found 9, expected a multiple of 2, the devices in use"),
    (dict(evaluation__batch_size=5), "config.evaluation.batch_size: found 5, expected a multiple of 2"),
    (dict(calibration__batch_size=7), "config.calibration.batch_size: found 7, expected a multiple of 2"),
    (dict(num_devices=9), "config.num_devices: found 9, expected at most 8"),
])  # fmt: skip
def test_options_that_cannot_work_are_refused_in_one_line(changes, message, root):
    with pytest.raises(ConfigError) as error:
        Session.open(options(root, **changes), training=True)
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


def test_the_training_batch_matters_to_training_alone(root):
    assert Session.open(options(root, batch_size=9)).mesh.size == 2


@pytest.mark.parametrize("changes, splits, message", [
    (dict(calibration__num_images=31), (), "config.calibration.num_images: found 31, expected at most 30"),
    (dict(calibration__num_images=8, calibration__batch_size=10), (), "config.calibration.batch_size: found 10, .* 8"),
    (dict(data__holdout=0), ("val", "holdout"), "the holdout split has no images: set config.data.holdout"),
])  # fmt: skip
def test_too_few_images_are_refused_before_work_starts(changes, splits, message, root):
    with pytest.raises((DataError, ConfigError), match=f"^{message}") as error:
        Session.open(options(root, **changes)).check_evaluation(*splits)
    assert "\n" not in str(error.value)


def test_enough_images_are_not_refused(root):
    session = Session.open(options(root, calibration__num_images=30, calibration__batch_size=10))
    session.check_evaluation("val", "holdout", "train")
    assert [session.loader(split, 4).num_images for split in ("train", "holdout", "val")] == [30, 6, 9]


def test_the_shapes_are_those_of_weights_for_the_space_and_the_classes(root):
    config = digits.get_config()
    session = Session.open(options(root))
    expected = read_state_dict(session.space, seeded_tensors(SearchSpace.from_config(config.space), 3))[0]
    assert {name: a.shape for name, a in flat(jax.tree.map(lambda a: np.zeros(a.shape), session.shapes)).items()} == {
        name: a.shape for name, a in flat(expected).items()}  # fmt: skip
    assert session.space == SearchSpace.from_config(config.space) != tiny_space()


def test_what_the_data_are_is_noted_and_other_data_are_refused_later(root, tmp_path):
    run, other = tmp_path / "run", make_folder(tmp_path / "images", TRAIN - 1, VAL)
    run.mkdir()
    Session.open(options(root)).note_data(run)
    assert json.loads((run / "classes.json").read_text()) == list(CLASSES)
    assert json.loads((run / "data.json").read_text())["train"]["images"] == 3 * TRAIN
    Session.open(options(root), run=run, use=Use.GOING_ON)
    Session.open(options(other), run=run, use=Use.EVALUATION)
    with pytest.raises(ConfigError, match="was trained on 36 images, found 33"):
        Session.open(options(other), run=run, use=Use.GOING_ON)


def test_classes_come_from_the_folder_then_from_the_data_then_from_nowhere(root, tmp_path):
    """The session's own classes bear other names here, to be told apart from those of the folder's images."""
    own = options(root).data
    like = SimpleNamespace(options=SimpleNamespace(data=own), dataset=SimpleNamespace(class_names=("x", "y", "z")))
    elsewhere = dataclasses.replace(own, root=str(root / ".." / root.name))
    assert class_names(tmp_path, own, like) == ("x", "y", "z")
    assert class_names(tmp_path, dataclasses.replace(own, val_split="other", holdout=0), like) == ("x", "y", "z")
    assert class_names(tmp_path, elsewhere, like) == CLASSES
    assert class_names(tmp_path, data_options(tmp_path / "nowhere"), like) is None
    (tmp_path / "classes.json").write_text('["b", "a"]\n')
    for data in (own, elsewhere, data_options(tmp_path / "nowhere")):
        assert class_names(tmp_path, data, like) == ("b", "a")


@pytest.mark.parametrize("skipped, said", [
    ((0, 2, 1), "3 corrupt val images left out of the evaluation\n"), ((0, 0), ""),
])  # fmt: skip
def test_images_left_out_are_said_once_at_the_end(skipped, said, capsys):
    batches = [{"skipped": number} for number in skipped]
    passed = _tell_skipped(batches, "val")
    assert [next(passed) for _ in batches] == batches and capsys.readouterr().err == ""
    assert list(passed) == [] and capsys.readouterr().err == said
