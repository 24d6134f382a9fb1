"""The mesh of devices, and where arrays lie on it. It has one axis, `data`, for one device, eight, or many hosts."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from bignas_jax.errors import ConfigError
from bignas_jax.kernels import target

AXIS = "data"
REPLICATED = PartitionSpec()
SPLIT = PartitionSpec(AXIS)


def make_mesh(num_devices: int, batch_sizes: dict[str, int]) -> Mesh:
    """A mesh with one axis, `data`.

    Args:
      num_devices: how many devices to use; 0 means all.
      batch_sizes: images a step, by the name of the config's field. Each must be a multiple of the devices in use.
    Raises:
      ConfigError: there are fewer devices, a run of several processes would not use all devices, or a batch size is
        not a multiple of the devices.
    """
    devices = jax.devices()
    if num_devices > len(devices):
        raise ConfigError(f"config.num_devices: found {num_devices}, expected at most {len(devices)}, the devices here")
    if num_devices and jax.process_count() > 1 and num_devices != len(devices):
        raise ConfigError("config.num_devices: with several processes all devices are used, set it to 0")
    devices = devices[: num_devices or len(devices)]
    for field, size in batch_sizes.items():
        if size % len(devices):
            expected = f"a multiple of {len(devices)}, the devices in use"
            raise ConfigError(f"config.{field}: found {size}, expected {expected}")
    return Mesh(np.array(devices), (AXIS,))


def replicate(mesh: Mesh, tree: Any) -> Any:
    """Copies every array of a tree to every device."""
    if jax.process_count() > 1:
        # To device_put an array that lies on one device gives an array that cannot be read or saved (JAX 0.10).
        tree = jax.tree.map(np.asarray, tree)
    return jax.device_put(tree, NamedSharding(mesh, REPLICATED))


def divide(mesh: Mesh, tree: Any) -> Any:
    """Divides every array of a tree over the devices by its first axis. All processes hold the same arrays."""

    def placed(array: np.ndarray) -> jax.Array:
        return jax.make_array_from_callback(array.shape, batch_sharding(mesh), lambda index: array[index])

    return jax.device_put(tree, batch_sharding(mesh)) if jax.process_count() == 1 else jax.tree.map(placed, tree)


def over_devices(mesh: Mesh, function: Callable, in_specs: Any, out_specs: Any, **jit_arguments: Any) -> Any:
    """`function` as one jitted program that each device runs on its part (SPLIT) or copy (REPLICATED) of the arrays.

    It is traced for the mesh's kind of device, which need not be here. JAX does not check that REPLICATED results are
    equal on all devices. The function must make sure of it.

    Args:
      mesh: the devices.
      function: a function of arrays.
      in_specs: SPLIT or REPLICATED for each of its arguments.
      out_specs: SPLIT or REPLICATED for each of its results.
      **jit_arguments: further arguments of `jax.jit`.
    """
    device = mesh.devices.flat[0]

    @functools.wraps(function)
    def told(*arguments):
        with target.tracing_for(device):
            return function(*arguments)

    mapped = jax.shard_map(told, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)
    return jax.jit(mapped, **jit_arguments)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding of arrays whose first axis is the batch."""
    return NamedSharding(mesh, SPLIT)


def shapes(tree: Any, sharding: NamedSharding) -> Any:
    """The shapes and dtypes of a tree of arrays, with a sharding. A program can be lowered with them."""
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(np.shape(a), a.dtype, sharding=sharding), tree)
