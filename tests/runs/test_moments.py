"""Batches in which batch norm would see one value a channel."""

import pytest

from bignas_jax.config.options import Options
from bignas_jax.config.recipes import load_recipe
from bignas_jax.errors import ConfigError
from bignas_jax.runs.session import _check_moments
from bignas_jax.spaces.registry import space_of


def check(devices, training=True, sync=False, **changes):
    values = load_recipe().to_dict()
    values["space"]["resolution"] = (4,)  # a last map of one pixel
    values["model"]["sync_batch_norm"] = sync
    options = Options.of(values | changes)
    _check_moments(space_of(options.space), options, devices, training)


def test_one_image_a_device_is_refused_where_its_moments_are_its_own():
    with pytest.raises(ConfigError, match="^config.batch_size: found 1 image on each device, expected at least 2: at"):
        check(8, batch_size=8)
    check(8, batch_size=16)
    check(8, batch_size=8, sync=True)
    check(8, training=False, batch_size=8)
    with pytest.raises(ConfigError, match="^config.calibration.batch_size: found 1 image, expected at least 2"):
        check(1, calibration={"num_images": 4, "batch_size": 1})


def test_micro_batches_divide_the_images_of_each_device_and_have_moments_of_their_own():
    with pytest.raises(ConfigError, match="^config.micro_batches: found 4, expected a divisor of 2, the images of a"):
        check(8, batch_size=16, micro_batches=4)
    found = "^config.batch_size: found 1 image on each device in each micro-batch, expected at least 2: at"
    with pytest.raises(ConfigError, match=found):
        check(8, batch_size=16, micro_batches=2)
    check(8, batch_size=16, micro_batches=2, sync=True)
    check(8, batch_size=32, micro_batches=2)
