"""The device that a program is traced for: kernels are chosen for it, not for the machine that traces.

A program for a GPU may be traced and compiled on a machine without one. `programs.devices.over_devices` traces every
program of a mesh in the context of the mesh's devices. Outside of such a context, the first device of this process
counts.
"""

import contextlib
from typing import NamedTuple

import jax

_GPUS = ("gpu", "cuda", "rocm")


class Target(NamedTuple):
    """A kind of device.

    Attributes:
      platform: 'cpu', 'gpu', 'tpu' or another name that JAX knows.
      kind: the device's own name, such as 'NVIDIA H100 80GB HBM3'.
    """

    platform: str
    kind: str


# JAX makes this value a part of the key of every jit cache: a function is traced again for another target.
_target = jax.make_user_context(None)


def of(device: jax.Device) -> Target:
    """The target that a device, or a device of a topology, is one of."""
    platform = "gpu" if device.platform in _GPUS else device.platform
    return Target(platform, device.device_kind)


def tracing_for(device: jax.Device) -> contextlib.AbstractContextManager:
    """A context in which programs are traced for a device, which need not be here."""
    return _target(of(device))


def anywhere() -> contextlib.AbstractContextManager:
    """A context for programs that may run on any device: only operations that every one of them has are traced."""
    return _target(Target("any", ""))


def current() -> Target:
    """The target of the program that is traced now."""
    return _target.value or of(jax.local_devices()[0])
