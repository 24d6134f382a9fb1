"""The integers that steer a program, evaluated from its text: which blocks run, and how many channels are sampled.

A program that many architectures share gets the sampled sizes as an argument. Its conditionals, and the kernels that
stop at the sampled channels, depend on these sizes through a few operations on integers. They are evaluated here, so
that one text tells what each architecture moves. Arrays of images are never evaluated.
"""

import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from benchmarks.gpu.hlo import Computation, Instruction

_DTYPES = {"pred": np.bool_, "s32": np.int32, "u32": np.uint32, "s8": np.int8, "u8": np.uint8, "s64": np.int64,
           "f32": np.float32}  # fmt: skip
_SAME = ("copy", "bitcast", "reshape", "convert", "copy-start", "copy-done", "optimization-barrier")
_COMPARE = {"EQ": np.equal, "NE": np.not_equal, "LT": np.less, "LE": np.less_equal, "GT": np.greater,
            "GE": np.greater_equal}  # fmt: skip
_BINARY = {
    "add": np.add, "subtract": np.subtract, "multiply": np.multiply, "minimum": np.minimum, "maximum": np.maximum,
    "and": np.bitwise_and, "or": np.bitwise_or,
}  # fmt: skip
_LARGEST = 1 << 16  # entries: what is larger steers nothing


def branches(i: Instruction) -> list[str]:
    """The computations of a conditional's branches, in order; of a boolean one, first that of true."""
    return i.called("branch_computations") or i.called("true_computation") + i.called("false_computation")


class Unknown(Exception):
    """A value depends on something that is not evaluated here."""


class Frame:
    """A computation with its arguments. Values are computed when they are asked for, each once.

    Args:
      computations: all computations of the program.
      computation: the one that runs.
      arguments: for each parameter, a function without arguments that gives its value or raises Unknown.
    """

    def __init__(
        self, computations: Mapping[str, Computation], computation: Computation, arguments: Sequence[Callable]
    ):
        self._computations, self._body, self._arguments = computations, computation, arguments
        self._values = {}

    def value(self, name: str):
        """The value of an instruction: an array, or a tuple of functions that give the values of its elements.

        Raises:
          Unknown: it depends on something that is not evaluated.
        """
        if name not in self._values:
            self._values[name] = self._evaluate(self._body[name])
        return self._values[name]

    def call(self, name: str, instruction: Instruction, operands: Sequence[str] | None = None) -> "Frame":
        """The frame of a computation that an instruction of this frame calls."""
        operands = instruction.operands if operands is None else operands
        given = [lambda operand=operand: self.value(operand) for operand in operands]
        return Frame(self._computations, self._computations[name], given)

    def loop(self, name: str, instruction: Instruction) -> "Frame":
        """The frame of a loop's body. Only what the loop hands on unchanged is known in it."""
        body = self._computations[name]
        parameter = next(i.name for i in body.values() if i.op == "parameter")
        root = next(i for i in body.values() if i.root)

        def element(number: int, operand: str):
            source = body[operand]
            if source.op != "get-tuple-element" or (source.operands[0], source.number("index")) != (parameter, number):
                raise Unknown(f"{instruction.name}: its element {number} changes")
            return self.value(instruction.operands[0])[number]()

        def carried():
            return tuple(lambda n=n, operand=operand: element(n, operand) for n, operand in enumerate(root.operands))

        return Frame(self._computations, body, [carried])

    def branch(self, i: Instruction) -> tuple[str, "Frame"]:
        """The name and the frame of the branch that a conditional runs.

        Raises:
          Unknown: its condition is not known.
        """
        names, chosen = branches(i), self.value(i.operands[0])
        index = int(chosen.reshape(()))
        if chosen.dtype == np.bool_:  # the branch of true comes first
            index = 1 - index
        index = index if 0 <= index < len(names) else len(names) - 1
        return names[index], self.branch_frame(i, index)

    def branch_frame(self, i: Instruction, index: int) -> "Frame":
        """The frame of one branch of a conditional."""
        return self.call(branches(i)[index], i, i.operands[index + 1 : index + 2])

    def result(self):
        """The value of the computation's root."""
        return self.value(next(i.name for i in self._body.values() if i.root))

    def _evaluate(self, i: Instruction):
        if i.op == "parameter":
            return self._arguments[int(i.inside)]()
        if i.op == "tuple":
            return tuple(lambda operand=operand: self.value(operand) for operand in i.operands)
        if i.op == "get-tuple-element":
            return self.value(i.operands[0])[i.number("index")]()
        if i.op in ("fusion", "call"):
            return self.call(i.called("calls" if i.op == "fusion" else "to_apply")[0], i).result()
        if i.op == "conditional":
            return self.branch(i)[1].result()
        array = i.arrays[0]
        if len(i.arrays) != 1 or array.dtype not in _DTYPES or np.prod(array.shape) > _LARGEST:
            raise Unknown(f"{i.name}: {i.op} of {i.type[:40]}")
        if i.op == "constant":
            return _constant(i)
        if i.op == "iota":
            return _iota(i)
        with np.errstate(over="ignore"):
            found = self._array(i, [np.asarray(self.value(operand)) for operand in i.operands])
        return np.asarray(found).astype(_DTYPES[array.dtype]).reshape(array.shape)

    def _array(self, i: Instruction, given: list[np.ndarray]):
        if i.op in _SAME:
            return given[0]
        if i.op in _BINARY:
            return _BINARY[i.op](*given)
        if i.op == "not":
            return np.invert(given[0])
        if i.op == "negate":
            return -given[0]
        if i.op == "compare":
            return _COMPARE[re.search(r"direction=(\w\w)", i.rest)[1]](*given)
        if i.op == "select":
            return np.where(*given)
        if i.op == "clamp":
            return np.minimum(np.maximum(given[1], given[0]), given[2])
        if i.op == "slice":
            return given[0][_slices(i)]
        if i.op == "dynamic-slice":
            return _dynamic_slice(i, given)
        if i.op == "broadcast":
            return _broadcast(i, given[0])
        if i.op == "concatenate":
            return np.concatenate(given, _dimensions(i)[0])
        if i.op == "transpose":
            return np.transpose(given[0], _dimensions(i))
        if i.op == "reduce" and len(given) == 2:
            return self._reduce(i, *given)
        raise Unknown(f"{i.name}: {i.op}")

    def _reduce(self, i: Instruction, array: np.ndarray, start: np.ndarray):
        body = self._computations[i.called("to_apply")[0]]
        op = next(inner.op for inner in body.values() if inner.root)
        if op not in _BINARY:
            raise Unknown(f"{i.name}: reduce by {op}")
        return _BINARY[op](_BINARY[op].reduce(array, tuple(_dimensions(i)), dtype=array.dtype), start)


def _dimensions(i: Instruction) -> list[int]:
    return [int(d) for d in re.search(r"dimensions=\{([\d,]*)\}", i.rest)[1].split(",") if d]


def _constant(i: Instruction) -> np.ndarray:
    if "..." in i.inside:
        raise Unknown(f"{i.name}: a constant that is not written out")
    dtype, shape = _DTYPES[i.arrays[0].dtype], i.arrays[0].shape
    words = re.findall(r"true|false|-?[\d.]+(?:e[+-]?\d+)?|-?inf|nan", i.inside)
    values = [w == "true" if w in ("true", "false") else float(w) for w in words]
    return np.array(values).astype(dtype).reshape(shape)


def _iota(i: Instruction) -> np.ndarray:
    shape, axis = i.arrays[0].shape, i.number("iota_dimension")
    line = np.arange(shape[axis]).reshape([-1 if a == axis else 1 for a in range(len(shape))])
    return np.broadcast_to(line, shape).astype(_DTYPES[i.arrays[0].dtype])


def _slices(i: Instruction) -> tuple[slice, ...]:
    found = re.search(r"slice=\{([^}]*)\}", i.rest)[1]
    return tuple(slice(*map(int, part.split(":"))) for part in re.findall(r"\[([\d:]+)\]", found))


def _dynamic_slice(i: Instruction, given: list[np.ndarray]) -> np.ndarray:
    array, starts, sizes = given[0], given[1:], i.arrays[0].shape
    begins = [min(max(int(s), 0), length - size) for s, length, size in zip(starts, array.shape, sizes, strict=True)]
    return array[tuple(slice(b, b + size) for b, size in zip(begins, sizes, strict=True))]


def _broadcast(i: Instruction, array: np.ndarray) -> np.ndarray:
    shape, axes = i.arrays[0].shape, _dimensions(i)
    return np.broadcast_to(array.reshape([shape[a] if a in axes else 1 for a in range(len(shape))]), shape)
