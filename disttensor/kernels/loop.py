"""What a generated loop computes: a list of primitive steps over the elements of a matrix.

A loop runs over rows and columns. Its registers live on one of three levels, which follow from how they are made:

* "full": a number for each element; made from what is read for each element or each column;
* "column": a number for each row; made from columns and from reductions of rows, which may feed "full" steps again;
* "scalar": one number.

Rows are added up in a fixed order: element c of a row goes to sum c mod 16, and the 16 sums are added pairwise, s₀ + s₈
and so on. Columns are added up row by row in blocks of `BLOCK` rows, then the sums of blocks in the same way. So the
order depends on the shape alone, never on threads or the processor.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, NamedTuple

from disttensor.kernels import elementary, scalar_ir

DTYPES = frozenset(scalar_ir.TYPES)
"""The dtypes that loops can work on."""

LANES = 16
"""Sums of a row that run side by side."""

BLOCK = 256
"""Rows whose columns are added up one after the other."""

BOOLEAN = frozenset((*scalar_ir.COMPARISONS, *scalar_ir.LOGICAL, "logical_not", "isnan", "isinf", "isfinite"))
"""The primitives whose result is bool, whatever the dtype of their operands."""

ROW_REDUCTIONS = frozenset(("sum", "max", "min"))
"""Steps that make one number of a row."""

COLUMN_REDUCTIONS = frozenset(f"{function}_rows" for function in ROW_REDUCTIONS)
"""Steps that make one number of a column."""

_COSTLY = frozenset((*elementary.FUNCTIONS, "divide", "sqrt", "reciprocal"))


@dataclass(frozen=True, eq=False)
class Literal:
    """A number in a loop, of the dtype of the instruction that uses it."""

    value: Any

    def __eq__(self, other: object) -> bool:
        """Whether it is the same number, as it is written: 0.0 and -0.0 are two."""
        return isinstance(other, Literal) and repr(self) == repr(other)

    def __hash__(self) -> int:
        return hash(repr(self))

    def __repr__(self) -> str:
        return repr(self.value)


class Step(NamedTuple):
    """``register = function(*operands)``, in the dtype of the operands; ``convert`` gives `dtype`.

    Operands are numbers of registers, or literals. Inputs are the first registers, then comes one for each step.
    Beside the primitives and functions there are "sum", "max" and "min" of a row; "sum_rows", "max_rows" and "min_rows"
    of columns, which no other step can use; "column", the number of the column, without operands; "spread", which makes
    a number of each element; and "sum_chosen", whose row r is the sum of those rows of its first operand that r has
    chosen (see `disttensor.kernels.indexing.bind_order`).
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
        row), "slab" (element ⌊r / slab⌋·columns + c, the same for each `slab` rows), "column" (element r), "scalar"
        (its only element), or "anywhere" (only "sum_chosen" knows).
    steps : tuple of Step
    outputs : tuple of int
        The registers that are stored: for each element, each row, or (sums of columns) each column.
    """

    inputs: tuple[tuple[str, str], ...]
    steps: tuple[Step, ...]
    outputs: tuple[int, ...]

    @functools.cached_property
    def _hash(self) -> int:
        return hash((self.inputs, self.steps, self.outputs))

    def __hash__(self) -> int:
        return self._hash

    @functools.cached_property
    def dtypes(self) -> list[str]:
        """The dtype of each register."""
        return [dtype for dtype, _ in self.inputs] + [step.dtype for step in self.steps]

    @functools.cached_property
    def levels(self) -> list[str]:
        """The level of each register: "full", "column" or "scalar"; "row" for sums of columns."""
        levels = ["full" if access in ("row", "slab") else access for _, access in self.inputs]
        for step in self.steps:
            operands = {levels[o] for o in step.operands if isinstance(o, int)}
            if step.function in ROW_REDUCTIONS:
                level = "column"
            elif step.function in COLUMN_REDUCTIONS:
                level = "row"
            elif step.function in ("column", "spread", "sum_chosen") or "full" in operands:
                level = "full"
            else:
                level = "column" if "column" in operands else "scalar"
            levels.append(level)
        return levels

    @functools.cached_property
    def passes(self) -> list[int]:
        """In which pass over its row a register is known: reductions are after the pass that makes their operand."""
        passes = [0] * len(self.inputs)
        for step in self.steps:
            known = max((passes[o] for o in step.operands if isinstance(o, int)), default=0)
            passes.append(known + (step.function in ROW_REDUCTIONS))
        return passes

    @property
    def is_flat(self) -> bool:
        """Whether rows and columns do not matter."""
        return all(access in ("full", "scalar") for _, access in self.inputs) and not (
            {step.function for step in self.steps} & {*ROW_REDUCTIONS, *COLUMN_REDUCTIONS, "column"}
        )

    @property
    def reduces_columns(self) -> bool:
        """Whether there are reductions of columns."""
        return any(step.function in COLUMN_REDUCTIONS for step in self.steps)

    @functools.cached_property
    def in_place(self) -> bool:
        """Whether a result may take the place of an operand: no element is read after its result is written."""
        last = max(self.passes, default=0)
        return all(self.passes[o] == last for o in self.outputs if self.levels[o] == "full")

    @functools.cached_property
    def cost(self) -> int:
        """About how many instructions an element takes."""
        full = [
            step.function
            for step, level in zip(self.steps, self.levels[len(self.inputs) :], strict=True)
            if level == "full"
        ]
        return 2 + len(full) + sum(24 if f in elementary.FUNCTIONS else 8 if f in _COSTLY else 0 for f in full)

    def is_cheap(self, register: int) -> bool:
        """Whether a register is as quickly computed again as kept: at most two additions or the like."""
        step = self.steps[register - len(self.inputs)]
        operands = [o for o in step.operands if isinstance(o, int) and o >= len(self.inputs)]
        if step.function in _COSTLY:
            return False
        inner = [o for o in operands if self.levels[o] == "full"]
        return all(
            self.steps[o - len(self.inputs)].function not in _COSTLY
            and not any(
                isinstance(p, int) and p >= len(self.inputs) and self.levels[p] == "full"
                for p in self.steps[o - len(self.inputs)].operands
            )
            for o in inner
        )

    def __repr__(self) -> str:
        lines = []
        for number, step in enumerate(self.steps, len(self.inputs)):
            operands = ", ".join(f"v{o}" if isinstance(o, int) else repr(o) for o in step.operands)
            lines.append(f"v{number} = {step.function}({operands})")
        return f"[{'; '.join(lines)} -> {', '.join(f'v{o}' for o in self.outputs)}]"


class Writing:
    """A loop in the making: operands are registers, or literals, and each step gives a register.

    Parameters
    ----------
    *inputs : (dtype, access)
        They are registers 0, 1, …

    Examples
    --------
    >>> write = Writing(("float32", "full"))
    >>> below = write("subtract", 0, write("max", 0))
    >>> write.loop(below)
    [v1 = max(v0); v2 = subtract(v0, v1) -> v2]
    """

    def __init__(self, *inputs: tuple[str, str]):
        self._inputs = inputs
        self._dtypes = [dtype for dtype, _ in inputs]
        self._steps: list[Step] = []

    def __call__(self, function: str, *operands: int | Literal, dtype: str | None = None) -> int:
        """Write a step; its dtype follows from its operands but for ``convert`` and ``column``."""
        values = operands[1:] if function == "where" else operands
        found = next((self._dtypes[o] for o in values if isinstance(o, int)), "int32")
        kind = dtype or ("bool" if function in BOOLEAN else found)
        self._steps.append(Step(function, operands, kind))
        self._dtypes.append(kind)
        return len(self._dtypes) - 1

    def loop(self, *outputs: int) -> Loop:
        """The loop that stores these registers."""
        return Loop(self._inputs, tuple(self._steps), outputs)


def supports(function: str, dtype: str) -> bool:
    """Whether a loop can apply a primitive to operands of this dtype; with numpy's bits, if numpy computes exactly."""
    if dtype not in DTYPES:
        return False
    if dtype.startswith("float"):
        return function in scalar_ir.FLOATING or function in elementary.FUNCTIONS
    if dtype == "bool":
        return function in scalar_ir.TRUTH
    return function in scalar_ir.INTEGRAL or function in elementary.INTEGRAL


def converts(source: str, target: str) -> bool:
    """Whether a loop can convert between these dtypes."""
    return source in DTYPES and target in DTYPES
