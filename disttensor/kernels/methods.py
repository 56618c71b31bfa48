"""Machine code as methods of arrays: for what takes so little that converting arguments for C would take longer.

A method is called with one array, by Python itself, and gets that and the array it is bound to as objects. It is text
for `machine.load` of the form::

    define ptr @name(ptr %self, ptr %array) nounwind {
      %words = call ptr @data(ptr %self)
      %thread = call ptr @PyEval_SaveThread()      ; others may run Python meanwhile
      ...
      call void @PyEval_RestoreThread(ptr %thread)
      %result = call ptr @PyLong_FromLong(i64 %status)
      ret ptr %result
    }
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from typing import Any

import numpy as np

_ONE_ARGUMENT = 0x8  # METH_O


class _Definition(ctypes.Structure):  # PyMethodDef
    _fields_ = (("name", ctypes.c_char_p), ("function", ctypes.c_void_p), ("flags", ctypes.c_int),
                ("documentation", ctypes.c_char_p))  # fmt: skip


def source() -> str:
    """LLVM IR of ``ptr @data(array)``, where the elements of an array of numpy are, and what Python has for methods.

    The address is the first word behind what all objects begin with, as macros of numpy's have it that are compiled
    into whatever uses its interface for C.
    """
    return _SOURCE


def bind(address: int, self: np.ndarray) -> Callable[[np.ndarray], int]:
    """The method at an address, of an array, which it keeps alive."""
    method: Callable[[np.ndarray], int] = _make()(ctypes.byref(_definition(address)), self, None)
    return method


@functools.cache
def _make() -> Callable[..., Any]:
    make = ctypes.pythonapi.PyCFunction_NewEx
    make.argtypes, make.restype = [ctypes.c_void_p, ctypes.py_object, ctypes.c_void_p], ctypes.py_object
    return make


@functools.cache
def _definition(address: int) -> _Definition:
    return _Definition(b"method", address, _ONE_ARGUMENT, None)


_SOURCE = f"""
declare ptr @PyEval_SaveThread()
declare void @PyEval_RestoreThread(ptr)
declare ptr @PyLong_FromLong(i64)

define internal ptr @data(ptr %array) nounwind {{
  %at = getelementptr i8, ptr %array, i64 {object.__basicsize__}
  %data = load ptr, ptr %at
  ret ptr %data
}}
"""
