"""Object files are linked as LLVM links them, or left to LLVM."""

from __future__ import annotations

import ctypes
import platform
import sys

import pytest
from llvmlite import binding

from disttensor.kernels import linking
from disttensor.kernels.llvm import Compiler, host

ELF = sys.platform == "linux" and platform.machine() == "x86_64"
pytestmark = pytest.mark.skipif(not ELF, reason="objects of other processors and systems are left to LLVM")

# Constants of several sizes, a table with an address, memory that is written, and the C library's functions.
TEXT = """
@table = private constant [4 x double] [double 1.0, double 4.0, double 9.0, double 16.0], align 64
@places = constant [2 x ptr] [ptr getelementptr ([4 x double], ptr @table, i64 0, i64 2), ptr @inner]
@count = internal global i64 40
@zeros = internal global [3000 x i64] zeroinitializer, align 32
declare double @cbrt(double)
declare ptr @memset(ptr, i32, i64)
define internal double @inner(double %x) noinline {
  %y = fmul double %x, 3.25
  ret double %y
}
define double @number(i64 %i) {
  %p = getelementptr double, ptr @table, i64 %i
  %x = load double, ptr %p
  %function = load ptr, ptr getelementptr ([2 x ptr], ptr @places, i64 0, i64 1)
  %y = call double %function(double %x)
  %place = load ptr, ptr @places
  %nine = load double, ptr %place
  %sum = fadd double %y, %nine
  %root = call double @cbrt(double %sum)
  ret double %root
}
define i64 @counted() {
  %old = load i64, ptr @count
  %new = add i64 %old, 1
  store i64 %new, ptr @count
  %p = getelementptr i64, ptr @zeros, i64 2999
  call ptr @memset(ptr %p, i32 1, i64 1)
  %z = load i64, ptr %p
  %sum = add i64 %z, %new
  ret i64 %sum
}
"""


COUNTER = ctypes.CFUNCTYPE(ctypes.c_int64)
NUMBER = ctypes.CFUNCTYPE(ctypes.c_double, ctypes.c_int64)


@pytest.fixture(scope="module")
def compiler() -> Compiler:
    return Compiler(*host())


def link(code: bytes) -> dict[str, int]:
    functions = linking.link(code)
    assert functions is not None
    return functions


def test_linked_code_does_what_llvms_linker_makes_it_do(compiler: Compiler) -> None:
    code = compiler.compile(TEXT)
    ours, address = link(code), compiler.link(code)
    assert set(ours) == {"number", "counted"}
    number, number_of_llvm = NUMBER(ours["number"]), NUMBER(address("number"))
    assert [number(i) for i in range(4)] == [number_of_llvm(i) for i in range(4)]
    assert [number(i) ** 3 for i in range(4)] == pytest.approx([3.25 * x * x + 9 for x in range(1, 5)])


def test_each_load_has_memory_of_its_own(compiler: Compiler) -> None:
    code = compiler.compile(TEXT)
    counters = [COUNTER(link(code)["counted"]) for _ in range(2)]
    assert [counter() for counter in (*counters, *counters)] == [42, 42, 43, 43]


def test_code_cannot_be_written(compiler: Compiler) -> None:
    address = link(compiler.compile(TEXT))["number"]
    accesses = []
    with open("/proc/self/maps") as maps:
        for line in maps:
            span, access, *_ = line.split()
            begin, end = (int(x, 16) for x in span.split("-"))
            accesses += [access] if begin <= address < end else []
    assert accesses == ["r-xp"]


MISSING = """declare i64 @there_is_no_such_function()
define i64 @f() {
  %x = call i64 @there_is_no_such_function()
  ret i64 %x
}"""


def test_what_takes_llvm_is_left_to_it(compiler: Compiler) -> None:
    code = compiler.compile(TEXT)
    assert linking.link(code[:18] + b"\xb7\0" + code[20:]) is None  # for another processor
    assert linking.link(compiler.compile(MISSING)) is None
    near = binding.Target.from_default_triple().create_target_machine(codemodel="small", reloc="pic")
    assert linking.link(near.emit_object(binding.parse_assembly(TEXT))) is None  # distances instead of addresses
