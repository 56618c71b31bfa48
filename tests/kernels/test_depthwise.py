"""Depthwise convolution against its formula; its gradients as adjoints."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from disttensor import dtypes
from disttensor.errors import ShapeError
from disttensor.kernels import convolution, depthwise
from disttensor.kernels.windows import output_sizes

# Images, window, strides, padding, dilation.
CASES = [
    ((2, 6, 7, 3), (3, 2), (1, 1), ((0, 0), (0, 0)), (1, 1)),
    ((2, 6, 7, 20), (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1)),
    ((1, 9, 8, 2), (3, 3), (2, 3), ((0, 1), (1, 0)), (1, 1)),
    ((2, 9, 9, 2), (3, 2), (1, 1), ((2, 2), (1, 1)), (2, 3)),
    ((2, 9, 9, 3), (2, 3), (2, 1), ((3, 0), (0, 4)), (3, 2)),
    ((2, 1, 2, 2), (3, 3), (1, 1), ((3, 3), (3, 3)), (1, 1)),
    ((0, 5, 5, 2), (3, 3), (1, 1), ((0, 0), (0, 0)), (1, 1)),
    ((2, 2, 2, 2), (3, 3), (1, 1), ((0, 0), (0, 0)), (1, 1)),
    ((2, 4, 4, 0), (3, 3), (1, 1), ((0, 0), (0, 0)), (1, 1)),
]


@pytest.fixture(params=CASES, ids=lambda case: "-".join(map(str, case)).replace(" ", ""))
def case(request: pytest.FixtureRequest, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    x, window, strides, padding, dilation = request.param
    options = {"strides": strides, "padding": padding, "dilation": dilation}
    return rng.normal(size=x), rng.normal(size=(*window, x[-1])), options


def _output(x: np.ndarray, kernel: np.ndarray, options: dict[str, Any]) -> np.ndarray:
    sizes = output_sizes(
        x.shape[1:3], kernel.shape[:2], options["strides"], options["padding"], options["dilation"]
    )  # fmt: skip
    return np.full((x.shape[0], *sizes, x.shape[3]), np.nan)


def _slices(x: np.ndarray, kernel: np.ndarray, options: dict[str, Any]) -> np.ndarray:
    """Depthwise convolution as a sum of slices of the padded images."""
    out = np.zeros_like(_output(x, kernel, options))
    padded = np.pad(x, ((0, 0), *options["padding"], (0, 0)))
    (down, across), (row_step, column_step) = options["strides"], options["dilation"]
    for u, v in np.ndindex(kernel.shape[:2]):
        rows = u * row_step + down * np.arange(out.shape[1])
        columns = v * column_step + across * np.arange(out.shape[2])
        out += padded[:, rows][:, :, columns] * kernel[u, v]
    return out


def test_forward_is_the_formula(case: tuple[np.ndarray, np.ndarray, dict[str, Any]]) -> None:
    x, kernel, options = case
    out = _output(x, kernel, options)
    depthwise.depthwise(out, x, kernel, **options)
    np.testing.assert_allclose(out, _slices(x, kernel, options), rtol=1e-12, atol=1e-12)


def test_gradients_are_adjoints(case: tuple[np.ndarray, np.ndarray, dict[str, Any]], rng: np.random.Generator) -> None:
    """<g, A e> = <Aᵀ g, e> for every unit vector e says that the gradient is exact, entry by entry."""
    x, kernel, options = case
    g = rng.normal(size=_output(x, kernel, options).shape)
    dx, dkernel = np.full(x.shape, np.nan), np.full(kernel.shape, np.nan)
    depthwise.depthwise_input_gradient(dx, g, kernel, **options)
    depthwise.depthwise_kernel_gradient(dkernel, x, g, **options)
    for gradient, unit, images, filters in (
        (dx, e := np.zeros_like(x), e, kernel), (dkernel, e := np.zeros_like(kernel), x, e)
    ):  # fmt: skip
        for place in list(np.ndindex(unit.shape))[::3]:
            unit[place] = 1
            np.testing.assert_allclose(gradient[place], np.sum(g * _slices(images, filters, options)), atol=1e-12)
            unit[place] = 0


def test_it_is_a_convolution_of_one_channel_in_each_group(rng: np.random.Generator) -> None:
    x, kernel = rng.normal(size=(2, 6, 6, 4)), rng.normal(size=(3, 3, 4))
    options: dict[str, Any] = {"strides": (2, 1), "padding": ((1, 1), (1, 1)), "dilation": (1, 1)}
    ours, expected = (_output(x, kernel, options) for _ in range(2))
    depthwise.depthwise(ours, x, kernel, **options)
    convolution.convolve(expected, x, kernel[:, :, None], groups=4, **options)
    np.testing.assert_allclose(ours, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("float16", 2e-3), ("bfloat16", 2e-2)])
def test_dtypes(dtype: str, tolerance: float, rng: np.random.Generator) -> None:
    kind = dtypes.to_numpy(dtype)
    options = {"strides": (1, 1), "padding": ((1, 1), (1, 1)), "dilation": (1, 1)}
    x, kernel, g = (rng.normal(size=s).astype(kind) for s in ((2, 5, 5, 3), (3, 3, 3), (2, 5, 5, 3)))
    for function, arrays in (
        (depthwise.depthwise, (g, x, kernel)),
        (depthwise.depthwise_input_gradient, (x, g, kernel)),
        (depthwise.depthwise_kernel_gradient, (kernel, x, g)),
    ):
        out, exact = np.empty(arrays[0].shape, kind), np.empty(arrays[0].shape)
        function(out, *arrays[1:], **options)
        function(exact, *(a.astype(np.float64) for a in arrays[1:]), **options)
        np.testing.assert_allclose(out.astype(np.float64), exact, rtol=tolerance, atol=tolerance * np.abs(exact).max())


def test_shapes_that_do_not_fit() -> None:
    options: dict[str, Any] = {"strides": (1, 1), "padding": ((0, 0), (0, 0)), "dilation": (1, 1)}
    x, kernel = np.zeros((2, 5, 5, 3)), np.zeros((3, 3, 3))
    with pytest.raises(ShapeError, match=r"gives \(2, 3, 3, 3\); got kernel \(3, 3, 3\), result \(2, 5, 5, 3\)"):
        depthwise.depthwise(np.zeros((2, 5, 5, 3)), x, kernel, **options)
    with pytest.raises(ShapeError, match="kernel for 3 channels"):
        depthwise.depthwise(np.zeros((2, 3, 3, 3)), x, kernel[..., :2], **options)
    with pytest.raises(ShapeError, match="kernel of 3"):
        depthwise.depthwise(np.zeros((2, 3, 3, 3)), x, kernel[..., None], **options)
