"""Scalar formulas: what an elementwise operator computes, written once and read by every back end.

A formula is a Python function of a math namespace and of scalars::

    def sigmoid(m, x):
        return 1 / (1 + m.exp(-x))

It is run once over symbols, which yields a `Program`: a list of primitive instructions. numpy executes the list if all
its primitives are exact in IEEE 754; generated loops do if there are exponentials and the like in it, whose one
definition is in `disttensor.kernels.elementary`, and wherever operators are fused.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from disttensor.errors import ArgumentError
from disttensor.kernels import blas, elementary, generated, loop
from disttensor.kernels.loop import Literal, Loop, Step
from disttensor.kernels.native import Bound

Formula = Callable[..., Any]

_PIECE = 1 << 15
"""Elements of an array that are done at once."""

# The primitives, by name; numpy has a ufunc of the same name for each but the special functions.
_NUMERIC = frozenset(
    [
        "add", "subtract", "multiply", "divide", "floor_divide", "remainder", "power", "negative", "absolute",
        "sign", "square", "sqrt", "reciprocal", "exp", "exp2", "expm1", "log", "log1p", "log2", "log10", "sin",
        "cos", "tan", "arcsin", "arccos", "arctan", "arctan2", "sinh", "cosh", "tanh", "arcsinh", "arccosh",
        "arctanh", "floor", "ceil", "trunc", "rint", "maximum", "minimum", "fmax", "fmin", "conjugate", "real",
        "imag", "bitwise_and", "bitwise_or", "bitwise_xor", "invert", "left_shift", "right_shift", "hypot",
        "copysign", "nextafter",
    ]
)  # fmt: skip
_SPECIAL = frozenset(["erf", "erfc", "erfinv", "lgamma", "digamma"])
_BOOLEAN = frozenset(
    [
        "equal", "not_equal", "less", "less_equal", "greater", "greater_equal", "logical_and", "logical_or",
        "logical_xor", "logical_not", "isnan", "isinf", "isfinite", "signbit",
    ]
)  # fmt: skip
# numpy computes these in other ways, with other last bits, where the memory is not contiguous; complex products are
# others too where result and operand are the same memory.
_LAYOUT_DEPENDENT = _SPECIAL | frozenset(
    ["power", "exp", "exp2", "expm1", "log", "log1p", "log2", "log10", "sin", "cos", "tan", "arcsin", "arccos"]
    + ["arctan", "arctan2", "sinh", "cosh", "tanh", "arcsinh", "arccosh", "arctanh", "absolute", "hypot"]
)
# Their result is of another dtype than their operand's, so it cannot share memory with the result of the program.
_CHANGES_DTYPE = frozenset({"absolute", "real", "imag"})


class Instruction(NamedTuple):
    """``registers[target] = function(*operands)``; an operand is the number of a register, or a `Constant`."""

    function: str
    operands: tuple[Any, ...]
    target: int


class Constant(NamedTuple):
    """A Python number in a formula; weakly typed: it takes the dtype of what it meets."""

    value: Any


class _Trace:
    """Collects the instructions while a formula runs; also its namespace `m`, with a function for each primitive."""

    def __init__(self, arity: int):
        self.arity = arity
        self.instructions: list[Instruction] = []

    def emit(self, function: str, *operands: Any) -> Symbol:
        registers = tuple(o.register if isinstance(o, Symbol) else Constant(o) for o in operands)
        target = self.arity + len(self.instructions)
        self.instructions.append(Instruction(function, registers, target))
        return Symbol(self, target)

    def __getattr__(self, name: str) -> Callable[..., Symbol]:
        if name not in _NUMERIC and name not in _SPECIAL and name not in _BOOLEAN and name != "where":
            raise AttributeError(f"formulas know no function {name!r}; add it to the primitives if numpy has it.")
        return functools.partial(self.emit, name)


class Symbol:
    """A scalar while a formula is traced."""

    def __init__(self, trace: _Trace, register: int):
        self._trace = trace
        self.register = register

    def __add__(self, y: Any) -> Symbol:
        return self._trace.emit("add", self, y)

    def __radd__(self, y: Any) -> Symbol:
        return self._trace.emit("add", y, self)

    def __sub__(self, y: Any) -> Symbol:
        return self._trace.emit("subtract", self, y)

    def __rsub__(self, y: Any) -> Symbol:
        return self._trace.emit("subtract", y, self)

    def __mul__(self, y: Any) -> Symbol:
        return self._trace.emit("multiply", self, y)

    def __rmul__(self, y: Any) -> Symbol:
        return self._trace.emit("multiply", y, self)

    def __truediv__(self, y: Any) -> Symbol:
        return self._trace.emit("divide", self, y)

    def __rtruediv__(self, y: Any) -> Symbol:
        return self._trace.emit("divide", y, self)

    def __neg__(self) -> Symbol:
        return self._trace.emit("negative", self)

    def __bool__(self) -> bool:
        raise ArgumentError("a formula cannot branch on a value; use m.where(condition, a, b).")


@dataclass(frozen=True)
class Program:
    """A traced formula.

    Attributes
    ----------
    arity : int
        How many inputs; they are registers 0 to arity − 1.
    instructions : tuple of Instruction
        The last one makes the result.
    in_place : tuple of bool
        Which instructions may write into the array of the result: those that come when neither an input is read any
        more, so that an input and the result can be the same memory, nor what an earlier one has left there.
    """

    arity: int
    instructions: tuple[Instruction, ...]
    in_place: tuple[bool, ...]

    def run(self, out: np.ndarray, *inputs: np.ndarray) -> None:
        """Evaluate with numpy, with the same bits whatever the layout of the inputs in memory.

        Large arrays are done piece by piece, on several threads: intermediate results then stay in the cache.
        """
        call = self.bind(out, *inputs)
        if call is not None:
            call()
            return
        if out.dtype.kind == "c" or any(i.function in _LAYOUT_DEPENDENT for i in self.instructions):
            inputs = tuple(np.asarray(x, order="C") for x in inputs)
        arrays = (out, *inputs)
        if out.size <= _PIECE or not all(a.flags.c_contiguous and a.shape == out.shape for a in arrays):
            self._evaluate(*arrays)
            return
        flat = [a.reshape(-1) for a in arrays]
        blas.for_each(
            lambda start: self._evaluate(*(a[start : start + _PIECE] for a in flat)), range(0, out.size, _PIECE)
        )

    def _evaluate(self, out: np.ndarray, *inputs: np.ndarray) -> None:
        is_complex = out.dtype.kind == "c"
        registers: dict[int, Any] = dict(enumerate(inputs))
        for instruction, in_place in zip(self.instructions, self.in_place, strict=True):
            operands = [o.value if isinstance(o, Constant) else registers[o] for o in instruction.operands]
            function = _function(instruction.function)
            if in_place and not is_complex:
                registers[instruction.target] = function(*operands, out=out)
            else:
                registers[instruction.target] = function(*operands)
        if is_complex:
            np.copyto(out, registers[self.instructions[-1].target])

    def steps(self, dtypes: tuple[str, ...], result: str) -> tuple[Step, ...] | None:
        """The steps of a generated loop; None if it cannot compute this.

        Parameters
        ----------
        dtypes : tuple of str
            The dtypes of the inputs.
        result : str
            The dtype of the result.
        """
        if (dtypes, result) not in self._written:
            self._written[dtypes, result] = self._write(dtypes, result)
        return self._written[dtypes, result]

    @functools.cached_property
    def _written(self) -> dict[tuple[tuple[str, ...], str], tuple[Step, ...] | None]:
        return {}

    def _write(self, dtypes: tuple[str, ...], result: str) -> tuple[Step, ...] | None:
        known = list(dtypes)
        steps = []
        for number, instruction in enumerate(self.instructions, 1):
            operands = tuple(Literal(o.value) if isinstance(o, Constant) else o for o in instruction.operands)
            last = result if number == len(self.instructions) else None
            step = _typed(instruction.function, operands, known, last)
            if step is None:
                return None
            steps.append(step)
            known.append(step.dtype)
        return tuple(steps) if known[-1] == result else None

    def bind(self, out: np.ndarray, *inputs: np.ndarray) -> Bound | None:
        """A call of a generated loop on these arrays, if the formula has functions that only such loops compute."""
        if not any(i.function in elementary.FUNCTIONS for i in self.instructions) or not out.flags.c_contiguous:
            return None
        whole = _generate(self, tuple((x.dtype.name, x.size == 1) for x in inputs), out.dtype.name)
        if whole is None:
            return None
        arrays = [x if x.size == 1 else np.broadcast_to(x, out.shape) for x in inputs]
        return generated.bind(whole, arrays, [out], 1)

    def as_ufunc(self) -> Callable[..., Any] | None:
        """The ufunc of numpy that this program is, applied to its inputs in order; None if it is more than that."""
        first, *more = self.instructions
        if first.function in elementary.FUNCTIONS:
            return None
        simple = not more and first.operands == tuple(range(self.arity)) and first.function not in _LAYOUT_DEPENDENT
        function = _function(first.function) if simple else None
        return function if isinstance(function, np.ufunc) else None


@functools.lru_cache(maxsize=4096)
def _generate(program: Program, inputs: tuple[tuple[str, bool], ...], result: str) -> Loop | None:
    """The loop of a program for inputs of these dtypes, which are single numbers or not."""
    steps = program.steps(tuple(dtype for dtype, _ in inputs), result)
    if steps is None or any(dtype not in loop.DTYPES for dtype, _ in inputs):
        return None
    accesses = tuple((dtype, "scalar" if single else "full") for dtype, single in inputs)
    whole = Loop(accesses, steps, (len(inputs) + len(steps) - 1,))
    if whole.levels[whole.outputs[0]] == "full":
        return whole
    spread = Step("spread", whole.outputs, result)
    return Loop(accesses, (*whole.steps, spread), (whole.outputs[0] + 1,))


def _typed(function: str, operands: tuple[Any, ...], dtypes: list[str], result: str | None) -> Step | None:
    values = operands[1:] if function == "where" else operands
    kinds = {dtypes[o] for o in values if isinstance(o, int)}
    if function == "where" and not kinds and result is not None:
        kinds = {result}
    if len(kinds) != 1 or (function == "where" and not _is_condition(operands[0], dtypes)):
        return None
    kind = kinds.pop()
    literals = [o.value for o in values if isinstance(o, Literal)]
    if not loop.supports(function, kind) or any(not _fits(value, kind) for value in literals):
        return None
    return Step(function, operands, "bool" if function in loop.BOOLEAN else kind)


def _is_condition(operand: Any, dtypes: list[str]) -> bool:
    return isinstance(operand, int) and dtypes[operand] == "bool"


def _fits(value: Any, dtype: str) -> bool:
    if isinstance(value, bool) or dtype == "bool":
        return isinstance(value, bool) and dtype == "bool"
    return isinstance(value, int) or (isinstance(value, float) and dtype.startswith("float"))


def trace(formula: Formula, arity: int, **attrs: Any) -> Program:
    """Run a formula over symbols.

    Parameters
    ----------
    formula : callable
        ``formula(m, *scalars, **attrs)``.
    arity : int
        How many scalars.
    """
    recorder = _Trace(arity)
    result = formula(recorder, *(Symbol(recorder, i) for i in range(arity)), **attrs)
    if not isinstance(result, Symbol):
        raise ArgumentError(f"the formula of {formula.__name__!r} does not depend on its inputs.")
    instructions = recorder.instructions
    if result.register != arity + len(instructions) - 1 or not instructions:
        recorder.emit("copy", result)
    return Program(arity, tuple(instructions), _in_place(arity, instructions))


def _in_place(arity: int, instructions: list[Instruction]) -> tuple[bool, ...]:
    """Which instructions may write into the array of the result, see `Program`."""
    last_read = {o: n for n, i in enumerate(instructions) for o in i.operands if isinstance(o, int)}
    inputs_read = max(last_read[register] for register in last_read if register < arity)
    other_dtype = _BOOLEAN | _CHANGES_DTYPE
    chosen = []
    occupied_until = inputs_read
    for n, instruction in enumerate(instructions[:-1]):
        free = n >= occupied_until and not {instruction.function, instructions[-1].function} & other_dtype
        chosen.append(free)
        if free:
            occupied_until = last_read.get(instruction.target, n)
    return (*chosen, True)


def _where(condition: Any, x: Any, y: Any, out: np.ndarray | None = None) -> np.ndarray:
    if out is None:
        return np.where(condition, x, y)
    if any(np.may_share_memory(out, operand) for operand in (condition, x, y) if isinstance(operand, np.ndarray)):
        return _copy(np.where(condition, x, y), out)
    np.copyto(out, y)
    np.copyto(out, x, where=condition)
    return out


def _copy(x: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    if out is None:
        return x.copy()
    np.copyto(out, x)
    return out


def _part(name: str) -> Callable[..., np.ndarray]:
    def part(x: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        found = getattr(x, name)
        return found if out is None else _copy(found, out)

    return part


_OTHER: dict[str, Callable[..., Any]] = {
    "where": _where,
    "copy": _copy,
    "real": _part("real"),
    "imag": _part("imag"),
}


def _function(name: str) -> Callable[..., Any]:
    if name in _OTHER:
        return _OTHER[name]
    if name in _SPECIAL:
        from disttensor.kernels import special

        return getattr(special, name)
    return getattr(np, name)
