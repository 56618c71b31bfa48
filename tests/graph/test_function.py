"""`function`: signatures, cache, constants, nesting, tapes, warnings and errors."""

from __future__ import annotations

import gc
import warnings
import weakref

import numpy as np
import pytest

import disttensor as dt
from disttensor import ops
from disttensor.errors import ArgumentError, RetracingWarning, TracingError
from disttensor.graph.function import CACHE_SIZE, function


def test_one_plan_for_one_signature():
    traces = []

    @function
    def double(x):
        traces.append(x.shape)
        return 2 * x

    for value in (1, 2, 3):
        assert double(np.float32([value])).tolist() == [2 * value]
    double(np.float32([[1]]))
    double(np.int32([1]))
    assert traces == [(1,), (1, 1), (1,)]
    assert double.trace_count == 3


def test_python_values_are_constants():
    power = function(lambda x, n: x**n)
    assert power(np.float32(3), 2) == 9
    assert power(np.float32(3), 3) == 27
    assert power.trace_count == 2


def test_one_and_true_and_one_point_zero_are_different():
    kind = function(lambda flag: type(flag).__name__)
    assert [kind(v) for v in (1, True, 1.0)] == ["int", "bool", "float"]


def test_keyword_and_nested_arguments():
    combine = function(lambda pair, *, scale: pair["a"] * scale + pair["b"][0])
    assert combine({"a": np.float32(2), "b": [np.float32(1)]}, scale=3) == 7


def test_trainable_is_part_of_the_signature():
    v = dt.Variable(2.0)

    @function
    def gradient():
        with dt.GradientTape() as tape:
            y = v * v
        return tape.gradient(y, v)

    assert gradient() == 4
    v.trainable = False
    assert gradient() is None
    v.trainable = True
    assert gradient() == 4
    assert gradient.trace_count == 2


def test_the_cache_is_bounded():
    same = function(lambda x, n: x)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RetracingWarning)
        for n in range(CACHE_SIZE + 5):
            same(np.float32(0), n)
    assert same.trace_count == CACHE_SIZE


def test_retracing_too_often_warns_once():
    same = function(lambda x, n: x, name="busy")
    for n in range(6):
        same(np.float32(0), n)
    with pytest.warns(RetracingWarning, match="'busy' was traced in 7"):
        same(np.float32(0), 6)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for n in range(20, 30):
            same(np.float32(0), n)


def test_a_function_within_a_function_becomes_part_of_it():
    inner = function(ops.erfinv)
    outer = function(lambda x: inner(x) + 1)
    assert [n.name for n in outer.graph(np.float32(0))] == ["input", "erfinv", "fused"]
    assert inner.trace_count == 0


def test_a_tape_outside_sees_the_operators():
    square = function(lambda x: x * x)
    x = dt.Variable(3.0)
    with dt.GradientTape() as tape:
        y = square(x)
    assert tape.gradient(y, x) == 6


def test_methods_are_traced_for_each_object():
    class Scale:
        def __init__(self, factor):
            self.factor = factor

        @function
        def __call__(self, x):
            return x * self.factor

    assert Scale(2)(np.float32(5)) == 10
    assert Scale(3)(np.float32(5)) == 15


def test_a_branch_on_a_value_names_the_line_and_the_remedy():
    @function
    def absolute(x):
        if x > 0:  # the branch
            return x
        return -x

    with pytest.raises(TracingError, match=r"test_function\.py:\d+ in absolute\(\).*ops\.where"):
        absolute(np.float32(1))


def test_numbers_of_a_traced_value_are_refused():
    with pytest.raises(TracingError, match="run_eagerly"):
        function(lambda x: x.numpy())(np.float32(1))


def test_classes_cannot_be_decorated():
    with pytest.raises(ArgumentError, match="not classes"):
        function(int)


def test_variables_made_while_tracing_keep_their_first_value():
    made = []

    @function
    def count():
        if not made:
            made.append(dt.Variable(10.0))
        made[0].assign_add(1.0)
        return made[0].value

    assert [float(count()) for _ in range(3)] == [11, 12, 13]


def test_what_a_trace_leaves_over_needs_no_garbage_collection():
    variable, read = dt.Variable([1.0, 2.0]), []

    @function
    def scale(x):
        value = variable.value
        read.append(weakref.ref(value))
        return x * value

    gc.disable()
    try:
        scale(np.float32([3, 4]))
        assert read[0]() is None
    finally:
        gc.enable()


def test_gradient_of_a_variable_that_was_assigned_an_argument():
    v = dt.Variable(np.zeros(3, "float32"))

    def slope(x):
        v.assign(x)
        with dt.GradientTape() as tape:
            loss = ops.sum(v * x)
        return tape.gradient(loss, v)

    x = dt.constant(np.array([1, 2, 3], "float32"))
    assert np.array_equal(slope(x), x)  # not also that of the argument
    assert np.array_equal(dt.function(slope)(x), x)
