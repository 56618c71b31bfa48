"""Machine code for loops over the elements of arrays, straight from a list of primitive steps.

A `Loop` (`disttensor.kernels.loop`) says what to compute. It is written out as LLVM IR on vectors of 16 elements,
compiled for this machine, kept on disk (`disttensor.kernels.machine`), and bound to arrays by
`disttensor.kernels.generated`. There is no front end in between, so a kernel costs 10 to 40 ms the first time and a
tenth of one when it is loaded again. Arithmetic is that of IEEE 754, rounded after every instruction: nothing is
contracted or reordered, so a loop gives the bits that numpy gives one instruction after the other.

A row is passed over as often as its reductions need: the softmax, for one, finds the largest element in the first pass,
adds up exponentials in the second and divides in the third. What a later pass needs again is computed again if that is
cheap, or else kept in a row of scratch memory.
"""

from __future__ import annotations

import functools

import numpy as np

from disttensor.kernels import elementary, indexing_ir
from disttensor.kernels.ir import NO_HINT
from disttensor.kernels.loop import COLUMN_REDUCTIONS, LANES, ROW_REDUCTIONS, Literal, Loop, Step
from disttensor.kernels.scalar_ir import TYPES, Block, Module, Value

_COMBINE = {"sum": "add", "max": "maximum", "min": "minimum"}


def _identity(function: str, dtype: str) -> float | int:
    """What changes nothing in a reduction."""
    if function == "sum":
        return 0
    if dtype == "bool":
        return function == "min"
    if dtype.startswith("float"):
        return -np.inf if function == "max" else np.inf
    limits = np.iinfo(dtype)
    return int(limits.min if function == "max" else limits.max)


class _Writer:
    """Writes the function of a loop."""

    def __init__(self, loop: Loop, keep: bool):
        self.loop = loop
        self.module = Module()
        self.lines: list[str] = []
        self.reduces = any(step.function in ROW_REDUCTIONS for step in loop.steps)
        wide = any(dtype.endswith("64") for dtype in loop.dtypes)
        self.width = 8 if wide and not self.reduces else LANES
        self.scalars: dict[int, Value] = {}
        self.segments = 0
        self.first_step = len(loop.inputs)
        last = max(loop.passes, default=0)
        self.passes = last + 1
        self.kept = self._to_keep() if keep else set()

    # What is computed where

    def step(self, register: int) -> Step | None:
        """The step that makes a register; None for an input."""
        return self.loop.steps[register - self.first_step] if register >= self.first_step else None

    def wanted(self, number: int) -> list[int]:
        """The full registers that a pass must compute: what it reduces, what it stores."""
        loop = self.loop
        found = [o for o in loop.outputs if loop.levels[o] == "full" and loop.passes[o] == number]
        for step in loop.steps:
            if step.function in ROW_REDUCTIONS | COLUMN_REDUCTIONS:
                (operand,) = step.operands
                if loop.passes[operand] == number:
                    found.append(operand)
        return found

    def _to_keep(self) -> set[int]:
        """Registers that are made in one pass and used in a later one, and not cheap."""
        loop, kept = self.loop, set()
        for number in range(1, self.passes):
            stack = self.wanted(number)
            while stack:
                step = self.step(stack.pop())
                for o in step.operands if step is not None else ():
                    if not isinstance(o, int) or loop.levels[o] != "full" or o < self.first_step:
                        continue
                    if loop.passes[o] < number and not loop.is_cheap(o):
                        kept.add(o)
                    else:
                        stack.append(o)
        return kept

    # Writing

    def block(self, width: int = 1) -> Block:
        """A new stretch of instructions."""
        self.segments += 1
        return Block(self.module, width, elementary.FUNCTIONS, f"t{self.segments}.")

    def close(self, block: Block) -> None:
        """Put a stretch of instructions where we are."""
        self.lines += block.lines
        block.lines = []

    def write(self, *lines: str) -> None:
        """Write lines."""
        self.lines += lines

    def source(self) -> str:
        loop = self.loop
        self.write("define void @loop(ptr %arguments, i64 %start, i64 %stop) nounwind {", "entry:")
        count = len(loop.inputs) + len(loop.outputs)
        for i in range(count):
            self.write(f"  %a{i} = getelementptr i64, ptr %arguments, i64 {i}", f"  %p{i} = load ptr, ptr %a{i}")
        for i, name in enumerate(("columns", "rows", "total", "height", "slab"), count):
            self.write(f"  %a{i} = getelementptr i64, ptr %arguments, i64 {i}", f"  %{name} = load i64, ptr %a{i}")
        self.write("  %place = alloca i64")
        for i, step in enumerate(loop.steps):
            if step.function in ROW_REDUCTIONS:
                kind = f"<{self.width} x {_memory(step.dtype)}>"
                self.write(f"  %sum{i} = alloca {kind}, align 64")
            if step.function == "sum_chosen":
                self.write(f"  %chosen{i} = alloca {TYPES[step.dtype]}, i64 %columns, align 64")
                self.write(f"  %used{i} = alloca i64", f"  store i64 1, ptr %used{i}")
        for register in sorted(self.kept):
            kind = _memory(loop.dtypes[register])
            self.write(f"  %kept{register} = alloca {kind}, i64 %columns, align 64")
        block = self.block()
        for i, (dtype, access) in enumerate(loop.inputs):
            if access == "scalar":
                self.scalars[i] = self._load(block, f"%p{i}", dtype, "0", None)
        self._narrow_steps(block, "scalar", 0)
        self.close(block)
        if loop.is_flat:
            self.write("  %n = sub i64 %stop, %start")
            self._pass(0, "%start", "entry.rows")
            self.write("  ret void")
        else:
            self._rows()
        self.write("}")
        return "\n".join([*sorted(self.module.declarations), *self.module.functions.values(), *self.lines, ""])

    def _rows(self) -> None:
        """The loop over rows; with reductions of columns, over blocks of rows around it."""
        loop = self.loop
        reduces = loop.reduces_columns
        first, last = ("%first", "%last") if reduces else ("%start", "%stop")
        self.write("  %some = icmp slt i64 %start, %stop", "  br i1 %some, label %begin, label %end", "begin:")
        if reduces:
            self.write(
                "  br label %block", "block:",
                "  %b = phi i64 [%start, %begin], [%b.next, %block.end]",
                "  %first = mul nsw i64 %b, %height", "  %beyond = add nsw i64 %first, %height",
                "  %within = icmp slt i64 %beyond, %rows", "  %last = select i1 %within, i64 %beyond, i64 %rows",
                "  %offset = mul nsw i64 %b, %columns",
            )  # fmt: skip
            self.module.declarations.add("declare void @llvm.memset.p0.i64(ptr, i8, i64, i1)")
            for i, output in enumerate(loop.outputs, len(loop.inputs)):
                if loop.levels[output] == "row":
                    kind = _memory(loop.dtypes[output])
                    self.write(
                        f"  %row{i} = getelementptr {kind}, ptr %p{i}, i64 %offset",
                        f"  %bytes{i} = mul i64 %columns, {size_of(loop.dtypes[output])}",
                        f"  call void @llvm.memset.p0.i64(ptr %row{i}, i8 0, i64 %bytes{i}, i1 false)",
                    )
        before = "block" if reduces else "begin"
        self.write(
            "  br label %row", "row:", f"  %r = phi i64 [{first}, %{before}], [%r.next, %row.end]",
            "  %base = mul nsw i64 %r, %columns", "  %left = sub i64 %total, %base",
            "  %short = icmp slt i64 %left, %columns", "  %n = select i1 %short, i64 %left, i64 %columns",
        )  # fmt: skip
        if any(access == "slab" for _, access in loop.inputs):
            self.write("  %slab.number = udiv i64 %r, %slab", "  %slab.base = mul nsw i64 %slab.number, %columns")
        if reduces:
            self.write("  %begins = icmp eq i64 %r, %first")
        self._sum_chosen_rows()
        block = self.block()
        for i, (dtype, access) in enumerate(loop.inputs):
            if access == "column":
                self.scalars[i] = self._load(block, f"%p{i}", dtype, "%r", None)
        for number in range(self.passes):
            self._narrow_steps(block, "column", number)
            self.close(block)
            self._pass(number, "%base", f"pass{number}")
            block = self.block()
            self._finish_reductions(block, number)
        self._narrow_steps(block, "column", self.passes)
        for i, output in enumerate(loop.outputs, len(loop.inputs)):
            if loop.levels[output] in ("column", "scalar"):
                self._store(block, f"%p{i}", self.scalars[output], "%r", None)
        self.close(block)
        self.write("  br label %row.end", "row.end:", "  %r.next = add nsw i64 %r, 1")
        self.write(f"  %again = icmp slt i64 %r.next, {last}")
        self.write(f"  br i1 %again, label %row, label %{'block.end' if reduces else 'end'}")
        if reduces:
            self.write("block.end:", "  %b.next = add nsw i64 %b, 1", "  %more = icmp slt i64 %b.next, %stop")
            self.write("  br i1 %more, label %block, label %end")
        self.write("end:", "  ret void")

    def _sum_chosen_rows(self) -> None:
        """Add up the rows that this one has chosen, into scratch memory that the passes read."""
        for i, step in enumerate(self.loop.steps):
            if step.function == "sum_chosen":
                function = indexing_ir.sum_chosen(TYPES[step.dtype], LANES)
                self.module.functions[function.name] = function.text().replace(f", !llvm.loop {NO_HINT}", "")
                self.module.declarations |= function.declarations
                operands = ", ".join(f"ptr %p{o}" for o in step.operands)
                self.write(f"  call void @{function.name}(ptr %chosen{i}, ptr %used{i}, {operands}, i64 %r, i64 %n)")

    def _narrow_steps(self, block: Block, level: str, number: int) -> None:
        """The steps on one number for each row, or one for all, that are known before a pass."""
        for register, step in enumerate(self.loop.steps, self.first_step):
            if self.loop.levels[register] != level or step.function in ROW_REDUCTIONS or register in self.scalars:
                continue
            if level == "scalar" or self.loop.passes[register] == number:
                self.scalars[register] = self._apply(block, step, self.scalars)

    def _apply(self, block: Block, step: Step, values: dict[int, Value]) -> Value:
        def operand(o: int | Literal, dtype: str) -> Value:
            return values[o] if isinstance(o, int) else block.constant(o.value, dtype)

        if step.function == "where":
            condition, x, y = step.operands
            return block.where(operand(condition, "bool"), operand(x, step.dtype), operand(y, step.dtype))
        source = next(self.loop.dtypes[o] for o in step.operands if isinstance(o, int))
        operands = [operand(o, source) for o in step.operands]
        if step.function == "convert":
            return block.convert(operands[0], step.dtype)
        return block.apply(step.function, *operands)

    def _pass(self, number: int, base: str, name: str) -> None:
        """One pass over the elements %n of a row: whole vectors, then the rest with a mask."""
        wanted = self.wanted(number)
        if not wanted:
            return
        width = self.width
        for i, step in enumerate(self.loop.steps):
            if step.function in ROW_REDUCTIONS and self.loop.passes[step.operands[0]] == number:
                block = self.block(width)
                start = block.constant(_identity(step.function, step.dtype), step.dtype)
                self._keep_vector(block, f"%sum{i}", start)
                self.close(block)
        cleared = -width
        self.write(
            f"  %{name}.whole = and i64 %n, {cleared}", f"  %{name}.any = icmp sgt i64 %{name}.whole, 0",
            f"  br i1 %{name}.any, label %{name}.ready, label %{name}.rest", f"{name}.ready:",
        )  # fmt: skip
        # What does not change along the row.
        fixed = self.block(width)
        self.write(f"  br label %{name}.each", f"{name}.each:")
        head = len(self.lines) - 2
        self.write(f"  %{name}.c = phi i64 [0, %{name}.ready], [%{name}.next, %{name}.each]")
        block = self.block(width)
        self._body(number, block, fixed, base, f"%{name}.c", None)
        self.close(block)
        self.lines[head:head] = fixed.lines
        self.write(
            f"  %{name}.next = add nsw i64 %{name}.c, {width}",
            f"  %{name}.more = icmp slt i64 %{name}.next, %{name}.whole",
            f"  br i1 %{name}.more, label %{name}.each, label %{name}.rest", f"{name}.rest:",
            f"  %{name}.left = sub i64 %n, %{name}.whole", f"  %{name}.ragged = icmp sgt i64 %{name}.left, 0",
            f"  br i1 %{name}.ragged, label %{name}.last, label %{name}.end", f"{name}.last:",
        )  # fmt: skip
        block = self.block(width)
        left = block.splat(Value(block, f"%{name}.left", "int64"))
        mask = block.convert(left, "int32").__gt__(self._iota(block))
        self._body(number, block, block, base, f"%{name}.whole", mask)
        self.close(block)
        self.write(f"  br label %{name}.end", f"{name}.end:")

    def _iota(self, block: Block) -> Value:
        places = ", ".join(f"i32 {i}" for i in range(block.width))
        return Value(block, f"<{places}>", "int32")

    def _body(self, number: int, block: Block, fixed: Block, base: str, column: str, mask: Value | None) -> None:
        """The instructions of a pass for one vector."""
        loop = self.loop
        values: dict[int, Value] = {}
        index = block.emit(f"add nsw i64 {base}, {column}", "int64").name

        def value(register: int) -> Value:
            if register not in values:
                values[register] = compute(register)
            return values[register]

        def compute(register: int) -> Value:
            dtype = loop.dtypes[register]
            if loop.levels[register] in ("scalar", "column"):
                return fixed.splat(self.scalars[register])
            step = self.step(register)
            if step is None:
                access, place = loop.inputs[register][1], column
                if access == "full":
                    place = index
                elif access == "slab":
                    place = block.emit(f"add nsw i64 %slab.base, {column}", "int64").name
                return self._load(block, f"%p{register}", dtype, place, mask)
            if register in self.kept and loop.passes[register] < number:
                return self._load(block, f"%kept{register}", dtype, column, mask)
            if step.function == "column":
                at = block.splat(block.convert(Value(block, column, "int64"), "int64"))
                return block.convert(at, "int32") + self._iota(block)
            if step.function == "spread":
                return value(step.operands[0])
            if step.function == "sum_chosen":
                return self._load(block, f"%chosen{register - self.first_step}", dtype, column, mask)
            return self._apply(block, step, {o: value(o) for o in step.operands if isinstance(o, int)})

        for register in self.wanted(number):
            value(register)
        for register in sorted(self.kept):
            if loop.passes[register] == number:
                self._store(block, f"%kept{register}", value(register), column, mask)
        for i, step in enumerate(loop.steps):
            if step.function not in ROW_REDUCTIONS or loop.passes[step.operands[0]] != number:
                continue
            element = value(step.operands[0])
            if mask is not None:
                element = block.where(mask, element, block.constant(_identity(step.function, step.dtype), step.dtype))
            before = self._kept_vector(block, f"%sum{i}", step.dtype)
            self._keep_vector(block, f"%sum{i}", block.apply(_combining(step), before, element))
        for i, output in enumerate(loop.outputs, len(loop.inputs)):
            made_by = self.step(output)
            if made_by is not None and made_by.function in COLUMN_REDUCTIONS:
                if loop.passes[output] == number:
                    element = value(made_by.operands[0])
                    before = self._load(block, f"%row{i}", made_by.dtype, column, mask)
                    so_far = block.apply(_combining(made_by), before, element)
                    if made_by.function != "sum_rows":  # sums begin with 0
                        so_far = block.where(fixed.splat(Value(fixed, "%begins", "bool")), element, so_far)
                    self._store(block, f"%row{i}", so_far, column, mask)
            elif loop.levels[output] == "full" and loop.passes[output] == number:
                self._store(block, f"%p{i}", value(output), index, mask)

    def _finish_reductions(self, block: Block, number: int) -> None:
        """Each vector of partial results to one number, half by half."""
        for i, step in enumerate(self.loop.steps):
            if step.function not in ROW_REDUCTIONS or self.loop.passes[step.operands[0]] != number:
                continue
            kind = TYPES[step.dtype]
            width = self.width
            value = self._kept_vector(self._sized(block, width), f"%sum{i}", step.dtype)
            while width > 1:
                half = width // 2
                parts = []
                for start in (0, half):
                    places = ", ".join(f"i32 {start + j}" for j in range(half))
                    parts.append(
                        value.block.emit(
                            f"shufflevector <{width} x {kind}> {value.name}, <{width} x {kind}> poison, "
                            f"<{half} x i32> <{places}>",
                            step.dtype,
                        )
                    )
                narrow = self._sized(block, half)
                if half == 1:
                    parts = [
                        narrow.emit(f"extractelement <1 x {kind}> {part.name}, i64 0", step.dtype) for part in parts
                    ]
                value = narrow.apply(_combining(step), *(Value(narrow, p.name, p.dtype) for p in parts))
                width = half
            self.scalars[self.first_step + i] = Value(block, value.name, step.dtype)

    def _sized(self, block: Block, width: int) -> Block:
        """A block of another width that writes to the same place."""
        self.segments += 1
        other = Block(self.module, width, elementary.FUNCTIONS, f"t{self.segments}.")
        other.lines = block.lines
        return other

    # Memory; booleans are bytes there

    def _load(self, block: Block, pointer: str, dtype: str, index: str, mask: Value | None) -> Value:
        kind = _memory(dtype)
        vector = kind if block.width == 1 else f"<{block.width} x {kind}>"
        address = block.emit(f"getelementptr {kind}, ptr {pointer}, i64 {index}", dtype).name
        if mask is None:
            value = block.emit(f"load {vector}, ptr {address}, align {size_of(dtype)}", dtype)
        else:
            name = f"@llvm.masked.load.v{block.width}{_suffix(dtype)}.p0"
            lanes = f"<{block.width} x i1>"
            self.module.declarations.add(f"declare {vector} {name}(ptr, i32, {lanes}, {vector})")
            value = block.emit(
                f"call {vector} {name}(ptr {address}, i32 {size_of(dtype)}, {lanes} {mask.name}, "
                f"{vector} zeroinitializer)",
                dtype,
            )
        if dtype != "bool":
            return value
        zero = "0" if block.width == 1 else "zeroinitializer"
        return block.emit(f"icmp ne {vector} {value.name}, {zero}", dtype)

    def _store(self, block: Block, pointer: str, value: Value, index: str, mask: Value | None) -> None:
        kind, name = _memory(value.dtype), value.name
        vector = kind if block.width == 1 else f"<{block.width} x {kind}>"
        if value.dtype == "bool":
            name = block.emit(f"zext {block.type('bool')} {name} to {vector}", "uint8").name
        address = block.emit(f"getelementptr {kind}, ptr {pointer}, i64 {index}", value.dtype).name
        if mask is None:
            block.lines.append(f"  store {vector} {name}, ptr {address}, align {size_of(value.dtype)}")
            return
        function = f"@llvm.masked.store.v{block.width}{_suffix(value.dtype)}.p0"
        lanes = f"<{block.width} x i1>"
        self.module.declarations.add(f"declare void {function}({vector}, ptr, i32, {lanes})")
        block.lines.append(
            f"  call void {function}({vector} {name}, ptr {address}, i32 {size_of(value.dtype)}, {lanes} {mask.name})"
        )

    def _kept_vector(self, block: Block, pointer: str, dtype: str) -> Value:
        vector = f"<{block.width} x {_memory(dtype)}>"
        value = block.emit(f"load {vector}, ptr {pointer}, align 64", dtype)
        return block.emit(f"icmp ne {vector} {value.name}, zeroinitializer", dtype) if dtype == "bool" else value

    def _keep_vector(self, block: Block, pointer: str, value: Value) -> None:
        vector, name = f"<{block.width} x {_memory(value.dtype)}>", value.name
        if value.dtype == "bool":
            name = block.emit(f"zext {block.type('bool')} {name} to {vector}", "uint8").name
        block.lines.append(f"  store {vector} {name}, ptr {pointer}, align 64")


def _combining(step: Step) -> str:
    return _COMBINE[step.function.removesuffix("_rows")]


def _memory(dtype: str) -> str:
    return "i8" if dtype == "bool" else TYPES[dtype]


def size_of(dtype: str) -> int:
    return 1 if dtype == "bool" else np.dtype(dtype).itemsize


def _suffix(dtype: str) -> str:
    return {"float": "f32", "double": "f64"}.get(_memory(dtype), _memory(dtype))


@functools.lru_cache(maxsize=4096)
def source(loop: Loop, keep: bool = True) -> str:
    """The LLVM IR of a loop, a native kernel named ``loop``, which works from row (if flat: element) start to stop.

    With reductions of columns, from block of rows to block of rows. Its arguments are the inputs, the outputs, the
    number of columns, of rows, and of elements (the last row may be shorter), and how many rows make a block, and how
    many a slab.

    Parameters
    ----------
    loop : Loop
    keep : bool, default True
        Whether a row of values that are costly to compute is kept for a later pass, in scratch memory on the stack.
    """
    return _Writer(loop, keep).source()
