"""``python -m benchmarks gemm``: our products of matrices beside those of numpy's BLAS."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks import machine, report

# What each workload multiplies: rows, sum, columns; which operands are transposed; how many products in a stack.
_PRODUCTS = [
    ("W1", 32, 784, 64, "", 1), ("W1", 784, 32, 64, "x", 1), ("W1", 32, 64, 10, "", 1), ("W1", 32, 10, 64, "y", 1),
    ("W2", 256, 784, 1024, "", 1), ("W2", 256, 1024, 1024, "", 1), ("W2", 256, 1024, 1024, "y", 1),
    ("W2", 1024, 256, 1024, "x", 1), ("W4", 2560, 128, 512, "", 1), ("W4", 128, 2560, 512, "x", 1),
    ("W4", 2560, 512, 128, "y", 1), ("W4", 32, 128, 512, "", 1), ("W5", 4096, 128, 128, "", 1),
    ("W5", 4096, 128, 512, "", 1), ("W5", 4096, 512, 128, "", 1), ("W5", 512, 4096, 128, "x", 1),
    ("attention", 128, 32, 128, "y", 128), ("attention", 128, 128, 32, "", 128), ("attention", 128, 128, 32, "x", 128),
    ("square", 1024, 1024, 1024, "", 1), ("square", 2048, 2048, 2048, "", 1),
]  # fmt: skip


@dataclass
class Rate:
    """Floating-point operations a second, in 10⁹: the median, and what nine of ten runs do not reach."""

    median: float
    best: float


def run(options: argparse.Namespace) -> None:
    """Measure, print and write."""
    # They slow down a current OpenBLAS, and are read when it is loaded, before this.
    told = sorted(os.environ.keys() & {"OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE"})
    if told:
        raise SystemExit(f"unset {' and '.join(told)}: numpy's BLAS would not be what it can be.")
    description = machine.describe()
    print("\n".join(machine.lines(description)))
    print("\nfloat32, GFLOP/s: median (90th percentile); ratio of medians, ours to numpy's\n")
    head = [f"{who}, {count} threads" for count in options.threads for who in ("ours", "numpy")]
    ratios = [f"ratio, {count} threads" for count in options.threads]
    found, rows = [], []
    for name, m, k, n, transposed, stack in _PRODUCTS:
        x, y = (_matrices(stack, a, b, who in transposed) for who, a, b in (("x", m, k), ("y", k, n)))
        rates = measure(x, y, options.threads, options.rounds)
        label = f"{name}: {f'{stack} × ' if stack > 1 else ''}{m}×{k}×{n} {transposed and transposed + 'ᵀ'}"
        pairs = [rates[2 * i : 2 * i + 2] for i in range(len(options.threads))]
        quotients = [ours.median / theirs.median for ours, theirs in pairs]
        rows.append([label, *(f"{r.median:.0f} ({r.best:.0f})" for r in rates), *(f"{q:.2f}" for q in quotients)])
        found.append({"product": label, **{h: vars(r) for h, r in zip(head, rates, strict=True)}})
    print(report.table(["product", *head, *ratios], rows))
    print(f"\nload average at the end: {machine.load()}")
    if options.json:
        report.write_json(options.json, {"machine": description, "products": found})


def measure(x: np.ndarray, y: np.ndarray, threads: list[int], rounds: int) -> list[Rate]:
    """Ours and numpy's, for each number of threads, in turn."""
    import threadpoolctl

    from disttensor import config
    from disttensor.kernels import gemm

    out = np.empty((*x.shape[:-1], y.shape[-1]), x.dtype)
    ours = gemm.bind(out, x, y)
    operations = 2 * out.size * x.shape[-1]
    repeats = max(1, int(2e7 / operations))
    times: list[list[float]] = [[] for _ in range(2 * len(threads))]
    for _ in range(rounds + 1):
        # Threads of OpenBLAS spin for a while when they have nothing to do, on the cores that ours are to use.
        time.sleep(0.05)
        for i, count in enumerate(threads):
            config.set_threads(count)
            times[2 * i].append(_timed(ours, repeats))
            with threadpoolctl.threadpool_limits(count):
                times[2 * i + 1].append(_timed(lambda: np.matmul(x, y, out=out), repeats))
    return [Rate(*(operations / np.percentile(t[1:], p) / 1e9 for p in (50, 10))) for t in times]


def _timed(call: Callable[[], Any], repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats


def _matrices(stack: int, m: int, n: int, transposed: bool) -> np.ndarray:
    shape = (m, n)[:: -1 if transposed else 1]
    made = np.random.default_rng(0).normal(size=shape if stack == 1 else (stack, *shape)).astype(np.float32)
    return made.swapaxes(-1, -2) if transposed else made
