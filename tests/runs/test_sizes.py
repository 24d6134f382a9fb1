"""Numbers of a config against those of its images: all that do not fit are named at once, with some that do."""

import dataclasses
import re

import numpy as np
import pytest
from data_folders import make_folder

from bignas_jax.config.options import Options
from bignas_jax.config.recipes import load_recipe
from bignas_jax.data.dataset import Images
from bignas_jax.data.sources import ArraySource
from bignas_jax.errors import ConfigError
from bignas_jax.runs.identity import Use
from bignas_jax.runs.session import Session
from bignas_jax.runs.sizes import check_sizes, misfits
from bignas_jax.search import held_out


def images(*sizes: int) -> Images:
    """So many training images in each class."""
    labels = np.repeat(np.arange(len(sizes)), sizes)
    train = ArraySource.from_numpy("made up", np.zeros((len(labels), 1, 1, 3), np.uint8), labels)
    return Images(tuple(f"class{n}" for n in range(len(sizes))), train, train)


def options(recipe: str = "configs/cifar10.py", **fields) -> Options:
    """A recipe's options; fields by their dotted names, with __ for the dots."""
    config = load_recipe(recipe).copy_and_resolve_references().unlock()
    config.update_from_flattened_dict({name.replace("__", "."): value for name, value in fields.items()})
    return Options.of(config)


def refusal(*arguments) -> str:
    with pytest.raises(ConfigError) as error:
        check_sizes(*arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


def proposed(message: str) -> dict[str, int]:
    return {name.replace(".", "__"): int(value) for name, value in re.findall(r"--config\.([\w.]+)=(\d+)", message)}


def test_the_readmes_recipe_on_five_classes_of_forty_is_refused_once():
    message = refusal(options(model__num_classes=5), images(*[40] * 5), 1, True, Use.GOING_ON)
    assert "config.data.holdout: found 5000, expected at most 195" in message
    assert "config.calibration.num_images: found 2048, expected at most 160" in message
    assert "batch_size: found" not in message
    assert proposed(message) == {"data__holdout": 40, "calibration__num_images": 128, "search__calibration_images": 128}


def test_a_calibration_batch_of_more_images_than_there_are_is_named():
    message = refusal(
        options(model__num_classes=5, calibration__batch_size=256), images(*[40] * 5), 1, True, Use.GOING_ON
    )
    assert "config.calibration.batch_size: found 256" in message and "config.batch_size: found" not in message
    assert proposed(message)["calibration__batch_size"] == 128


def test_what_is_proposed_opens_a_run_and_a_search(tmp_path):
    root = str(make_folder(tmp_path / "set", train=10, val=3))
    fields = {"data__root": root, "data__val_split": "val", "num_devices": 1}
    with pytest.raises(ConfigError) as error:
        Session.open(options(**fields), training=True)
    fits = options(**fields, **proposed(str(error.value)))
    assert fits.model.num_classes == 3 and fits.data.holdout == 6 and fits.batch_size <= 24
    session = Session.open(fits, training=True)
    session.check_evaluation("val", "holdout", "train")
    assert session.loader("train", fits.batch_size, train=True).steps_per_epoch >= 4
    assert held_out.plan(Session.open(fits, use=Use.SEARCH)).held_out == 6


@pytest.mark.parametrize("devices", [1, 2, 3, 8])
def test_what_is_proposed_fits_whatever_the_numbers(devices):
    rng = np.random.default_rng(devices)
    refused = 0
    for _ in range(300):
        found = images(*rng.integers(1, 60, rng.integers(2, 9)).tolist())
        batch = int(rng.integers(1, 80))
        own = options_of(
            model__num_classes=int(rng.integers(2, 9)),
            data__holdout=int(rng.integers(0, 200)),
            batch_size=int(rng.integers(1, 40)) * devices,
            calibration__batch_size=batch * devices,
            calibration__num_images=batch * devices * int(rng.integers(1, 5)),
            search__calibration_images=int(rng.integers(0, 300)),
        )
        try:
            check_sizes(own, found, devices, True, Use.SEARCH)
        except ConfigError as error:
            refused += 1
            fields = proposed(str(error))
            if not fields:
                assert "devices" in str(error)
                continue
            fits = replaced(own, fields)
            assert misfits(fits, found, devices) == {}
            left = len(found.train) - fits.data.holdout
            assert fits.batch_size <= left and fits.batch_size % devices == 0
            assert fits.calibration.batch_size <= fits.calibration.num_images <= left
            assert fits.calibration.batch_size % devices == 0
    assert 100 < refused


BASE = options()


def replaced(own: Options, fields: dict[str, int]) -> Options:
    for name, value in fields.items():
        *group, last = name.split("__")
        inner = dataclasses.replace(getattr(own, group[0]), **{last: value}) if group else value
        own = dataclasses.replace(own, **{group[0] if group else last: inner})
    return own


def options_of(**fields: int) -> Options:
    return replaced(BASE, fields)


def test_numbers_that_fit_are_left_alone():
    own = options_of(model__num_classes=2, data__holdout=20, batch_size=80, calibration__num_images=80,
                     calibration__batch_size=80, search__calibration_images=80)  # fmt: skip
    check_sizes(own, images(50, 50), 8, True, Use.SEARCH)
    message = refusal(replaced(own, {"batch_size": 88}), images(50, 50), 8, True, Use.GOING_ON)
    assert message == ("config.batch_size: found 88, expected at most 80; with 100 training images in 2 classes these "
                       "work together: --config.batch_size=16")  # fmt: skip


def test_a_run_keeps_an_image_of_every_class():
    own = options_of(model__num_classes=3, data__holdout=97, batch_size=1, calibration__num_images=1,
                     calibration__batch_size=1, search__calibration_images=0)  # fmt: skip
    check_sizes(own, images(1, 1, 98), 1, True, Use.GOING_ON)
    message = refusal(replaced(own, {"data__holdout": 98}), images(1, 1, 98), 1, True, Use.GOING_ON)
    assert message.startswith("config.data.holdout: found 98, expected at most 97;")


def test_only_what_a_use_needs_is_refused():
    own = options_of(model__num_classes=2, data__holdout=20, batch_size=800, calibration__num_images=80,
                     calibration__batch_size=80, search__calibration_images=90)  # fmt: skip
    check_sizes(own, images(50, 50), 1, False, Use.EVALUATION)
    message = refusal(own, images(50, 50), 1, False, Use.SEARCH)
    assert proposed(message) == {"search__calibration_images": 80}
