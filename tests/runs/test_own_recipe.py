"""`python -m bignas_jax init`: a recipe for a folder opens a run and a search at once, whatever the folder's size."""

import sys

import forks
import numpy as np
import pytest
from data_folders import make_folder, picture
from run_lab import environment

from bignas_jax.config.options import Options
from bignas_jax.config.recipes import load_recipe
from bignas_jax.data.dataset import Images
from bignas_jax.data.sources import ArraySource
from bignas_jax.errors import ConfigError, DataError
from bignas_jax.runs.identity import Use
from bignas_jax.runs.own_recipe import own_recipe
from bignas_jax.runs.session import Session
from bignas_jax.runs.sizes import check_sizes, fitting


def images(*sizes: int) -> Images:
    """So many training images in each class."""
    labels = np.repeat(np.arange(len(sizes)), sizes)
    train = ArraySource.from_numpy("made up", np.zeros((len(labels), 1, 1, 3), np.uint8), labels)
    return Images(tuple(f"class{n}" for n in range(len(sizes))), train, train)


def options() -> Options:
    return Options.of(load_recipe("configs/cifar10.py"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """5 classes of 40, and 4 of each to test on."""
    root = tmp_path_factory.mktemp("set") / "my flowers"
    for split, count in (("train", 40), ("val", 4)):
        for label in range(5):
            (root / split / f"class{label}").mkdir(parents=True)
            for n in range(count):
                picture(1000 * label + n, (64, 50)).save(root / split / f"class{label}" / f"{n}.png")
    return root


def test_five_classes_of_forty_open_a_run_and_a_search_at_once(folder, tmp_path):
    command = [sys.executable, "-m", "bignas_jax", "init", str(folder)]
    how = dict(cwd=tmp_path, env=environment(tmp_path), capture_output=True, text=True)
    done = forks.run(command, **how)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == (
        "200 training images in 5 classes, 50 pixels high or wide: the small network of configs/cifar10.py at 64 to 96 "
        "pixels; 40 held out, batches of 32, 200 epochs of 5 steps, 128 images to calibrate on"
    )
    assert "train --config my_flowers.py" in done.stdout
    own = Options.of(load_recipe(tmp_path / "my_flowers.py"))
    assert own.data.root == str(folder) and own.model.num_classes == 5 and own.space["resolution"] == (64, 80, 96)
    session = Session.open(own, training=True, use=Use.SEARCH)
    session.check_evaluation("val", "holdout")
    assert session.dataset.splits == {"train": 160, "holdout": 40, "val": 20}
    assert session.loader("train", own.batch_size, train=True).steps_per_epoch == 5
    again = forks.run(command, **how)
    assert again.returncode == 2 and "my_flowers.py is there already" in again.stderr and again.stderr.count("\n") == 1


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("sizes", [(2,) * 8, (1, 1, 30), (40,) * 5, (300,) * 10, (2000, 10), (4000,) * 4])
def test_what_fits_is_accepted_and_leaves_steps(sizes, devices):
    found = images(*sizes)
    fits = fitting(options(), found, devices)
    check_sizes(fits, found, devices, True, Use.SEARCH)
    left = sum(sizes) - fits.data.holdout
    assert fits.batch_size % devices == 0 and (left // fits.batch_size >= 4 or fits.batch_size == devices)
    assert fits.data.holdout <= sum(sizes) // 5 and fits.optimizer.learning_rate == 0.2 * fits.batch_size / 128
    assert fits.calibration.num_images <= 2048 and fits.batch_size <= 128


def test_numbers_that_fit_stay():
    found = images(*[5000] * 10)
    assert fitting(options(), found, 1) == options()


def test_the_network_follows_from_the_images(tmp_path):
    small = own_recipe(make_folder(tmp_path / "small", train=12, val=2, size=(32, 40)), 1)
    assert small.base == "cifar10" and "space.resolution" not in small.changes
    (tmp_path / "small" / "val").rename(tmp_path / "small" / "test")
    assert own_recipe(tmp_path / "small", 1).changes["data.val_split"] == "test"


def test_a_folder_of_another_layout_is_refused_in_one_line(tmp_path):
    (tmp_path / "cats").mkdir()
    with pytest.raises(ConfigError, match=r"^ROOT: found cats in .*, expected a folder train \(or training\) with a"):
        own_recipe(tmp_path, 1)
    with pytest.raises(ConfigError, match="^ROOT: found no folder nowhere"):
        own_recipe("nowhere", 1)
    root = make_folder(tmp_path / "broken", train=2, val=1)
    for path in (root / "train").glob("*/*"):
        path.write_bytes(b"nothing")
    with pytest.raises(DataError, match="can be decoded"):
        own_recipe(root, 1)
