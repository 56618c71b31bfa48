"""Convolution against scipy and plain loops; its gradients as adjoints."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import signal

from disttensor import config, dtypes
from disttensor.errors import ShapeError
from disttensor.kernels import convolution, convolution_plan
from disttensor.kernels.native import NativeSequence
from disttensor.kernels.windows import offsets, output_sizes

# Input, kernel, strides, padding, dilation, groups.
CASES = [
    ((2, 6, 7, 3), (3, 2, 3, 4), (1, 1), ((0, 0), (0, 0)), (1, 1), 1),
    ((2, 6, 7, 3), (3, 3, 3, 4), (1, 1), ((1, 1), (1, 1)), (1, 1), 1),
    ((1, 9, 8, 2), (3, 3, 2, 5), (2, 3), ((0, 1), (1, 0)), (1, 1), 1),
    ((2, 9, 9, 2), (3, 2, 2, 3), (1, 1), ((2, 2), (1, 1)), (2, 3), 1),
    ((2, 9, 9, 2), (2, 3, 2, 3), (2, 1), ((3, 0), (0, 4)), (3, 2), 1),
    ((2, 5, 6, 4), (3, 3, 2, 6), (1, 1), ((1, 1), (1, 1)), (1, 1), 2),
    ((2, 5, 6, 3), (3, 3, 1, 6), (2, 1), ((1, 1), (1, 1)), (1, 1), 3),
    ((3, 4, 4, 5), (1, 1, 5, 2), (1, 1), ((0, 0), (0, 0)), (1, 1), 1),
    ((3, 5, 5, 2), (1, 1, 2, 2), (2, 2), ((0, 0), (0, 0)), (1, 1), 1),
    ((2, 7, 7, 1), (2, 2, 1, 1), (4, 4), ((0, 0), (0, 0)), (1, 1), 1),
    ((0, 5, 5, 2), (3, 3, 2, 4), (1, 1), ((0, 0), (0, 0)), (1, 1), 1),
    ((2, 2, 2, 2), (3, 3, 2, 4), (1, 1), ((0, 0), (0, 0)), (1, 1), 1),
    ((2, 1, 1, 2), (3, 3, 2, 4), (1, 1), ((3, 3), (3, 3)), (1, 1), 1),
    ((2, 4, 4, 0), (3, 3, 0, 4), (1, 1), ((0, 0), (0, 0)), (1, 1), 1),
    ((2, 6, 6, 2), (2, 3, 2, 3), (1, 1), ((-1, 1), (0, -2)), (1, 1), 1),
    ((2, 7, 7, 2), (3, 3, 2, 3), (4, 2), ((1, 1), (1, 1)), (2, 4), 1),
    ((2, 9, 3), (3, 3, 4), (2,), ((1, 2),), (2,), 1),
    ((2, 5, 4), (2, 2, 6), (1,), ((0, 0),), (1,), 2),
    ((2, 4, 5, 3, 2), (2, 3, 2, 2, 3), (1, 2, 1), ((0, 1), (1, 1), (0, 0)), (1, 1, 2), 1),
    ((1, 3, 4, 4, 4), (2, 2, 3, 2, 4), (2, 1, 1), ((1, 0), (0, 0), (2, 2)), (1, 2, 1), 2),
    # Filters and channels that fill vectors.
    ((1, 3, 4, 8), (3, 2, 8, 16), (1, 1), ((1, 1), (0, 1)), (1, 1), 1),
    ((1, 5, 3, 16), (3, 2, 8, 32), (2, 1), ((1, 1), (1, 1)), (1, 2), 2),
    ((3, 5, 5, 8), (1, 1, 8, 8), (2, 2), ((0, 0), (0, 0)), (1, 1), 1),
    ((1, 20, 8), (5, 8, 24), (3,), ((2, 2),), (1,), 1),
]


def _output_shape(x: tuple[int, ...], kernel: tuple[int, ...], options: dict[str, Any]) -> tuple[int, ...]:
    sizes = output_sizes(x[1:-1], kernel[:-2], options["strides"], options["padding"], options["dilation"])
    return (x[0], *sizes, kernel[-1])


def _loops(x: np.ndarray, kernel: np.ndarray, options: dict[str, Any]) -> np.ndarray:
    """Convolution written as its formula."""
    out = np.zeros(_output_shape(x.shape, kernel.shape, options))
    depth, filters = kernel.shape[-2], kernel.shape[-1] // options["groups"]
    axes = list(zip(options["strides"], options["dilation"], options["padding"], strict=True))
    for n, *window, f in np.ndindex(out.shape):
        channels = slice(f // filters * depth, (f // filters + 1) * depth)
        for element in np.ndindex(kernel.shape[:-2]):
            place = tuple(
                s * i + d * u - before for i, u, (s, d, (before, _)) in zip(window, element, axes, strict=True)
            )
            if all(0 <= p < size for p, size in zip(place, x.shape[1:-1], strict=True)):
                out[(n, *window, f)] += x[(n, *place, channels)] @ kernel[(*element, slice(None), f)]
    return out


@pytest.fixture(params=CASES, ids=lambda case: "-".join(map(str, case)).replace(" ", ""))
def case(request: pytest.FixtureRequest, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    x, kernel, strides, padding, dilation, groups = request.param
    options = {"strides": strides, "padding": padding, "dilation": dilation, "groups": groups}
    return rng.normal(size=x), rng.normal(size=kernel), options


@pytest.fixture(params=[256, 5], ids=["large units", "small units"])
def bands(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    convolution_plan.units.cache_clear()
    monkeypatch.setattr(convolution_plan, "_PLACES", request.param)
    yield
    convolution_plan.units.cache_clear()


@pytest.mark.usefixtures("bands")
def test_forward_is_the_formula(case: tuple[np.ndarray, np.ndarray, dict[str, Any]]) -> None:
    x, kernel, options = case
    expected = _loops(x, kernel, options)
    out = np.full(expected.shape, np.nan)
    convolution.convolve(out, x, kernel, **options)
    np.testing.assert_allclose(out, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.usefixtures("bands")
def test_gradients_are_adjoints(case: tuple[np.ndarray, np.ndarray, dict[str, Any]], rng: np.random.Generator) -> None:
    """<g, A e> = <Aᵀ g, e> for a unit vector e says that the gradient is exact in that entry."""
    x, kernel, options = case
    g = rng.normal(size=_output_shape(x.shape, kernel.shape, options))
    dx, dkernel = np.full(x.shape, np.nan), np.full(kernel.shape, np.nan)
    convolution.convolve_input_gradient(dx, g, kernel, **options)
    convolution.convolve_kernel_gradient(dkernel, x, g, **options)
    unit = np.zeros_like(x)
    for place in itertools.islice(np.ndindex(x.shape), 0, None, max(7, x.size // 40)):
        unit[place] = 1
        np.testing.assert_allclose(dx[place], np.sum(g * _loops(unit, kernel, options)), atol=1e-12)
        unit[place] = 0
    unit = np.zeros_like(kernel)
    for place in itertools.islice(np.ndindex(kernel.shape), 0, None, max(5, kernel.size // 40)):
        unit[place] = 1
        np.testing.assert_allclose(dkernel[place], np.sum(g * _loops(x, unit, options)), atol=1e-12)
        unit[place] = 0


def test_scipy_agrees(rng: np.random.Generator) -> None:
    x, kernel = rng.normal(size=(1, 12, 11, 1)), rng.normal(size=(4, 3, 1, 1))
    out = np.empty((1, 9, 9, 1))
    convolution.convolve(out, x, kernel, strides=(1, 1), padding=((0, 0), (0, 0)), dilation=(1, 1))
    np.testing.assert_allclose(out[0, :, :, 0], signal.correlate2d(x[0, :, :, 0], kernel[:, :, 0, 0], "valid"))


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("float16", 2e-3), ("bfloat16", 2e-2)])
def test_dtypes(dtype: str, tolerance: float, rng: np.random.Generator) -> None:
    kind = dtypes.to_numpy(dtype)
    options = {"strides": (1, 1), "padding": ((1, 1), (1, 1)), "dilation": (1, 1), "groups": 1}
    x, kernel, g = (rng.normal(size=s).astype(kind) for s in ((2, 5, 5, 3), (3, 3, 3, 4), (2, 5, 5, 4)))
    for function, arrays in (
        (convolution.convolve, (g, x, kernel)),
        (convolution.convolve_input_gradient, (x, g, kernel)),
        (convolution.convolve_kernel_gradient, (kernel, x, g)),
    ):
        out = np.empty(arrays[0].shape, kind)
        exact = np.empty(out.shape)
        function(out, *arrays[1:], **options)
        function(exact, *(a.astype(np.float64) for a in arrays[1:]), **options)
        np.testing.assert_allclose(out.astype(np.float64), exact, rtol=tolerance, atol=tolerance * np.abs(exact).max())


def test_inputs_of_another_dtype_are_converted(rng: np.random.Generator) -> None:
    options = {"strides": (1, 1), "padding": ((0, 0), (0, 0)), "dilation": (1, 1)}
    x, kernel = rng.integers(-9, 9, (2, 6, 6, 3)), rng.integers(-9, 9, (3, 3, 3, 4))
    out, expected = np.empty((2, 4, 4, 4), np.float32), np.empty((2, 4, 4, 4))
    convolution.convolve(out, x, kernel.astype(np.float16), **options)
    convolution.convolve(expected, x.astype(np.float64), kernel.astype(np.float64), **options)
    np.testing.assert_array_equal(out, expected)


def test_inputs_need_not_be_contiguous(rng: np.random.Generator) -> None:
    options = {"strides": (1, 1), "padding": ((0, 0), (0, 0)), "dilation": (1, 1)}
    x, kernel, g = rng.normal(size=(3, 6, 6, 2)), rng.normal(size=(4, 3, 3, 3)), rng.normal(size=(4, 4, 4, 2))
    views = x.transpose(3, 1, 2, 0), kernel.transpose(3, 2, 1, 0), g.transpose(3, 1, 2, 0)
    for function, places in (
        (convolution.convolve, (2, 0, 1)),
        (convolution.convolve_input_gradient, (0, 2, 1)),
        (convolution.convolve_kernel_gradient, (1, 0, 2)),
    ):
        out, expected = np.empty(views[places[0]].shape), np.empty(views[places[0]].shape)
        function(out, *(views[p] for p in places[1:]), **options)
        function(expected, *(np.ascontiguousarray(views[p]) for p in places[1:]), **options)
        np.testing.assert_array_equal(out, expected)


def test_shapes_that_do_not_fit() -> None:
    options = {"strides": (1, 1), "padding": ((0, 0), (0, 0)), "dilation": (1, 1)}
    x, kernel = np.zeros((2, 5, 5, 3)), np.zeros((3, 3, 3, 4))
    with pytest.raises(ShapeError, match=r"gives \(2, 3, 3, 4\), not \(2, 5, 5, 4\)"):
        convolution.convolve(np.zeros((2, 5, 5, 4)), x, kernel, **options)
    with pytest.raises(ShapeError, match="3 × 3 channels"):
        convolution.convolve(np.zeros((2, 3, 3, 4)), x, kernel, **options, groups=3)
    with pytest.raises(ShapeError, match="needs arrays of 4 axes"):
        convolution.convolve(np.zeros((3, 3, 4)), x[0], kernel, **options)


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]:
    """Shapes of input and kernel, and options, of any small convolution."""
    axes, groups = draw(st.integers(1, 3)), draw(st.integers(1, 3))

    def for_each_axis(numbers: st.SearchStrategy[Any]) -> tuple[Any, ...]:
        return tuple(draw(numbers) for _ in range(axes))

    channels, share = draw(st.integers(0, 9)), draw(st.integers(1, 35 if axes == 1 else 18))
    x = (draw(st.integers(0, 3)), *for_each_axis(st.integers(1, 9 if axes < 3 else 5)), channels * groups)
    kernel = (*for_each_axis(st.integers(1, 3)), channels, share * groups)
    pad = st.tuples(st.integers(-1, 3), st.integers(-1, 3))
    steps = {name: for_each_axis(st.integers(1, 3)) for name in ("strides", "dilation")}
    return x, kernel, {**steps, "padding": for_each_axis(pad), "groups": groups}


@settings(max_examples=40)
@given(convolutions(), st.sampled_from(["float32", "float64"]), st.sampled_from([3, 256]))
def test_any_convolution(
    case: tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]], dtype: str, places: int
) -> None:  # fmt: skip
    """Against the formula over integers, where every sum is exact; and the gradients as its adjoints."""
    rng = np.random.default_rng(0)
    x, kernel, options = rng.integers(-3, 4, case[0]).astype(dtype), rng.integers(-3, 4, case[1]).astype(dtype), case[2]
    out = np.full(_output_shape(x.shape, kernel.shape, options), np.nan, dtype)
    g = rng.integers(-3, 4, out.shape).astype(dtype)
    dx, dkernel = np.full_like(x, np.nan), np.full_like(kernel, np.nan)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(convolution_plan, "_PLACES", places)
        convolution_plan.units.cache_clear()
        convolution.convolve(out, x, kernel, **options)
        convolution.convolve_input_gradient(dx, g, kernel, **options)
        convolution.convolve_kernel_gradient(dkernel, x, g, **options)
        convolution_plan.units.cache_clear()
    np.testing.assert_array_equal(out, _loops(x, kernel, options))
    v, w = rng.integers(-3, 4, x.shape).astype(dtype), rng.integers(-3, 4, kernel.shape).astype(dtype)
    assert np.sum(dx * v) == np.sum(g * _loops(v, kernel, options))
    assert np.sum(dkernel * w) == np.sum(g * _loops(x, w, options))


def _three(x: np.ndarray, kernel: np.ndarray, g: np.ndarray, options: dict[str, Any]) -> list[np.ndarray]:
    outs = [np.empty(a.shape, a.dtype) for a in (g, x, kernel)]
    convolution.bind_convolve(outs[0], x, kernel, **options)()
    convolution.bind_convolve_input_gradient(outs[1], g, kernel, **options)()
    convolution.bind_convolve_kernel_gradient(outs[2], x, g, **options)()
    return outs


def test_bits_depend_neither_on_threads_nor_on_other_images(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    monkeypatch.setattr(convolution, "_GRAIN", 1)
    options = {"strides": (2, 1), "padding": ((1, 1), (0, 1)), "dilation": (1, 1), "groups": 1}
    x, kernel = (rng.normal(size=s).astype(np.float32) for s in ((11, 9, 7, 5), (3, 3, 5, 19)))
    g = rng.normal(size=_output_shape(x.shape, kernel.shape, options)).astype(np.float32)
    before = config.threads()
    try:
        config.set_threads(1)
        expected = _three(x, kernel, g, options)
        for threads in (2, 3, 7):
            config.set_threads(threads)
            for found, right in zip(_three(x, kernel, g, options), expected, strict=True):
                np.testing.assert_array_equal(found, right)
    finally:
        config.set_threads(before)
    alone = _three(x[4:6].copy(), kernel, g[4:6].copy(), options)
    np.testing.assert_array_equal(alone[0], expected[0][4:6])
    np.testing.assert_array_equal(alone[1], expected[1][4:6])


def test_plans_run_machine_code_alone(rng: np.random.Generator) -> None:
    options = {"strides": (1, 1), "padding": ((1, 1), (1, 1)), "dilation": (1, 1), "groups": 1}
    x, kernel, g = (rng.normal(size=s).astype(np.float32) for s in ((2, 5, 5, 3), (3, 3, 3, 4), (2, 5, 5, 4)))
    assert isinstance(convolution.bind_convolve(np.empty_like(g), x, kernel, **options), NativeSequence)
    assert isinstance(convolution.bind_convolve_input_gradient(np.empty_like(x), g, kernel, **options), NativeSequence)
    assert isinstance(convolution.bind_convolve_kernel_gradient(np.empty_like(kernel), x, g, **options), NativeSequence)


@pytest.mark.parametrize("features", ["-avx512f", "-avx2,-fma", "-avx", "-fma"])
def test_processors_with_less(features: str) -> None:
    """Vectors and tiles of other sizes, in a process of its own since a process compiles for one set of features."""
    script = """
import numpy as np
from disttensor.kernels import convolution
options = {"strides": (1, 2), "padding": ((1, 1), (0, 1)), "dilation": (1, 1)}
rng = np.random.default_rng(0)
for share in (1, 4, 7, 8, 13, 16, 33):
    x, k = rng.integers(-3, 4, (2, 9, 8, 3)).astype("f"), rng.integers(-3, 4, (3, 2, 3, share)).astype("f")
    patches = np.lib.stride_tricks.sliding_window_view(np.pad(x, ((0, 0), (1, 1), (0, 1), (0, 0))), (3, 2), (1, 2))
    patches = patches[:, :, ::2]
    y, dx, dk = np.empty((*patches.shape[:3], share), "f"), np.empty_like(x), np.empty_like(k)
    convolution.convolve(y, x, k, **options)
    assert (y == np.einsum("nijcuv,uvcf->nijf", patches, k)).all()
    convolution.convolve_kernel_gradient(dk, x, y, **options)
    assert (dk == np.einsum("nijcuv,nijf->uvcf", patches, y)).all()
    convolution.convolve_input_gradient(dx, y, k, **options)
    assert np.sum(dx * x) == np.sum(y * y)
"""
    environment = {**os.environ, "DISTTENSOR_CPU_FEATURES": features}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_offsets_are_those_of_numpy() -> None:
    array = np.arange(5 * 6 * 7).reshape(5, 6, 7)
    counts, view = (2, 3, 4), array[:2, 1:6:2, ::2]
    found = array[:, 1:].ravel()[0] + offsets(counts, view.strides) // array.itemsize
    np.testing.assert_array_equal(found, view.ravel())
