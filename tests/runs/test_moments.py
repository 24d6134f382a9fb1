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
