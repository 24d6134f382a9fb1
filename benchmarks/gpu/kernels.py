"""The kernels of our own that a program calls, each different one once, as a program of their own.

It compiles in a fraction of the program's time, and shows whether Triton takes all kernels for the card.
"""

from collections.abc import Iterable
from typing import Any

import jax
from jax.extend import core
from jax.sharding import Mesh, NamedSharding

from bignas_jax.programs.devices import REPLICATED, over_devices


def calls(jaxpr: core.ClosedJaxpr) -> list[core.JaxprEqn]:
    """The calls of kernels in a traced program that differ in the kernel or in the shapes of its arguments."""
    found = {}
    for equation in _equations(jaxpr.jaxpr):
        if equation.primitive.name == "pallas_call":
            shapes = tuple(str(v.aval) for v in equation.invars)
            found.setdefault((shapes, str(equation.params)), equation)
    return list(found.values())


def _equations(jaxpr: core.Jaxpr) -> Iterable[core.JaxprEqn]:
    for equation in jaxpr.eqns:
        yield equation
        if equation.primitive.name != "pallas_call":
            for inner in _inside(list(equation.params.values())):
                yield from _equations(inner)


def _inside(values: Iterable[Any]) -> Iterable[core.Jaxpr]:
    for value in values:
        if isinstance(value, tuple | list):
            yield from _inside(value)
        elif isinstance(value, core.ClosedJaxpr):
            yield value.jaxpr
        elif isinstance(value, core.Jaxpr):
            yield value


def program(equations: list[core.JaxprEqn], mesh: Mesh) -> Any:
    """A traced program that makes each call once, on arguments of its own."""
    whole = NamedSharding(mesh, REPLICATED)

    def run(arguments):
        return [e.primitive.bind(*given, **e.params) for e, given in zip(equations, arguments, strict=True)]

    arguments = [
        [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype, sharding=whole) for v in e.invars] for e in equations
    ]
    return over_devices(mesh, run, (REPLICATED,), REPLICATED).trace(arguments)
