"""What holds for every operator of the registry, whichever family it comes from."""

from __future__ import annotations

import functools
import inspect
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest

from disttensor import dtypes, ops
from disttensor.autodiff import GradientTape
from disttensor.context import Spec
from disttensor.graph.function import function
from disttensor.ops.registry import HALF, OPERATORS, Example, Operator, apply
from disttensor.tensor import Tensor

LOCAL = [op for op in OPERATORS.values() if not op.communicates]
ELEMENTWISE = [op for op in LOCAL if op.program is not None]
WIDEST = {"float": "float64", "complex": "complex128", "int": "int64", "bool": "bool"}
STEP = 1e-5
# Operators whose derivative is not zero though they let no gradient through: it is their purpose, or they are put into
# graphs after differentiation.
OPAQUE = {"stop_gradient", "unpack", "sum_by_row", "pack_rows", "order_packets", "sum_of_products"}

SHAPES = {
    1: [((2, 3),), ((),), ((0, 3),)],
    2: [((2, 3), (2, 3)), ((2, 1), (3,)), ((), (4,)), ((0, 3), (1, 3))],
    3: [((2, 3), (2, 3), (2, 3)), ((2, 1), (3,), ()), ((0, 3), (3,), ())],
}

Arrays = list[np.ndarray]


def every(operators: Sequence[Operator]) -> Any:
    return pytest.mark.parametrize("op", operators, ids=[op.name for op in operators])


def cases_of(op: Operator) -> list[Example]:
    if op.program is None:
        return list(op.examples)
    if not op.examples:
        return [Example(*shapes) for shapes in SHAPES[op.arity]]
    plain = [e for e in op.examples if all(isinstance(i, tuple) for i in e.inputs)]
    return [*op.examples, *(Example(*shapes, **plain[0].attrs) for shapes in SHAPES[op.arity] if plain)]


def arrays_of(op: Operator, example: Example, dtype: str) -> Arrays:
    """The inputs of an example; what it gives by shape, or as floats, in a dtype."""
    rng = np.random.default_rng(list(op.name.encode()))
    arrays = []
    for n, given in enumerate(example.inputs):
        if isinstance(given, tuple):
            low, high = op.domain[min(n, len(op.domain) - 1)]
            arrays.append(random_array(rng, given, dtype, low, high))
        elif given.dtype.kind in "fc":
            arrays.append(given.astype(dtypes.to_numpy(dtype)))
        else:
            arrays.append(given)
    return arrays


def random_array(rng: np.random.Generator, shape: tuple[int, ...], dtype: str, low: float, high: float) -> np.ndarray:
    if dtype == "bool":
        return np.asarray(rng.random(shape) < 0.5)
    if dtypes.is_integer(dtype):
        first = max(int(np.ceil(low)), 0) if dtypes.is_unsigned(dtype) else int(np.ceil(low))
        return np.asarray(rng.integers(first, max(first, int(np.ceil(high))) + 1, shape)).astype(dtype)
    values = rng.uniform(low, high, shape)
    if dtypes.is_complex(dtype):
        values = values + 1j * rng.uniform(-0.5, 0.5, shape)
    return np.asarray(values).astype(dtypes.to_numpy(dtype))


def run(op: Operator, arrays: Arrays, attrs: dict[str, Any]) -> list[Tensor]:
    outputs = apply(op, [Tensor.wrap(a) for a in arrays], attrs)
    return list(outputs) if isinstance(outputs, tuple) else [outputs]


def results(op: Operator, arrays: Arrays, attrs: dict[str, Any]) -> Arrays:
    return [t.array for t in run(op, arrays, attrs)]


def runs_of(op: Operator, *, every_dtype: bool = False) -> Iterator[tuple[Example, Arrays]]:
    """Every example with inputs of one dtype of each kind, or of every dtype."""
    chosen = [d for d in dtypes.ALL if dtypes.kind(d) in op.dtypes and (every_dtype or d in WIDEST.values())]
    for example, dtype in itertools.product(cases_of(op), chosen):
        yield example, arrays_of(op, example, dtype)


def assert_same_bits(actual: Arrays, expected: Arrays, message: Any) -> None:
    for a, b in zip(actual, expected, strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape), message
        assert np.ascontiguousarray(a).tobytes() == np.ascontiguousarray(b).tobytes(), f"{message}: {a} != {b}"


def is_inexact(array: np.ndarray) -> bool:
    return dtypes.is_inexact(dtypes.standardize_dtype(array.dtype))


def inner(a: Arrays, b: Arrays) -> float:
    """The real inner product Re Σ ā·b, for which the gradient of complex numbers is defined."""
    return float(sum(np.sum(np.conj(x) * y).real for x, y in zip(a, b, strict=True)))


def test_there_are_operators() -> None:
    assert {"add", "exp", "reduce_sum", "select"} <= set(OPERATORS)


@every(LOCAL)
def test_is_documented_and_has_cases(op: Operator) -> None:
    assert op.doc.strip()
    assert cases_of(op), "declare examples, so that the tests of the registry run"
    assert set(op.dtypes) <= set(WIDEST)


@every([op for op in LOCAL if op.overwrites])
def test_results_may_take_the_place_of_the_operands_that_are_overwritten(op: Operator) -> None:
    assert op.bind_rule is not None
    for example, arrays in runs_of(op, every_dtype=True):
        expected = results(op, arrays, example.attrs)
        specs = [Spec(a.shape, dtypes.standardize_dtype(a.dtype)) for a in arrays]
        several = not isinstance(op.infer_rule(*specs, **example.attrs), Spec)
        for result, operand in op.overwrites:
            operands = [np.array(a) for a in arrays]
            outs = [np.empty_like(e) for e in expected]
            outs[result] = operands[operand]
            with np.errstate(all="ignore"):
                op.bind_rule(tuple(outs) if several else outs[0], *operands, **example.attrs)()
            assert_same_bits(outs, expected, (example, result))


@pytest.mark.parametrize("name", [n for n in dir(ops) if not n.startswith("_")])
def test_public_functions_are_documented(name: str) -> None:
    value = getattr(ops, name)
    if callable(value) or inspect.ismodule(value):
        assert (value.__doc__ or "").strip()


# Gradients


def differentiate(op: Operator, example: Example, arrays: Arrays) -> tuple[Callable[..., list[Tensor]], Arrays]:
    """The gradients as a function of the differentiable inputs and the gradients of the outputs, and such arguments."""
    rng = np.random.default_rng(1)
    places = [n for n, a in enumerate(arrays) if is_inexact(a)]
    outputs = results(op, arrays, example.attrs)
    weights = [rng.uniform(0.5, 1.5, o.shape) for o in outputs if is_inexact(o)]
    weights = [
        (w + 1j * rng.uniform(-1, 1, w.shape) if o.dtype.kind == "c" else w).astype(o.dtype)
        for w, o in zip(weights, filter(is_inexact, outputs), strict=True)
    ]

    def gradients(*arguments: Tensor) -> list[Tensor]:
        inputs = [Tensor.wrap(a) for a in arrays]
        for place, argument in zip(places, arguments, strict=False):
            inputs[place] = argument
        with GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(list(arguments[: len(places)]))
            found = apply(op, inputs, example.attrs)
        found = [o for o in (found if isinstance(found, tuple) else (found,)) if dtypes.is_inexact(o.dtype)]
        return tape.gradient(found, list(arguments[: len(places)]), list(arguments[len(places) :]), "zero")

    return gradients, [arrays[n] for n in places] + weights


def loss(op: Operator, example: Example, arrays: Arrays, weights: Arrays) -> float:
    return inner(weights, [o for o in results(op, arrays, example.attrs) if is_inexact(o)])


def difference(f: Callable[[Arrays], float], arguments: Arrays, n: int, direction: np.ndarray) -> float:
    """The central difference of f along a direction of its n-th argument."""
    ahead, back = list(arguments), list(arguments)
    ahead[n], back[n] = arguments[n] + STEP * direction, arguments[n] - STEP * direction
    return (f(ahead) - f(back)) / (2 * STEP)


def random_like(array: np.ndarray, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    values = rng.uniform(-1, 1, array.shape)
    if array.dtype.kind == "c":
        values = values + 1j * rng.uniform(-1, 1, array.shape)
    return np.asarray(values).astype(array.dtype)


def differentiable_runs(op: Operator) -> Iterator[tuple[Example, Arrays]]:
    for example, arrays in runs_of(op):
        if any(is_inexact(a) for a in arrays) and any(is_inexact(o) for o in results(op, arrays, example.attrs)):
            yield example, arrays


@every(LOCAL)
def test_gradient_is_the_limit_of_differences(op: Operator) -> None:
    if op.name in OPAQUE:
        return
    for example, arrays in differentiable_runs(op):
        gradients, arguments = differentiate(op, example, arrays)
        places = [n for n, a in enumerate(arrays) if is_inexact(a)]
        weights = arguments[len(places) :]
        found = [g.array for g in gradients(*map(Tensor.wrap, arguments))]
        for gradient, place in zip(found, places, strict=True):
            direction = random_like(arrays[place], place)
            expected = difference(
                lambda moved: loss(op, example, moved, weights), arrays, place, direction  # noqa: B023
            )  # fmt: skip
            actual = inner([gradient], [direction])
            assert gradient.dtype == arrays[place].dtype
            assert actual == pytest.approx(expected, rel=1e-6, abs=1e-7), f"input {place} of {example}"


@every([op for op in LOCAL if op.gradient_rule is not None])
def test_gradient_of_the_gradient_is_the_limit_of_differences(op: Operator) -> None:
    for example, arrays in differentiable_runs(op):
        gradients, arguments = differentiate(op, example, arrays)
        tensors = [Tensor.wrap(a) for a in arguments]
        with GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(tensors)
            first = gradients(*tensors)
        directions = [random_like(g.array, n) for n, g in enumerate(first)]
        second = tape.gradient(first, tensors, [Tensor.wrap(d) for d in directions], "zero")

        def projected(moved: Arrays, gradients: Any = gradients, directions: Arrays = directions) -> float:
            return inner(directions, [g.array for g in gradients(*map(Tensor.wrap, moved))])

        for n, gradient in enumerate(second):
            direction = random_like(arguments[n], 10 + n)
            expected = difference(projected, arguments, n, direction)
            actual = inner([gradient.array], [direction])
            assert actual == pytest.approx(expected, rel=1e-6, abs=1e-6), f"argument {n} of {example}"


# Values


@every(LOCAL)
def test_every_dtype_gives_the_values_of_the_widest(op: Operator) -> None:
    for example, arrays in runs_of(op, every_dtype=True):
        if any(dtypes.standardize_dtype(a.dtype) in HALF for a in arrays):
            continue
        wide = [a.astype(WIDEST[dtypes.kind(dtypes.standardize_dtype(a.dtype))]) for a in arrays]
        for actual, expected in zip(
            results(op, arrays, example.attrs), results(op, wide, example.attrs), strict=True
        ):  # fmt: skip
            assert actual.shape == expected.shape
            if is_inexact(actual):
                bound = 100 * float(np.finfo(actual.dtype).eps)
                np.testing.assert_allclose(actual, expected, rtol=bound, atol=bound, err_msg=str(example))
            else:
                np.testing.assert_array_equal(actual, expected.astype(actual.dtype), err_msg=str(example))


@every([op for op in LOCAL if "float" in op.dtypes])
@pytest.mark.parametrize("dtype", HALF)
def test_half_precision_is_float32_rounded_once(op: Operator, dtype: str) -> None:
    numpy_dtype = dtypes.to_numpy(dtype)
    for example in cases_of(op):
        arrays = arrays_of(op, example, dtype)
        wide = [a.astype(np.float32) if a.dtype == numpy_dtype else a for a in arrays]
        actual = results(op, arrays, example.attrs)
        expected = [a.astype(b.dtype) for a, b in zip(results(op, wide, example.attrs), actual, strict=True)]
        assert_same_bits(actual, expected, example)


def scattered(array: np.ndarray) -> Iterator[np.ndarray]:
    """The same numbers in other layouts of memory: with gaps, and with the axes stored in another order."""
    every_second = (*(slice(None, None, 2) for _ in array.shape), ...)
    gaps = np.empty(tuple(2 * n for n in array.shape), array.dtype)[every_second]
    gaps[...] = array
    yield gaps
    yield np.asarray(array, order="F")
    yield np.flip(np.flip(array).copy())


@every(LOCAL)
def test_memory_layout_changes_no_bit(op: Operator) -> None:
    for example, arrays in runs_of(op):
        expected = results(op, arrays, example.attrs)
        for layouts in zip(*(scattered(a) for a in arrays), strict=True):
            assert_same_bits(results(op, list(layouts), example.attrs), expected, example)


@every(LOCAL)
def test_kernel_fills_its_output_and_spares_its_inputs(op: Operator) -> None:
    for example, arrays in runs_of(op):
        expected = results(op, arrays, example.attrs)
        given = [a.copy() for a in arrays]
        outs = tuple(np.full(e.shape, 77, e.dtype) for e in expected)
        specs = op.infer_rule(*[Tensor.wrap(a).spec for a in arrays], **example.attrs)
        with np.errstate(all="ignore"):
            op.kernel(outs[0] if isinstance(specs, Spec) else outs, *given, **example.attrs)
        assert_same_bits(list(outs), expected, example)
        assert_same_bits(given, arrays, example)


@every(ELEMENTWISE)
def test_elementwise_kernel_may_write_over_an_input(op: Operator) -> None:
    for example, arrays in runs_of(op, every_dtype=True):
        (expected,) = results(op, arrays, example.attrs)
        for n, array in enumerate(arrays):
            if (array.shape, array.dtype) == (expected.shape, expected.dtype):
                given = [a.copy() for a in arrays]
                with np.errstate(all="ignore"):
                    op.kernel(given[n], *given, **example.attrs)
                assert_same_bits([given[n]], [expected], f"{example}, written over input {n}")


@every(LOCAL)
def test_traced_is_eager_to_the_bit(op: Operator) -> None:
    for example, arrays in runs_of(op):
        traced = function(
            functools.partial(lambda op, attrs, *inputs: apply(op, list(inputs), attrs), op, example.attrs)
        )
        outputs = traced(*[Tensor.wrap(a) for a in arrays])
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        assert_same_bits([t.array for t in outputs], results(op, arrays, example.attrs), example)
