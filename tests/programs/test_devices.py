"""The mesh, what lies where on it, and what it refuses."""

import jax
import numpy as np
import pytest

from bignas_jax.programs.devices import batch_sharding, make_mesh, replicate, shapes


@pytest.mark.parametrize("number, found", [(0, 8), (1, 1), (4, 4)])
def test_mesh_has_one_axis_over_the_first_devices(number, found):
    mesh = make_mesh(number, {"batch_size": 16})
    assert mesh.axis_names == ("data",) and list(mesh.devices.flat) == jax.devices()[:found]


def test_too_many_devices():
    with pytest.raises(ValueError, match="config.num_devices: found 9, expected at most 8"):
        make_mesh(9, {})


def test_a_batch_that_does_not_divide_is_named():
    with pytest.raises(ValueError, match="config.evaluation.batch_size: found 12, expected a multiple of 8"):
        make_mesh(0, {"batch_size": 16, "evaluation.batch_size": 12})


def test_replicated_and_split_arrays():
    mesh, value = make_mesh(0, {}), np.arange(16.0)
    whole, split = replicate(mesh, {"a": value})["a"], jax.device_put(value, batch_sharding(mesh))
    assert [s.data.shape for s in whole.addressable_shards] == [(16,)] * 8
    assert [s.data.tolist() for s in split.addressable_shards] == value.reshape(8, 2).tolist()


def test_shapes_keep_shape_dtype_and_take_the_sharding():
    sharding = batch_sharding(make_mesh(0, {}))
    found = shapes({"a": np.zeros((8, 2), np.uint8), "b": None}, sharding)
    assert found["a"] == jax.ShapeDtypeStruct((8, 2), np.uint8, sharding=sharding) and found["b"] is None
