"""``python -m benchmarks convolution``: the speed of convolution kernels, as a share of a matrix product's."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np

from benchmarks import machine, report

# Batch, size, channels, filters, window, stride, padding (before and after, on both axes).
SHAPES = {
    "W3, first": (128, 28, 1, 32, 3, 1, (0, 0)),
    "W3, second": (128, 13, 32, 64, 3, 1, (0, 0)),
    "W6, first": (64, 32, 3, 16, 3, 1, (1, 1)),
    "W6, stage 1": (64, 32, 16, 16, 3, 1, (1, 1)),
    "W6, stage 1 to 2": (64, 32, 16, 32, 3, 2, (0, 1)),
    "W6, stage 2": (64, 16, 32, 32, 3, 1, (1, 1)),
    "W6, stage 3": (64, 8, 64, 64, 3, 1, (1, 1)),
    "56×56, 64 channels": (8, 56, 64, 64, 3, 1, (1, 1)),
    "14×14, 256 channels": (8, 14, 256, 256, 3, 1, (1, 1)),
}
_SECONDS = 0.05
_TURNS = 5


def run(options: argparse.Namespace) -> None:
    """Measure and print."""
    from disttensor import config

    description = machine.describe()
    print(*machine.lines(description), sep="\n")
    threads = [int(t) for t in options.threads or ("1", str(description["cores"]))]
    rows = []
    for count in threads:
        config.set_threads(count)
        for name, shape in SHAPES.items():
            calls, work = _calls(shape)
            product, product_work = _product()
            best: list[list[float]] = [[] for _ in range(1 + len(calls))]
            for _ in range(_TURNS):
                for times, call in zip(best, (product, *calls), strict=True):
                    times.append(_median(call))
            gemm, *speeds = (
                w / statistics.median(t) / 1e9 for w, t in zip((product_work, *[work] * 3), best, strict=True)
            )
            shares = [f"{speed:.0f} ({speed / gemm:.0%})" for speed in speeds]
            rows.append([name, str(count), f"{work / 1e6:.0f}", f"{gemm:.0f}", *shares])
    header = ["shape", "threads", "MFLOP", "GEMM", "forward", "input gradient", "weight gradient"]
    print()
    print(report.table(header, rows))
    print(
        "\nGFLOP/s, medians of turns; in brackets the share of a product of two 1024×1024 matrices in the same turns."
    )


def _calls(shape: tuple[int, int, int, int, int, int, tuple[int, int]]) -> tuple[list[Callable[[], object]], float]:
    """Forward pass, input gradient and weight gradient on arrays of their own, and the operations of each."""
    from disttensor.kernels import convolution
    from disttensor.tensor import aligned_empty

    batch, size, channels, filters, window, stride, padding = shape
    output = (size + sum(padding) - window) // stride + 1
    rng = np.random.default_rng(0)
    shapes = (batch, size, size, channels), (window, window, channels, filters), (batch, output, output, filters)
    inputs, outputs = ([aligned_empty(s, "float32") for s in shapes] for _ in range(2))
    for array in inputs:
        array[...] = rng.normal(size=array.shape)
    x, kernel, g = inputs
    options = {"strides": (stride, stride), "padding": (padding, padding), "dilation": (1, 1), "groups": 1}
    calls: list[Callable[[], object]] = [
        convolution.bind_convolve(outputs[2], x, kernel, **options),
        convolution.bind_convolve_input_gradient(outputs[0], g, kernel, **options),
        convolution.bind_convolve_kernel_gradient(outputs[1], x, g, **options),
    ]
    return calls, 2.0 * kernel.size * batch * output**2


def _product() -> tuple[Callable[[], object], float]:
    from disttensor.kernels import gemm

    rng = np.random.default_rng(0)
    x, y = (rng.normal(size=(1024, 1024)).astype(np.float32) for _ in range(2))
    return gemm.bind(np.empty_like(x), x, y), 2.0 * 1024**3


def _median(call: Callable[[], object]) -> float:
    """Seconds of a call."""
    call()
    times: list[float] = []
    end = time.perf_counter() + _SECONDS
    while not times or time.perf_counter() < end:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)
