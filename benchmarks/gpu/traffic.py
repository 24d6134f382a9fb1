"""The bytes that a compiled program moves through a GPU's memory, counted in its text.

Every kernel moves its operands and its results once. Three counts differ in what they know of the sampled architecture:

- as written: a block that may be skipped counts half, and a choice of several branches counts their mean; the
  workspace of a library's call counts as a result, though nothing may be written to it;
- full width: exactly the blocks and branches that an architecture runs, each kernel on all channels of its arrays, and
  no workspaces;
- sampled: the same, but kernels of our own, which stop at the sampled channels, count what they state in `MOVED`.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping

import numpy as np

from benchmarks.gpu import hlo
from benchmarks.gpu.control import Frame, Unknown, branches
from benchmarks.gpu.hlo import Instruction

FREE = {"parameter", "get-tuple-element", "tuple", "bitcast", "constant", "after-all", "partition-id", "iota"}
COLLECTIVES = (
    "all-reduce", "all-gather", "reduce-scatter", "all-to-all", "ragged-all-to-all", "collective-permute",
    "collective-broadcast",
)  # fmt: skip
_TRITON = re.compile(r'custom_call_target="(?:__gpu\$xla\.gpu\.triton|triton_kernel_call|[^"]*pallas[^"]*)"')


@dataclasses.dataclass(frozen=True)
class Count:
    """What a program, or a part of it, does.

    Attributes:
      bytes: bytes that its kernels read and write.
      kernels: how many kernels it runs.
    """

    bytes: float = 0.0
    kernels: float = 0.0

    def __add__(self, other: "Count") -> "Count":
        return Count(self.bytes + other.bytes, self.kernels + other.kernels)

    def __mul__(self, factor: float) -> "Count":
        return Count(self.bytes * factor, self.kernels * factor)


@dataclasses.dataclass(frozen=True)
class OwnKernel:
    """A call of a kernel of ours, for the function in `MOVED` that states its bytes.

    Attributes:
      name: the kernel's name without the shape, such as 'norm_reduce'.
      shape: the numbers of the shape in its name, as in 'norm_reduce_80x56x56x144'; () if it has none.
      settings: further numbers in its name, as in 'depthwise_forward_80x56x56x144_k5_s2': {'k': 5, 's': 2}.
      operands: the arrays that it is given, in order, with the shapes of the text: they may be flat.
      results: the arrays that it writes.
      integers: the values of its int32 operands of at most 8 entries, in order, each as a flat tuple.
    """

    name: str
    shape: tuple[int, ...]
    settings: dict[str, int]
    operands: tuple[hlo.Array, ...]
    results: tuple[hlo.Array, ...]
    integers: tuple[tuple[int, ...], ...]


def own_name(i: Instruction) -> str:
    """The name of the kernel of ours that an instruction calls; '' if it calls none."""
    if i.op != "custom-call" or not _TRITON.search(i.rest):
        return ""
    named = re.search(r'\bname ?= ?\\?"([\w.\-]+)\\?"', i.rest)
    return named[1] if named else i.op_name.rsplit("/", 1)[-1]


def split_name(name: str) -> tuple[str, tuple[int, ...], dict[str, int]]:
    """A kernel's name without its shape and settings, the shape, and the settings; see `OwnKernel`."""
    found = re.fullmatch(r"(.*?)_(\d+(?:x\d+)+)((?:_[a-z]+\d+)*)", name)
    if not found:
        return name, (), {}
    settings = {key: int(value) for key, value in re.findall(r"_([a-z]+)(\d+)", found[3])}
    return found[1], tuple(int(side) for side in found[2].split("x")), settings


class Program:
    """A compiled program's text.

    Args:
      text: what `compiled.as_text()` gives.
      moved: by the name of a kernel of ours, a function from an OwnKernel to the bytes that it moves.
    """

    def __init__(self, text: str, moved: Mapping[str, Callable[[OwnKernel], float]] | None = None):
        self.computations, self.moved = hlo.read(text), moved or {}
        self.unknown: set[str] = set()
        self._plain: dict[str, tuple[Count, float, list[Instruction]]] = {}

    def as_written(self, active: float = 0.5) -> Count:
        """The count of the text alone.

        Args:
          active: how often a block that may be skipped runs.
        """
        return self._written(hlo.ENTRY, active, {})

    def of(self, sampled: np.ndarray | None, at_run_time: bool = True) -> Count:
        """The count for the architecture of these sizes.

        Args:
          sampled: the result of `nets.sizes.sizes`; None for a program that does not take any.
          at_run_time: whether kernels of our own count what they move for these sizes, in place of their whole arrays.
        """
        entry = self.computations[hlo.ENTRY]
        parameters = sorted((i for i in entry.values() if i.op == "parameter"), key=lambda i: int(i.inside))

        def give(i: Instruction):
            if sampled is not None and i.op_name == "sampled":
                return sampled
            raise Unknown(f"{i.name} of the program")

        arguments = [lambda i=i: give(i) for i in parameters]
        return self._sampled(hlo.ENTRY, Frame(self.computations, entry, arguments), at_run_time)

    def collectives(self) -> list[tuple[str, int]]:
        """(operation, bytes of its result) of every collective in the text."""
        found = []
        for computation in self.computations.values():
            for i in computation.values():
                name = i.op.removesuffix("-start")
                if name in COLLECTIVES:
                    found.append((name, sum(a.bytes for a in i.arrays)))
        return found

    def own_kernels(self) -> dict[str, int]:
        """How often the text calls each kernel of ours."""
        names = [split_name(own_name(i))[0] for computation in self.computations.values() for i in computation.values()]
        return {name: names.count(name) for name in sorted(set(names)) if name}

    def _parts(self, name: str) -> tuple[Count, float, list[Instruction]]:
        """The kernels of a computation that always count the same, their workspaces, and its other instructions."""
        if name not in self._plain:
            body, total, spare, others = self.computations[name], Count(), 0.0, []
            for i in body.values():
                if i.op in FREE or i.op.endswith("-done"):
                    continue
                if i.op in ("conditional", "while", "call") or own_name(i):
                    others.append(i)
                else:
                    total += self._whole(name, i)
                    spare += workspace(i)
            self._plain[name] = total, spare, others
        return self._plain[name]

    def _whole(self, computation: str, i: Instruction) -> Count:
        """A kernel's operands and results once."""
        body = self.computations[computation]
        given = [a for operand in i.operands if operand in body for a in body[operand].arrays]
        return Count(sum(a.bytes for a in given) + sum(a.bytes for a in i.arrays), 1)

    def _written(self, name: str, active: float, memo: dict[str, Count]) -> Count:
        if name not in memo:
            total, _, others = self._parts(name)
            for i in others:
                if i.op == "conditional":
                    inside = [self._written(branch, active, memo) for branch in branches(i)]
                    most = max(c.kernels for c in inside)
                    # Two branches are a block that may be skipped. Of more, one always runs.
                    part = active * max(c.bytes for c in inside)
                    if len(inside) > 2:
                        part = sum(c.bytes for c in inside) / len(inside)
                    total += Count(part, active * most + 1)
                elif i.op == "while":
                    total += self._written(i.called("body")[0], active, memo) * trips(i)
                elif i.op == "call":
                    total += self._written(i.called("to_apply")[0], active, memo)
                else:
                    total += self._whole(name, i)
            memo[name] = total
        return memo[name]

    def _sampled(self, name: str, frame: Frame, at_run_time: bool) -> Count:
        total, spare, others = self._parts(name)
        total += Count(-spare)
        for i in others:
            if i.op == "conditional":
                total += Count(0, 1) + self._branch(i, frame, at_run_time)
            elif i.op == "while":
                body = i.called("body")[0]
                total += self._sampled(body, frame.loop(body, i), at_run_time) * trips(i)
            elif i.op == "call":
                called = i.called("to_apply")[0]
                total += self._sampled(called, frame.call(called, i), at_run_time)
            else:
                total += self._own(name, i, frame) if at_run_time else self._whole(name, i)
        return total

    def _branch(self, i: Instruction, frame: Frame, at_run_time: bool) -> Count:
        """The branch that runs. If that is not known, half of the heavier one."""
        try:
            name, inner = frame.branch(i)
        except Unknown as error:
            self.unknown.add(f"{i.name}: {error}")
            inside = [
                self._sampled(name, frame.branch_frame(i, n), at_run_time) for n, name in enumerate(branches(i))
            ]
            return max(inside, key=lambda c: c.bytes) * 0.5
        return self._sampled(name, inner, at_run_time)

    def _own(self, name: str, i: Instruction, frame: Frame) -> Count:
        short, shape, settings = split_name(own_name(i))
        states = self.moved.get(short)
        if states is None:
            return self._whole(name, i)
        body, integers = self.computations[name], []
        operands = tuple(a for operand in i.operands for a in body[operand].arrays)
        for operand in i.operands:
            array = body[operand].arrays[0]
            if array.dtype == "s32" and np.prod(array.shape) <= 8:
                try:
                    integers.append(tuple(int(v) for v in np.ravel(frame.value(operand))))
                except Unknown as error:
                    self.unknown.add(f"{i.name}: {error}")
                    return self._whole(name, i)
        return Count(states(OwnKernel(short, shape, settings, operands, i.arrays, tuple(integers))), 1)


def workspace(i: Instruction) -> int:
    """Bytes of the workspace among the results of a library's call: its last one, a line of bytes."""
    library = re.search(r'custom_call_target="__cu(?:blas|dnn)|kind=kCustom', i.rest)
    last = i.arrays[-1] if library and len(i.arrays) > 1 else None
    return last.bytes if last is not None and last.dtype in ("s8", "u8") and len(last.shape) == 1 else 0


def trips(i: Instruction) -> int:
    """How often a loop runs; 1 if the compiler does not know it."""
    found = re.search(r"known_trip_count[^\d]*(\d+)", i.rest)
    return int(found[1]) if found else 1
