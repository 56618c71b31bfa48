"""`methods`: machine code that Python calls with arrays."""

from __future__ import annotations

import gc
import threading

import numpy as np
import pytest

from disttensor.kernels import machine, methods

ADD = """
define ptr @add(ptr %self, ptr %array) nounwind {
  %words = call ptr @data(ptr %self)
  %data = call ptr @data(ptr %array)
  %thread = call ptr @PyEval_SaveThread()
  %a = load i64, ptr %words
  %b = load i64, ptr %data
  %sum = add i64 %a, %b
  store i64 %sum, ptr %data
  call void @PyEval_RestoreThread(ptr %thread)
  %result = call ptr @PyLong_FromLong(i64 %sum)
  ret ptr %result
}
"""


def add(word: int):
    address = machine.load(methods.source() + ADD)["add"]
    return methods.bind(address, np.array([word]))


@pytest.mark.parametrize("start", [0, 3])
def test_a_method_works_on_the_elements_of_arrays(start):
    array = np.arange(10, 14)
    assert add(-100)(array[start:]) == start - 90
    assert array.tolist() == [start - 90 if i == start else 10 + i for i in range(4)]


def test_a_method_keeps_what_it_is_bound_to():
    bound = [add(i) for i in range(100)]
    gc.collect()
    assert [method(np.zeros(1, np.int64)) for method in bound] == list(range(100))


def test_threads_call_methods_at_once():
    found: list[list[int]] = []

    def work(method):
        array = np.zeros(1, np.int64)
        found.append([method(array) for _ in range(2000)])

    threads = [threading.Thread(target=work, args=(add(1),)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [list(range(1, 2001))] * 4
