"""The text of a compiled program (scheduled HLO), read into computations and instructions.

Every fusion, copy and custom call of a scheduled program is a kernel of the GPU. What runs inside a fusion happens in
registers, so that the operands and results of kernels are all that moves through memory.
"""

import dataclasses
import functools
import math
import re

BYTES = {
    "f64": 8, "s64": 8, "u64": 8, "c64": 8, "f32": 4, "s32": 4, "u32": 4, "bf16": 2, "f16": 2, "s16": 2, "u16": 2,
    "u8": 1, "s8": 1, "pred": 1,
}  # fmt: skip
ENTRY = "ENTRY"
_ARRAY = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\]")
_HEAD = re.compile(r"(ENTRY )?(%[\w.\-]+) \(.*\{$")
_LINE = re.compile(r"\s+(ROOT )?(%[\w.\-]+) = (\(.*?\)(?= [\w\-]+\()|\S+) ([\w\-]+)\((.*)")
_NAME = re.compile(r"%[\w.\-]+")


@dataclasses.dataclass(frozen=True)
class Array:
    """Type and shape of one array in the text, such as f32[80,7,7,216]."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """Its size; 0 for what is no array, such as a token."""
        return math.prod(self.shape) * BYTES.get(self.dtype, 0)


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation.

    Attributes:
      name: its name, such as '%fusion.3'.
      type: its type as written; a tuple has several arrays.
      op: its operation, such as 'fusion'.
      inside: the text between the operation's parentheses: operands, or the value of a constant.
      rest: the text behind them: the attributes.
      root: whether it is the computation's result.
    """

    name: str
    type: str
    op: str
    inside: str
    rest: str
    root: bool

    @functools.cached_property
    def arrays(self) -> tuple[Array, ...]:
        """The arrays of its result: one, or those of a tuple."""
        return arrays(self.type)

    @functools.cached_property
    def operands(self) -> tuple[str, ...]:
        """The names of its operands."""
        return () if self.op in ("constant", "parameter") else tuple(_NAME.findall(self.inside))

    @functools.cached_property
    def op_name(self) -> str:
        """The path of the traced operation that it comes from; '' if it has none."""
        return (re.search(r'op_name="((?:[^"\\]|\\.)*)"', self.rest) or ("", ""))[1]

    def called(self, attribute: str) -> list[str]:
        """The names of computations in an attribute, such as `calls=%a` or `branch_computations={%a, %b}`."""
        found = re.search(rf"\b{attribute}=(?:\{{([^}}]*)\}}|(%[\w.\-]+))", self.rest)
        return _NAME.findall(found[1] or found[2]) if found else []

    def number(self, attribute: str) -> int | None:
        """The integer value of an attribute, such as `index=2`; None if it is missing."""
        found = re.search(rf"\b{attribute}=(\d+)", self.rest)
        return int(found[1]) if found else None


def arrays(text: str) -> tuple[Array, ...]:
    """The arrays in the text of a type."""
    return tuple(Array(t, tuple(int(d) for d in dims.split(",") if d)) for t, dims in _ARRAY.findall(text))


Computation = dict[str, Instruction]


def read(text: str) -> dict[str, Computation]:
    """The computations of a program by name. The one that the program begins with is called ENTRY."""
    found, body = {}, None
    for line in text.splitlines():
        if body is not None and (parts := _LINE.match(line)):
            root, name, type_, op, rest = parts.groups()
            end = _closing(rest)
            body[name] = Instruction(name, type_, op, rest[:end], rest[end + 1 :], bool(root))
        elif head := _HEAD.match(line):
            body = found[ENTRY if head[1] else head[2]] = {}
        elif line.startswith("}"):
            body = None
    return found


def _closing(text: str) -> int:
    """The position of the parenthesis that closes one that stands before the text."""
    depth = 1
    for found in re.finditer(r"[()]", text):
        depth += 1 if found[0] == "(" else -1
        if not depth:
            return found.start()
    return len(text)
