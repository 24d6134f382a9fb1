"""The device that a program is traced for."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from bignas_jax.kernels import native, target
from bignas_jax.kernels.depthwise.choice import depthwise_conv, portable
from bignas_jax.kernels.norm.normalize import normalize
from bignas_jax.programs.devices import AXIS, REPLICATED, SPLIT, over_devices


class FakeGPU:
    """A device of a topology: it is described, but it is not here."""

    platform, device_kind = "cuda", "NVIDIA H100 80GB HBM3"


def traced(function, *arguments) -> str:
    return str(jax.make_jaxpr(function)(*arguments))


def block(x):
    y = depthwise_conv(x, jnp.ones((3, 3, 8)), 1)
    return normalize(y, jnp.ones(8), jnp.zeros(8))[0]


def test_the_device_of_this_process_counts_by_default():
    assert target.current() == ("cpu", jax.devices()[0].device_kind)


def test_kernels_are_those_of_the_target():
    x = jnp.ones((2, 4, 4, 8))
    here = traced(block, x)
    with target.tracing_for(FakeGPU()):
        assert target.current() == ("gpu", "NVIDIA H100 80GB HBM3")
        there = traced(block, x)
        assert not native.usable(jnp.float32)
        with portable():
            anywhere = traced(block, x)
    assert "pallas_call" in there and "pallas_call" not in here + anywhere and "ffi_call" not in there + anywhere
    assert "ffi_call" in here or not native.load()


def test_a_program_of_a_mesh_is_traced_for_its_devices(monkeypatch):
    seen = []

    def function(x):
        seen.append(target.current().platform)
        return x

    mesh = Mesh(np.array(jax.devices()[:1]), (AXIS,))
    monkeypatch.setattr(target, "of", lambda device: target.Target("gpu", "described"))
    program = over_devices(mesh, function, (SPLIT,), REPLICATED)
    jax.eval_shape(program, jnp.ones(4))
    assert seen == ["gpu"]
