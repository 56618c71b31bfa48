"""Writing LLVM IR with Python's operators: what kernels are built of that are neither elementwise nor numba's.

A `Function` is written from top to bottom. Values are objects with arithmetic; loops and conditions are `with` blocks;
what changes from one iteration to the next is a `Variable`, which LLVM keeps in a register. Vectors are written out,
not left to a vectoriser, so a kernel is as fast as it reads. Arithmetic is that of IEEE 754: nothing is contracted or
reordered but where `Function.multiply_add` says so.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import struct
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from disttensor.kernels import disk_cache

Operand = Any
"""A `Value`, or a Python number that becomes a constant of the other operand's type."""


class Value:
    """A value of LLVM's: its name and type, and Python's operators on it."""

    __slots__ = ("function", "name", "type")

    def __init__(self, function: Function, kind: str, name: str):
        self.function, self.type, self.name = function, kind, name

    def __repr__(self) -> str:
        return f"{self.type} {self.name}"

    @property
    def _is_float(self) -> bool:
        return self.type.endswith(("float", "double", "float>", "double>"))

    def _binary(self, name: str, other: Operand) -> Value:
        name = f"f{name}" if self._is_float else {"div": "sdiv", "rem": "srem"}.get(name, name)
        return self.function.emit(self.type, f"{name} {self}, {self.function.like(self, other).name}")

    def __add__(self, other: Operand) -> Value:
        return self._binary("add", other)

    def __sub__(self, other: Operand) -> Value:
        return self._binary("sub", other)

    def __mul__(self, other: Operand) -> Value:
        return self._binary("mul", other)

    def __truediv__(self, other: Operand) -> Value:
        return self._binary("div", other)

    def __floordiv__(self, other: Operand) -> Value:
        return self._binary("div", other)

    def __radd__(self, other: Operand) -> Value:
        return self.function.like(self, other) + self

    def __rsub__(self, other: Operand) -> Value:
        return self.function.like(self, other) - self

    def __rmul__(self, other: Operand) -> Value:
        return self.function.like(self, other) * self

    def __neg__(self) -> Value:
        return self.function.emit(self.type, f"fneg {self}")

    def _compare(self, name: str, other: Operand) -> Value:
        lanes = self.type[: self.type.index(" x ") + 3] if self.type[0] == "<" else ""
        kind = f"{lanes}i1>" if lanes else "i1"
        prefix = "fcmp o" if self._is_float else ("icmp " if name in ("eq", "ne") else "icmp s")
        return self.function.emit(kind, f"{prefix}{name} {self}, {self.function.like(self, other).name}")

    def __lt__(self, other: Operand) -> Value:
        return self._compare("lt", other)

    def __le__(self, other: Operand) -> Value:
        return self._compare("le", other)

    def __gt__(self, other: Operand) -> Value:
        return self._compare("gt", other)

    def __ge__(self, other: Operand) -> Value:
        return self._compare("ge", other)

    def equals(self, other: Operand) -> Value:
        """Whether both are equal; never for a nan."""
        return self._compare("eq", other)

    def __and__(self, other: Value) -> Value:
        return self.function.emit(self.type, f"and {self}, {other.name}")

    def __or__(self, other: Value) -> Value:
        return self.function.emit(self.type, f"or {self}, {other.name}")


class Variable:
    """A place for a value that changes."""

    def __init__(self, function: Function, initial: Value):
        self._function = function
        self._type = initial.type
        self._place = function.reserve(initial.type)
        self.set(initial)

    def get(self) -> Value:
        """The present value."""
        return self._function.emit(self._type, f"load {self._type}, ptr {self._place}")

    def set(self, value: Operand) -> None:
        """Change the value."""
        name = value.name if isinstance(value, Value) else self._function.constant(self._type, value).name
        self._function.line(f"store {self._type} {name}, ptr {self._place}")


class Function:
    """A function in the making.

    Parameters
    ----------
    name : str
    parameters : sequence of (type, name)
    linkage : {"", "internal", "internal noinline"}
        Whether code of other modules may call it.
    """

    def __init__(self, name: str, parameters: Sequence[tuple[str, str]], linkage: str = ""):
        self.name = name
        self._head = f"define {linkage.split(' ')[0]} void @{name}(%s) nounwind {linkage.partition(' ')[2]} {{"
        self.parameters = {p: Value(self, kind, f"%{p}") for kind, p in parameters}
        self._reserved: list[str] = []
        self._lines: list[str] = []
        self._count = 0
        self._block = "entry"
        self._intrinsics: set[str] = set()
        self._signature = ", ".join(f"{kind} %{p}" for kind, p in parameters)

    def __getitem__(self, parameter: str) -> Value:
        return self.parameters[parameter]

    def text(self) -> str:
        """The IR."""
        return "\n".join([self._head % self._signature, "entry:", *self._reserved, *self._lines, "  ret void", "}"])

    @property
    def declarations(self) -> set[str]:
        """Of the intrinsics that it calls."""
        return self._intrinsics

    # --- lines and values

    def line(self, text: str) -> None:
        """Add an instruction without a result."""
        self._lines.append(f"  {text}")

    def emit(self, kind: str, text: str) -> Value:
        """Add an instruction; its result."""
        self._count += 1
        name = f"%v{self._count}"
        self._lines.append(f"  {name} = {text}")
        return Value(self, kind, name)

    def reserve(self, kind: str, count: int = 1) -> str:
        """Memory on the stack, aligned for vectors; its address."""
        name = f"%m{len(self._reserved)}"
        self._reserved.append(f"  {name} = alloca {kind}, i64 {count}, align 64")
        return name

    def variable(self, initial: Value) -> Variable:
        """A variable with its first value."""
        return Variable(self, initial)

    def constant(self, kind: str, number: Any) -> Value:
        """A number of any type; in a vector, in all lanes."""
        if kind[0] == "<":
            lanes, _, scalar = kind[1:-1].partition(" x ")
            one = self.constant(scalar, number)
            return Value(self, kind, f"<{', '.join([repr(one)] * int(lanes))}>")
        if kind in ("float", "double"):
            rounded = struct.unpack("<f", struct.pack("<f", number))[0] if kind == "float" else float(number)
            return Value(self, kind, f"0x{struct.unpack('<Q', struct.pack('<d', rounded))[0]:016X}")
        return Value(self, kind, "null" if kind == "ptr" else str(int(number)))

    def integer(self, number: int) -> Value:
        """A number of type i64."""
        return self.constant("i64", number)

    def like(self, value: Value, other: Operand) -> Value:
        """The other operand of an operation."""
        return other if isinstance(other, Value) else self.constant(value.type, other)

    # --- memory

    def at(self, pointer: Value, *offsets: Operand) -> Value:
        """A pointer some bytes further."""
        for offset in offsets:
            if isinstance(offset, Value) or offset:
                distance = offset if isinstance(offset, Value) else self.integer(offset)
                pointer = self.emit("ptr", f"getelementptr i8, {pointer}, {distance}")
        return pointer

    def load(self, kind: str, pointer: Value, align: int) -> Value:
        """What a pointer points to."""
        return self.emit(kind, f"load {kind}, {pointer}, align {align}")

    def store(self, value: Value, pointer: Value, align: int) -> None:
        """Write to where a pointer points."""
        self.line(f"store {value}, {pointer}, align {align}")

    def prefetch(self, pointer: Value) -> None:
        """Fetch a line that will be written to into the cache."""
        self._intrinsics.add("declare void @llvm.prefetch.p0(ptr, i32, i32, i32)")
        self.line(f"call void @llvm.prefetch.p0({pointer}, i32 1, i32 3, i32 1)")

    def field(self, pointer: Value, number: int, kind: str = "i64") -> Value:
        """One of the eight-byte fields of a block of arguments."""
        return self.load(kind, self.at(pointer, 8 * number), 8)

    def copy(self, to: Value, source: Value, size: Value) -> None:
        """Copy bytes between places that do not overlap."""
        self._intrinsics.add("declare void @llvm.memcpy.p0.p0.i64(ptr, ptr, i64, i1)")
        self.line(f"call void @llvm.memcpy.p0.p0.i64({to}, {source}, {size}, i1 false)")

    def zero(self, to: Value, size: Value) -> None:
        """Fill bytes with zeros."""
        self._intrinsics.add("declare void @llvm.memset.p0.i64(ptr, i8, i64, i1)")
        self.line(f"call void @llvm.memset.p0.i64({to}, i8 0, {size}, i1 false)")

    # --- vectors

    def lanes(self, vector: str) -> int:
        """How many elements a vector type has."""
        return int(vector[1 : vector.index(" ")])

    def splat(self, vector: str, value: Value) -> Value:
        """A vector with a value in all lanes."""
        one = self.emit(vector, f"insertelement {vector} poison, {value}, i32 0")
        return self.emit(vector, f"shufflevector {one}, {vector} poison, <{self.lanes(vector)} x i32> zeroinitializer")

    def shuffle(self, a: Value, b: Value, indices: Sequence[int]) -> Value:
        """Lanes of two vectors of one type, counted through."""
        scalar = a.type.partition(" x ")[2]
        chosen = ", ".join(f"i32 {i}" for i in indices)
        return self.emit(f"<{len(indices)} x {scalar}", f"shufflevector {a}, {b}, <{len(indices)} x i32> <{chosen}>")

    def first_lanes(self, lanes: int, count: Value) -> Value:
        """A mask of the first `count` lanes."""
        numbers = ", ".join(f"i64 {i}" for i in range(lanes))
        vector = f"<{lanes} x i64>"
        return self.emit(
            f"<{lanes} x i1>", f"icmp slt {vector} <{numbers}>, {self.splat(vector, count).name}"
        )  # fmt: skip

    def load_some(self, vector: str, pointer: Value, mask: Value | None, align: int) -> Value:
        """The lanes of a mask, or all; 0 in the others, whose memory is not touched."""
        if mask is None:
            return self.load(vector, pointer, align)
        arguments = f"{pointer}, i32 {align}, {mask}, {vector} zeroinitializer"
        return self.intrinsic(
            f"masked.load.{_suffix(vector)}.p0", vector, arguments, f"ptr, i32, {mask.type}, {vector}"
        )

    def store_some(self, value: Value, pointer: Value, mask: Value | None, align: int) -> None:
        """Write the lanes of a mask, or all; the memory of the others is not touched."""
        if mask is None:
            self.store(value, pointer, align)
            return
        name = f"llvm.masked.store.{_suffix(value.type)}.p0"
        self._intrinsics.add(f"declare void @{name}({value.type}, ptr, i32, {mask.type})")
        self.line(f"call void @{name}({value}, {pointer}, i32 {align}, {mask})")

    # --- functions

    def intrinsic(self, name: str, kind: str, arguments: str, types: str) -> Value:
        """Call one of LLVM's intrinsic functions."""
        self._intrinsics.add(f"declare {kind} @llvm.{name}({types})")
        return self.emit(kind, f"call {kind} @llvm.{name}({arguments})")

    def multiply_add(self, x: Value, y: Operand, z: Operand) -> Value:
        """x·y + z, rounded once on every processor that can do so in one instruction."""
        kind, y, z = x.type, self.like(x, y), self.like(x, z)
        return self.intrinsic(f"fmuladd.{_suffix(kind)}", kind, f"{x}, {y}, {z}", f"{kind}, {kind}, {kind}")

    def unary(self, name: str, x: Value) -> Value:
        """An intrinsic of one argument: fabs, sqrt, …"""
        return self.intrinsic(f"{name}.{_suffix(x.type)}", x.type, f"{x}", x.type)

    def copy_sign(self, x: Value, y: Value) -> Value:
        """The size of `x` with the sign of `y`."""
        kind = x.type
        return self.intrinsic(f"copysign.{_suffix(kind)}", kind, f"{x}, {y}", f"{kind}, {kind}")

    def call(self, function: str, *arguments: Operand) -> None:
        """Call a function of this module by name, or any by a pointer in a register; Python numbers become i64."""
        values = [a if isinstance(a, Value) else self.integer(a) for a in arguments]
        self.line(f"call void {function}({', '.join(map(repr, values))})")

    def opaque(self, value: Value) -> Value:
        """The same integer or pointer, of which LLVM forgets how it was computed."""
        return self.emit(value.type, f'call {value.type} asm "", "=r,0"({value})')

    def select(self, condition: Value, x: Value, y: Operand) -> Value:
        """`x` where the condition holds, else `y`."""
        return self.emit(x.type, f"select {condition}, {x}, {x.type} {self.like(x, y).name}")

    def minimum(self, x: Value, y: Operand) -> Value:
        """The smaller of two integers."""
        return self.select(x < y, x, y)

    # --- flow

    def _start(self, label: str) -> None:
        self._lines.append(f"{label}:")
        self._block = label

    def _label(self) -> str:
        self._count += 1
        return f"b{self._count}"

    @contextlib.contextmanager
    def loop(self, start: Operand, stop: Operand, step: Operand = 1) -> Iterator[Value]:
        """Repeat what is written inside, for start ≤ i < stop; gives i."""
        check, body, end = self._label(), self._label(), self._label()
        counter = self.variable(start if isinstance(start, Value) else self.integer(start))
        self.line(f"br label %{check}")
        self._start(check)
        index = counter.get()
        inside = index < stop
        self.line(f"br {inside}, label %{body}, label %{end}")
        self._start(body)
        yield index
        counter.set(index + step)
        self.line(f"br label %{check}, !llvm.loop {NO_HINT}")
        self._start(end)

    @contextlib.contextmanager
    def when(self, condition: Value) -> Iterator[None]:
        """Do what is written inside only if a condition holds."""
        body, end = self._label(), self._label()
        self.line(f"br {condition}, label %{body}, label %{end}")
        self._start(body)
        yield
        self.line(f"br label %{end}")
        self._start(end)

    @contextlib.contextmanager
    def unless(self, condition: Value) -> Iterator[None]:
        """Do what is written inside only if a condition does not hold."""
        with self.when(self.emit("i1", f"xor {condition}, true")):
            yield


NO_HINT = "!loop"
"""What stands for the hints of a loop in the text of a function, until a module has them."""


def module(functions: Sequence[Function], *others: str) -> str:
    """The IR of some functions together, and lines of one's own before them."""
    declarations = sorted(set().union(*(f.declarations for f in functions)))
    text = "\n".join([*declarations, *others, *(f.text() for f in functions)])
    # Loops are what they should be: LLVM need not spend time on trying to vectorise or unroll them.
    first, *rest = text.split(NO_HINT)
    loops = [f"!{2 + i} = distinct !{{!{2 + i}, !0, !1}}" for i in range(len(rest))]
    hints = ['!0 = !{!"llvm.loop.unroll.disable"}', '!1 = !{!"llvm.loop.vectorize.enable", i1 false}']
    return "\n".join([first + "".join(f"!{2 + i}{part}" for i, part in enumerate(rest)), *hints, *loops])


def written(name: str, write: Callable[[], str], *parameters: object) -> str:
    """The text of a module, kept on disk for the next process as long as kernels' sources are the same.

    Parameters
    ----------
    name : str
    write : callable
        Gives the text.
    *parameters
        What the text depends on besides; they are told apart by how they print.
    """
    key = hashlib.sha256(f"{_sources()}{parameters!r}".encode()).hexdigest()[:32]
    return disk_cache.get_or_make("code", f"{name}-{key}.ll", lambda: write().encode()).decode()


@functools.cache
def _sources() -> str:
    sources = sorted(Path(__file__).parent.glob("*_ir.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in [Path(__file__), *sources])).hexdigest()


def _suffix(kind: str) -> str:
    """A type in the name of an intrinsic."""
    bits = {"float": "f32", "double": "f64"}
    if kind[0] != "<":
        return bits.get(kind, kind)
    lanes, _, scalar = kind[1:-1].partition(" x ")
    return f"v{lanes}{bits.get(scalar, scalar)}"
