"""Machine code for elementwise loops, straight from a list of primitive instructions.

A `Loop` says what to compute for each element. It is written out as LLVM IR, optimised and vectorised for this machine,
kept on disk (`disttensor.kernels.machine`), and run as a native call. There is no front end in between, so a kernel
costs 10 to 20 ms the first time and a tenth of one when it is loaded again. Arithmetic is that of IEEE 754, rounded
after every instruction: nothing is contracted or reordered, so a loop gives the bits that numpy gives one instruction
after the other.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from disttensor.kernels import machine
from disttensor.kernels.native import Bound, NativeCall, NativeSequence

_TYPES = {
    "bool": "i1", "int8": "i8", "int16": "i16", "int32": "i32", "int64": "i64", "uint8": "i8", "uint16": "i16",
    "uint32": "i32", "uint64": "i64", "float32": "float", "float64": "double",
}  # fmt: skip
DTYPES = frozenset(_TYPES)
"""The dtypes that loops can work on."""

_BINARY = {"add": "add", "subtract": "sub", "multiply": "mul"}
_COMPARE = {
    "equal": ("oeq", "eq"), "not_equal": ("une", "ne"), "less": ("olt", "lt"), "less_equal": ("ole", "le"),
    "greater": ("ogt", "gt"), "greater_equal": ("oge", "ge"),
}  # fmt: skip
_LOGICAL = {"logical_and": "and", "logical_or": "or", "logical_xor": "xor"}
_BITWISE = {"bitwise_and": "and", "bitwise_or": "or", "bitwise_xor": "xor"}
_INTRINSIC = {"absolute": "fabs", "sqrt": "sqrt", "floor": "floor", "ceil": "ceil", "trunc": "trunc", "rint": "rint"}
_FLOATING = frozenset(
    ("divide", "negative", "square", "reciprocal", "maximum", "minimum", "sign", "copysign", "isnan", "isinf")
    + ("isfinite", "where", "copy")
)
BOOLEAN = frozenset((*_COMPARE, *_LOGICAL, "logical_not", "isnan", "isinf", "isfinite"))
"""The primitives whose result is bool, whatever the dtype of their operands."""

_GRAIN = 1 << 17
"""Elements that make a part for one of several threads."""


@dataclass(frozen=True)
class Literal:
    """A number in a loop, of the dtype of the instruction that uses it."""

    value: Any

    def __repr__(self) -> str:
        return repr(self.value)


@dataclass(frozen=True)
class Step:
    """``register = function(*operands)``, in the dtype of the operands; ``convert`` gives `dtype`.

    Operands are numbers of registers, or literals. Inputs are the first registers, then comes one for each step.
    """

    function: str
    operands: tuple[Any, ...]
    dtype: str


@dataclass(frozen=True)
class Loop:
    """What to compute for each element.

    Attributes
    ----------
    inputs : tuple of (dtype, access)
        How an input is read in row r and column c: "full" (element r·columns + c), "row" (element c, the same for every
        row), "column" (element r), or "scalar" (its only element).
    steps : tuple of Step
    outputs : tuple of int
        The registers that are stored.
    """

    inputs: tuple[tuple[str, str], ...]
    steps: tuple[Step, ...]
    outputs: tuple[int, ...]

    @property
    def dtypes(self) -> list[str]:
        """The dtype of each register."""
        return [dtype for dtype, _ in self.inputs] + [step.dtype for step in self.steps]

    @property
    def is_flat(self) -> bool:
        """Whether rows and columns do not matter."""
        return all(access in ("full", "scalar") for _, access in self.inputs)

    def __repr__(self) -> str:
        lines = []
        for number, step in enumerate(self.steps, len(self.inputs)):
            operands = ", ".join(f"v{o}" if isinstance(o, int) else repr(o) for o in step.operands)
            lines.append(f"v{number} = {step.function}({operands})")
        return f"[{'; '.join(lines)} -> {', '.join(f'v{o}' for o in self.outputs)}]"


def supports(function: str, dtype: str) -> bool:
    """Whether a loop can apply a primitive to operands of this dtype, with the same bits as numpy."""
    if dtype not in DTYPES:
        return False
    if dtype.startswith("float"):
        return function in _BINARY or function in _COMPARE or function in _INTRINSIC or function in _FLOATING
    if dtype == "bool":
        return function in _LOGICAL or function in _BITWISE or function in ("logical_not", "invert", "where", "copy")
    return function in _BINARY or function in _COMPARE or function in _BITWISE or function in ("where", "copy")


def converts(source: str, target: str) -> bool:
    """Whether a loop can convert between these dtypes as numpy does, whatever the value."""
    if source not in DTYPES or target not in DTYPES:
        return False
    # A float too large for an integer type is undefined in LLVM.
    return not (source.startswith("float") and not target.startswith("float") and target != "bool")


class _Writer:
    """Writes the body of a loop."""

    def __init__(self, loop: Loop):
        self.loop = loop
        self.lines: list[str] = []
        self.types = loop.dtypes
        self.names: list[str] = []
        self.count = 0
        self.intrinsics: set[str] = set()

    def emit(self, text: str) -> str:
        self.count += 1
        self.lines.append(f"  %t{self.count} = {text}")
        return f"%t{self.count}"

    def operand(self, operand: Any, dtype: str) -> str:
        return self.names[operand] if isinstance(operand, int) else _literal(operand.value, dtype)

    def step(self, step: Step) -> str:
        registers = [o for o in step.operands if isinstance(o, int)]
        if step.function == "where":
            return self.select(step)
        source = self.types[registers[0]]
        kind = _TYPES[source]
        values = [self.operand(o, source) for o in step.operands]
        if step.function == "convert":
            return self.convert(values[0], source, step.dtype)
        if step.function == "copy":
            return values[0]
        if source.startswith("float"):
            return self.floating(step.function, kind, values)
        return self.integer(step.function, source, kind, values)

    def select(self, step: Step) -> str:
        condition = self.operand(step.operands[0], "bool")
        kind = _TYPES[step.dtype]
        x, y = (self.operand(o, step.dtype) for o in step.operands[1:])
        return self.emit(f"select i1 {condition}, {kind} {x}, {kind} {y}")

    def floating(self, function: str, kind: str, values: list[str]) -> str:
        x, y = values[0], values[-1]
        if function in _BINARY or function == "divide":
            return self.emit(f"f{_BINARY.get(function, 'div')} {kind} {x}, {y}")
        if function in _COMPARE:
            return self.emit(f"fcmp {_COMPARE[function][0]} {kind} {x}, {y}")
        if function in _INTRINSIC or function == "copysign":
            return self.intrinsic(_INTRINSIC.get(function, function), kind, values)
        if function == "negative":
            return self.emit(f"fneg {kind} {x}")
        if function == "square":
            return self.emit(f"fmul {kind} {x}, {x}")
        if function == "reciprocal":
            return self.emit(f"fdiv {kind} 1.0, {x}")
        if function == "isnan":
            return self.emit(f"fcmp uno {kind} {x}, {x}")
        if function in ("isinf", "isfinite"):
            size = self.intrinsic("fabs", kind, [x])
            infinity = _literal(np.inf, "float32")
            return self.emit(f"fcmp {'oeq' if function == 'isinf' else 'olt'} {kind} {size}, {infinity}")
        if function == "sign":
            return self.sign(kind, x)
        # As the processor's max and min: the second of two equal operands, which matters for zeros of both signs; a NaN
        # in the first wins, one in the second makes the comparison false.
        better = self.emit(f"fcmp {'ogt' if function == 'maximum' else 'olt'} {kind} {x}, {y}")
        nan = self.emit(f"fcmp uno {kind} {x}, {x}")
        first = self.emit(f"or i1 {better}, {nan}")
        return self.emit(f"select i1 {first}, {kind} {x}, {kind} {y}")

    def sign(self, kind: str, x: str) -> str:
        zero = self.emit(f"fcmp oeq {kind} {x}, 0.0")
        result = self.emit(f"select i1 {zero}, {kind} 0.0, {kind} {x}")
        for compare, value in (("olt", "-1.0"), ("ogt", "1.0")):
            found = self.emit(f"fcmp {compare} {kind} {x}, 0.0")
            result = self.emit(f"select i1 {found}, {kind} {value}, {kind} {result}")
        return result

    def integer(self, function: str, dtype: str, kind: str, values: list[str]) -> str:
        x, y = values[0], values[-1]
        if function in _COMPARE:
            name = _COMPARE[function][1]
            signed = "" if name in ("eq", "ne") else ("u" if dtype.startswith("u") else "s")
            return self.emit(f"icmp {signed}{name} {kind} {x}, {y}")
        if function in ("logical_not", "invert"):
            return self.emit(f"xor i1 {x}, true")
        return self.emit(f"{({**_BINARY, **_LOGICAL, **_BITWISE})[function]} {kind} {x}, {y}")

    def intrinsic(self, name: str, kind: str, values: list[str]) -> str:
        suffix = "f32" if kind == "float" else "f64"
        self.intrinsics.add(f"declare {kind} @llvm.{name}.{suffix}({', '.join([kind] * len(values))})")
        return self.emit(f"call {kind} @llvm.{name}.{suffix}({', '.join(f'{kind} {v}' for v in values)})")

    def convert(self, x: str, source: str, target: str) -> str:
        if source == target:
            return x
        a, b = _TYPES[source], _TYPES[target]
        floats = source.startswith("float"), target.startswith("float")
        if target == "bool":
            return self.emit(f"fcmp une {a} {x}, 0.0" if floats[0] else f"icmp ne {a} {x}, 0")
        if all(floats):
            return self.emit(f"{'fpext' if target == 'float64' else 'fptrunc'} {a} {x} to {b}")
        unsigned = source == "bool" or source.startswith("u")
        if floats[1]:
            return self.emit(f"{'u' if unsigned else 's'}itofp {a} {x} to {b}")
        bits = int(a[1:]), int(b[1:])
        if bits[0] == bits[1]:
            return x
        widen = "zext" if unsigned else "sext"
        return self.emit(f"{'trunc' if bits[0] > bits[1] else widen} {a} {x} to {b}")


def _literal(value: Any, dtype: str) -> str:
    if dtype == "bool":
        return "true" if value else "false"
    if not dtype.startswith("float"):
        return str(int(value))
    rounded = float(np.float32(value)) if dtype == "float32" else float(value)
    return f"0x{struct.unpack('<Q', struct.pack('<d', rounded))[0]:016X}"


def source(loop: Loop) -> str:
    """The LLVM IR of a loop, a native kernel named ``loop``, which works from row (if flat: element) start to stop.

    Its arguments are the inputs, the outputs, and the number of columns.
    """
    writer = _Writer(loop)
    head: list[str] = []
    pointers = [*(dtype for dtype, _ in loop.inputs), *(loop.dtypes[o] for o in loop.outputs)]
    for i in range(len(pointers)):
        head += [f"  %a{i} = getelementptr i64, ptr %arguments, i64 {i}", f"  %p{i} = load ptr, ptr %a{i}"]
    if not loop.is_flat:
        head += [f"  %a = getelementptr i64, ptr %arguments, i64 {len(pointers)}", "  %columns = load i64, ptr %a"]
    index = {"full": "%i", "row": "%c", "column": "%r", "scalar": "0"}
    if loop.is_flat:
        index["full"] = "%c"
    for i, (dtype, access) in enumerate(loop.inputs):
        writer.names.append(_load(writer, i, dtype, index[access]))
    for step in loop.steps:
        writer.names.append(writer.step(step))
    for i, register in enumerate(loop.outputs, len(loop.inputs)):
        _store(writer, i, loop.dtypes[register], writer.names[register], index["full"])
    body = "\n".join(writer.lines)
    text = _FLAT if loop.is_flat else _NESTED
    function = text.format(head="\n".join(head), body=body)
    return "\n".join([*sorted(writer.intrinsics), function, _METADATA])


def _load(writer: _Writer, number: int, dtype: str, index: str) -> str:
    memory = "i8" if dtype == "bool" else _TYPES[dtype]
    address = writer.emit(f"getelementptr {memory}, ptr %p{number}, i64 {index}")
    value = writer.emit(f"load {memory}, ptr {address}, align {_align(memory)}, !llvm.access.group !0")
    return writer.emit(f"icmp ne i8 {value}, 0") if dtype == "bool" else value


def _store(writer: _Writer, number: int, dtype: str, value: str, index: str) -> None:
    memory = "i8" if dtype == "bool" else _TYPES[dtype]
    if dtype == "bool":
        value = writer.emit(f"zext i1 {value} to i8")
    address = writer.emit(f"getelementptr {memory}, ptr %p{number}, i64 {index}")
    writer.lines.append(f"  store {memory} {value}, ptr {address}, align {_align(memory)}, !llvm.access.group !0")


def _align(memory: str) -> int:
    return {"float": 4, "double": 8}.get(memory) or int(memory[1:]) // 8


_FLAT = """define void @loop(ptr %arguments, i64 %start, i64 %stop) nounwind {{
entry:
{head}
  %some = icmp slt i64 %start, %stop
  br i1 %some, label %each, label %end
each:
  %c = phi i64 [%start, %entry], [%c.next, %each]
{body}
  %c.next = add nsw i64 %c, 1
  %more = icmp slt i64 %c.next, %stop
  br i1 %more, label %each, label %end, !llvm.loop !1
end:
  ret void
}}"""

_NESTED = """define void @loop(ptr %arguments, i64 %start, i64 %stop) nounwind {{
entry:
{head}
  %some = icmp slt i64 %start, %stop
  %wide = icmp sgt i64 %columns, 0
  %any = and i1 %some, %wide
  br i1 %any, label %row, label %end
row:
  %r = phi i64 [%start, %entry], [%r.next, %row.end]
  %base = mul nsw i64 %r, %columns
  br label %each
each:
  %c = phi i64 [0, %row], [%c.next, %each]
  %i = add nsw i64 %base, %c
{body}
  %c.next = add nsw i64 %c, 1
  %more = icmp slt i64 %c.next, %columns
  br i1 %more, label %each, label %row.end, !llvm.loop !1
row.end:
  %r.next = add nsw i64 %r, 1
  %again = icmp slt i64 %r.next, %stop
  br i1 %again, label %row, label %end
end:
  ret void
}}"""

# Iterations are independent, also where a result takes the place of an operand: its element is read before it is
# written. So no checks whether arrays overlap.
_METADATA = """!0 = distinct !{}
!1 = distinct !{!1, !2}
!2 = !{!"llvm.loop.parallel_accesses", !0}"""


def bind(loop: Loop, inputs: Sequence[np.ndarray], outputs: Sequence[np.ndarray], columns: int) -> Bound:
    """A call of a loop on fixed arrays.

    Parameters
    ----------
    loop : Loop
    inputs, outputs : sequence of arrays
        Outputs are contiguous, of one shape; they may be the same memory as an input that is read "full".
    columns : int
        The length of a row.

    Returns
    -------
    NativeCall, or a callable
        Takes no arguments and may be called any number of times.
    """
    size = outputs[0].size
    if size == 0:
        return NativeSequence(())
    copies = [(np.empty(x.shape, x.dtype), x) for x in inputs if not x.flags.c_contiguous]
    replaced = {id(x): copy for copy, x in copies}
    arrays = [replaced.get(id(x), x) for x in inputs] + list(outputs)
    rows = size if loop.is_flat else size // columns
    grain = max(_GRAIN * rows // size, 1)
    call = NativeCall(machine.load(source(loop))["loop"], [*arrays, columns], rows, grain if rows > grain else 0)
    if not copies:
        return call

    def run() -> None:
        for copy, x in copies:
            np.copyto(copy, x)
        call()

    return run
