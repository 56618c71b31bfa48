"""Writing LLVM IR: scalar formulas as instructions on numbers, or on vectors of numbers.

A `Block` collects instructions on values of one width. Python's operators on its values write one instruction each, so
arithmetic reads as such::

    y = x * x + block.constant(1.0, x.dtype)

Every instruction is that of IEEE 754, rounded once: none has a flag that would let LLVM contract or reorder it. So the
bits depend neither on the width nor on the processor.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

TYPES = {
    "bool": "i1", "int8": "i8", "int16": "i16", "int32": "i32", "int64": "i64", "uint8": "i8", "uint16": "i16",
    "uint32": "i32", "uint64": "i64", "float32": "float", "float64": "double",
}  # fmt: skip
BITS = {"float32": "int32", "float64": "int64"}
"""The integers that hold the bits of a float."""

_ARITHMETIC = {"add": "add", "subtract": "sub", "multiply": "mul", "divide": "div"}
_COMPARE = {
    "equal": ("oeq", "eq"), "not_equal": ("une", "ne"), "less": ("olt", "lt"), "less_equal": ("ole", "le"),
    "greater": ("ogt", "gt"), "greater_equal": ("oge", "ge"),
}  # fmt: skip
_LOGICAL = {"logical_and": "and", "logical_or": "or", "logical_xor": "xor"}
_BITWISE = {"bitwise_and": "and", "bitwise_or": "or", "bitwise_xor": "xor"}
_INTRINSIC = {
    "absolute": "fabs", "sqrt": "sqrt", "floor": "floor", "ceil": "ceil", "trunc": "trunc", "rint": "rint",
    "copysign": "copysign", "fma": "fma",
}  # fmt: skip
_TESTS = ("isnan", "isinf", "isfinite")
COMPARISONS = frozenset(_COMPARE)
LOGICAL = frozenset(_LOGICAL)
FLOATING = frozenset(
    (*_ARITHMETIC, *_COMPARE, *_INTRINSIC, "negative", "square", "reciprocal", "maximum", "minimum", "sign", "isnan")
    + ("isinf", "isfinite", "where", "copy")
)
"""Primitives on floating-point numbers."""
_WHOLE = {"trunc": "copy", "conjugate": "copy", "real": "copy"}
"""What primitives are on numbers without a fraction."""
INTEGRAL = frozenset(
    ("add", "subtract", "multiply", *_COMPARE, *_BITWISE, *_WHOLE, *_TESTS, "maximum", "minimum", "where", "copy")
    + ("negative", "absolute", "sign", "square", "invert", "left_shift", "right_shift")
)
"""Primitives on integers."""
_OF_TRUTH = {
    "add": "or", "maximum": "or", "multiply": "and", "minimum": "and", "absolute": "copy", **_WHOLE,
}  # fmt: skip
TRUTH = frozenset((*_LOGICAL, *_BITWISE, *_COMPARE, *_OF_TRUTH, *_TESTS, "logical_not", "invert", "where", "copy"))
"""Primitives on booleans."""


def constant(value: Any, dtype: str) -> str:
    """A number as IR spells it."""
    if dtype == "bool":
        return "true" if value else "false"
    if not dtype.startswith("float"):
        return str(int(value))
    with np.errstate(over="ignore"):
        rounded = float(np.float32(value)) if dtype == "float32" else float(value)
    return f"0x{struct.unpack('<Q', struct.pack('<d', rounded))[0]:016X}"


@dataclass
class Module:
    """What blocks of one module share: declarations, and the functions that they call."""

    declarations: set[str] = field(default_factory=set)
    functions: dict[str, str] = field(default_factory=dict)


class Value:
    """A number, or a vector of them, in a block."""

    __slots__ = ("block", "dtype", "name")

    def __init__(self, block: Block, name: str, dtype: str):
        self.block = block
        self.name = name
        self.dtype = dtype

    def __add__(self, y: Any) -> Value:
        return self.block.apply("add", self, y)

    def __radd__(self, y: Any) -> Value:
        return self.block.apply("add", y, self)

    def __sub__(self, y: Any) -> Value:
        return self.block.apply("subtract", self, y)

    def __rsub__(self, y: Any) -> Value:
        return self.block.apply("subtract", y, self)

    def __mul__(self, y: Any) -> Value:
        return self.block.apply("multiply", self, y)

    def __rmul__(self, y: Any) -> Value:
        return self.block.apply("multiply", y, self)

    def __truediv__(self, y: Any) -> Value:
        return self.block.apply("divide", self, y)

    def __rtruediv__(self, y: Any) -> Value:
        return self.block.apply("divide", y, self)

    def __neg__(self) -> Value:
        return self.block.apply("negative", self)

    def __abs__(self) -> Value:
        return self.block.apply("absolute", self)

    def __lt__(self, y: Any) -> Value:
        return self.block.apply("less", self, y)

    def __le__(self, y: Any) -> Value:
        return self.block.apply("less_equal", self, y)

    def __gt__(self, y: Any) -> Value:
        return self.block.apply("greater", self, y)

    def __ge__(self, y: Any) -> Value:
        return self.block.apply("greater_equal", self, y)

    def __and__(self, y: Any) -> Value:
        return self.block.apply("bitwise_and", self, y)

    def __or__(self, y: Any) -> Value:
        return self.block.apply("bitwise_or", self, y)

    def __xor__(self, y: Any) -> Value:
        return self.block.apply("bitwise_xor", self, y)

    def __lshift__(self, places: int) -> Value:
        return self.block.shift("shl", self, places)

    def __rshift__(self, places: int) -> Value:
        """Without the sign: zeros come in."""
        return self.block.shift("lshr", self, places)


class Block:
    """Instructions on values of one width.

    Parameters
    ----------
    module : Module
    width : int, default 1
        How many numbers a value holds: 1 is a scalar, more a vector.
    functions : mapping, default empty
        More functions than the primitives: formulas ``f(block, *values)`` by name. Each becomes a function of the
        module, which is inlined where it is called.
    prefix : str, default "t"
        What names begin with.
    """

    def __init__(
        self,
        module: Module,
        width: int = 1,
        functions: dict[str, Callable[..., Value]] | None = None,
        prefix: str = "t",
    ):
        self.module = module
        self.width = width
        self.functions = functions or {}
        self.prefix = prefix
        self.lines: list[str] = []
        self.label: str | None = None  # in the body of a function: where we are
        self._count = 0

    def type(self, dtype: str) -> str:
        """The type of values of a dtype."""
        return TYPES[dtype] if self.width == 1 else f"<{self.width} x {TYPES[dtype]}>"

    def emit(self, text: str, dtype: str) -> Value:
        """Write an instruction that gives a value of this dtype."""
        self._count += 1
        name = f"%{self.prefix}{self._count}"
        self.lines.append(f"  {name} = {text}")
        return Value(self, name, dtype)

    def constant(self, value: Any, dtype: str) -> Value:
        """A number, in every place of the vector."""
        text = constant(value, dtype)
        return Value(self, text if self.width == 1 else f"splat ({TYPES[dtype]} {text})", dtype)

    def splat(self, scalar: Value) -> Value:
        """The scalar of another block, in every place of the vector."""
        if self.width == 1 or scalar.name[0] != "%":
            return self.constant_like(scalar)
        kind, vector = TYPES[scalar.dtype], self.type(scalar.dtype)
        first = self.emit(f"insertelement {vector} poison, {kind} {scalar.name}, i64 0", scalar.dtype)
        places = f"<{self.width} x i32> zeroinitializer"
        return self.emit(f"shufflevector {vector} {first.name}, {vector} poison, {places}", scalar.dtype)

    def constant_like(self, scalar: Value) -> Value:
        """A scalar of another block that needs no instruction: the same scalar, or a constant repeated."""
        repeated = f"splat ({TYPES[scalar.dtype]} {scalar.name})"
        return Value(self, scalar.name if self.width == 1 else repeated, scalar.dtype)

    def apply(self, function: str, *operands: Any) -> Value:
        """Write a primitive, or the call of a function.

        Python numbers among the operands take the dtype of the values.
        """
        if function == "where":
            return self.where(*operands)
        dtype = next(o.dtype for o in operands if isinstance(o, Value))
        # A value may come from another block that stands before this one: what is made of it belongs here.
        values = [Value(self, o.name, o.dtype) if isinstance(o, Value) else self.constant(o, dtype) for o in operands]
        if function in self.functions:
            return self._call(function, dtype, values)
        if function in ("copy", "conjugate", "real"):
            return values[0]
        return self._float(function, dtype, values) if dtype.startswith("float") else self._int(function, dtype, values)

    def where(self, condition: Value, x: Any, y: Any) -> Value:
        """x where the condition holds, else y."""
        dtype = next(o.dtype for o in (x, y) if isinstance(o, Value))
        a, b = (o if isinstance(o, Value) else self.constant(o, dtype) for o in (x, y))
        kind = self.type(dtype)
        return self.emit(f"select {self.type('bool')} {condition.name}, {kind} {a.name}, {kind} {b.name}", dtype)

    def where_any(self, condition: Value, rare: Callable[[], Sequence[Value]], common: Sequence[Value]) -> list[Value]:
        """`rare` where the condition holds, else `common`; `rare` is only computed if it holds anywhere.

        In functions only, as it is a branch.
        """
        if self.label is None:
            raise ValueError("a branch must be in a function.")
        anywhere = condition.name
        if self.width > 1:
            lanes = f"v{self.width}i1"
            self.module.declarations.add(f"declare i1 @llvm.vector.reduce.or.{lanes}({self.type('bool')})")
            call = f"call i1 @llvm.vector.reduce.or.{lanes}({self.type('bool')} {condition.name})"
            anywhere = self.emit(call, "bool").name
        before, inside, behind = self.label, f"any{self._count}", f"all{self._count}"
        self.lines += [f"  br i1 {anywhere}, label %{inside}, label %{behind}", f"{inside}:"]
        self.label = inside
        chosen = [self.where(condition, r, c) for r, c in zip(rare(), common, strict=True)]
        self.lines += [f"  br label %{behind}", f"{behind}:"]
        sources = [f"[{r.name}, %{self.label}], [{c.name}, %{before}]" for r, c in zip(chosen, common, strict=True)]
        self.label = behind
        return [self.emit(f"phi {self.type(c.dtype)} {s}", c.dtype) for c, s in zip(common, sources, strict=True)]

    def gather(self, table: Sequence[float], index: Value, dtype: str) -> Value:
        """The elements of a table of constants at these places, which must be in range."""
        numbers = ", ".join(f"{TYPES[dtype]} {constant(number, dtype)}" for number in table)
        text = f"private constant [{len(table)} x {TYPES[dtype]}] [{numbers}]"
        name = f"table.{hashlib.sha256(text.encode()).hexdigest()[:8]}"
        self.module.functions[name] = f"@{name} = {text}"
        pointers = "ptr" if self.width == 1 else f"<{self.width} x ptr>"
        address = f"getelementptr {TYPES[dtype]}, ptr @{name}, {self.type(index.dtype)} {index.name}"
        places = self.emit(address, dtype).name
        kind = self.type(dtype)
        if self.width == 1:
            return self.emit(f"load {kind}, ptr {places}", dtype)
        function = f"@llvm.masked.gather.v{self.width}{'f32' if dtype == 'float32' else 'f64'}.v{self.width}p0"
        lanes = self.type("bool")
        self.module.declarations.add(f"declare {kind} {function}({pointers}, i32, {lanes}, {kind})")
        size = 4 if dtype == "float32" else 8
        every = f"{lanes} splat (i1 true), {kind} poison"
        return self.emit(f"call {kind} {function}({pointers} {places}, i32 {size}, {every})", dtype)

    def binary(self, instruction: str, x: Value, y: Value) -> Value:
        """An instruction of LLVM on two values of one dtype, which gives such a value."""
        return self.emit(f"{instruction} {self.type(x.dtype)} {x.name}, {y.name}", x.dtype)

    def shift(self, instruction: str, x: Value, places: int) -> Value:
        """Bits moved to the left (shl) or right (lshr without, ashr with the sign)."""
        return self.emit(f"{instruction} {self.type(x.dtype)} {x.name}, {self.constant(places, x.dtype).name}", x.dtype)

    def bitcast(self, x: Value, dtype: str) -> Value:
        """The same bits as another dtype of that size."""
        return self.emit(f"bitcast {self.type(x.dtype)} {x.name} to {self.type(dtype)}", dtype)

    def convert(self, x: Value, target: str) -> Value:
        """The number in another dtype, as numpy converts it.

        A float that is too large for an integer dtype becomes the integer nearest to it, and NaN becomes 0.
        """
        source = x.dtype
        if source == target:
            return x
        a, b = self.type(source), self.type(target)
        floats = source.startswith("float"), target.startswith("float")
        if target == "bool":
            zero = self.constant(0, source).name
            return self.emit(f"{'fcmp une' if floats[0] else 'icmp ne'} {a} {x.name}, {zero}", target)
        if all(floats):
            return self.emit(f"{'fpext' if target == 'float64' else 'fptrunc'} {a} {x.name} to {b}", target)
        unsigned = source == "bool" or source.startswith("u")
        if floats[1]:
            return self.emit(f"{'u' if unsigned else 's'}itofp {a} {x.name} to {b}", target)
        if floats[0]:
            lanes = "" if self.width == 1 else f"v{self.width}"
            names = f"{lanes}{TYPES[target]}.{lanes}{'f32' if source == 'float32' else 'f64'}"
            function = f"@llvm.fpto{'u' if target.startswith('u') else 's'}i.sat.{names}"
            self.module.declarations.add(f"declare {b} {function}({a})")
            return self.emit(f"call {b} {function}({a} {x.name})", target)
        bits = int(TYPES[source][1:]), int(TYPES[target][1:])
        if bits[0] == bits[1]:
            return Value(self, x.name, target)
        widen = "zext" if unsigned else "sext"
        return self.emit(f"{'trunc' if bits[0] > bits[1] else widen} {a} {x.name} to {b}", target)

    def intrinsic(self, name: str, values: list[Value]) -> Value:
        """The call of an intrinsic of LLVM whose operands and result have one type."""
        dtype = values[0].dtype
        kind = self.type(dtype)
        suffix = ("" if self.width == 1 else f"v{self.width}") + ("f32" if dtype == "float32" else "f64")
        self.module.declarations.add(f"declare {kind} @llvm.{name}.{suffix}({', '.join([kind] * len(values))})")
        return self.emit(f"call {kind} @llvm.{name}.{suffix}({', '.join(f'{kind} {v.name}' for v in values)})", dtype)

    def _float(self, function: str, dtype: str, values: list[Value]) -> Value:
        kind = self.type(dtype)
        x, y = values[0], values[-1]
        if function in _ARITHMETIC:
            return self.emit(f"f{_ARITHMETIC[function]} {kind} {x.name}, {y.name}", dtype)
        if function in _COMPARE:
            return self.emit(f"fcmp {_COMPARE[function][0]} {kind} {x.name}, {y.name}", "bool")
        if function in _INTRINSIC:
            return self.intrinsic(_INTRINSIC[function], values)
        if function == "negative":
            return self.emit(f"fneg {kind} {x.name}", dtype)
        if function == "square":
            return x * x
        if function == "reciprocal":
            return 1.0 / x
        if function == "isnan":
            return self.emit(f"fcmp uno {kind} {x.name}, {x.name}", "bool")
        if function in ("isinf", "isfinite"):
            return self.apply("equal" if function == "isinf" else "less", abs(x), np.inf)
        if function == "sign":
            signed = self.where(x < 0.0, -1.0, self.where(self.apply("equal", x, 0.0), 0.0, x))
            return self.where(x > 0.0, 1.0, signed)
        # As the processor's max and min: the second of two equal operands, which matters for zeros of both signs; a NaN
        # in the first wins, one in the second makes the comparison false.
        better = x > y if function == "maximum" else x < y
        return self.where(self.apply("logical_or", better, self.apply("isnan", x)), x, y)

    def _int(self, function: str, dtype: str, values: list[Value]) -> Value:
        kind = self.type(dtype)
        x, y = values[0], values[-1]
        if dtype == "bool" and function in _OF_TRUTH:
            name = _OF_TRUTH[function]
            return x if name == "copy" else self.binary(name, x, y)
        if function in _WHOLE:
            return x
        if function in _TESTS:
            return self.apply("equal" if function == "isfinite" else "not_equal", x, x)
        if function in _COMPARE:
            name = _COMPARE[function][1]
            signed = "" if name in ("eq", "ne") else ("u" if dtype.startswith("u") or dtype == "bool" else "s")
            return self.emit(f"icmp {signed}{name} {kind} {x.name}, {y.name}", "bool")
        if function in ("maximum", "minimum"):
            return self.where(x > y if function == "maximum" else x < y, x, y)
        if function in ("logical_not", "invert"):
            return self.binary("xor", x, self.constant(True if dtype == "bool" else -1, dtype))
        if function == "square":
            return x * x
        if function in ("negative", "absolute"):
            negated = 0 - x
            return negated if function == "negative" else self.where(self.apply("less", x, 0), negated, x)
        if function == "sign":
            return self.where(x > 0, 1, self.where(x < 0, self.constant(-1, dtype), 0))
        if function in ("left_shift", "right_shift"):
            return self._shifted(function, x, y)
        return self.emit(f"{({**_ARITHMETIC, **_LOGICAL, **_BITWISE})[function]} {kind} {x.name}, {y.name}", dtype)

    def _shifted(self, function: str, x: Value, y: Value) -> Value:
        """Bits moved by as many places as y says; by too many, nothing but zeros (or the sign) is left."""
        unsigned, bits = x.dtype.startswith("u"), int(TYPES[x.dtype][1:])
        # Of a negative number of places numpy makes a large one, too.
        outside = self.apply("logical_or", y < 0, y >= bits)
        safe = self.where(outside, 0, y)
        if function == "left_shift":
            return self.where(outside, 0, self.binary("shl", x, safe))
        if unsigned:
            return self.where(outside, 0, self.binary("lshr", x, safe))
        return self.binary("ashr", x, self.where(outside, bits - 1, y))

    def _call(self, function: str, dtype: str, values: list[Value]) -> Value:
        name = f"{function}.{dtype}" + (f".x{self.width}" if self.width > 1 else "")
        kind = self.type(dtype)
        if name not in self.module.functions:
            self.module.functions[name] = ""
            inner = Block(self.module, self.width, self.functions)
            inner.label = "entry"
            parameters = [Value(inner, f"%x{i}", dtype) for i in range(len(values))]
            result = self.functions[function](inner, *parameters)
            # What has branches is long, and would be compiled once for whole vectors and once more for the rest.
            inlined = "alwaysinline" if inner.label == "entry" else "noinline"
            head = f"define internal {kind} @{name}({', '.join(f'{kind} {p.name}' for p in parameters)}) {inlined}"
            self.module.functions[name] = "\n".join(
                [f"{head} nounwind {{", "entry:", *inner.lines, f"  ret {kind} {result.name}", "}"]
            )
        return self.emit(f"call {kind} @{name}({', '.join(f'{kind} {v.name}' for v in values)})", dtype)
