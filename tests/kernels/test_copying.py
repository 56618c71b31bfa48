"""Copies between arrays of any strides."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from disttensor import config
from disttensor.kernels import copying
from disttensor.kernels.native import NativeCall


@st.composite
def views(draw: st.DrawFn) -> tuple[tuple[int, ...], tuple[int, ...], list[int], list[int]]:
    """A shape, an order of axes, steps (also negative), and which axes are repeated."""
    shape = tuple(draw(st.lists(st.integers(0, 5), min_size=0, max_size=5)))
    order = tuple(draw(st.permutations(range(len(shape)))))
    steps = [draw(st.sampled_from([1, 2, -1, -3])) for _ in shape]
    repeated = [draw(st.sampled_from([0, 0, 1])) for _ in shape]
    return shape, order, steps, repeated


def view(case, dtype: str, fill: bool) -> np.ndarray:
    shape, order, steps, repeated = case
    sizes = [1 if fill and r else n * abs(s) for n, s, r in zip(shape, steps, repeated, strict=True)]
    base = np.arange(np.prod(sizes, dtype=int)).astype(dtype) if fill else np.zeros(sizes, dtype)
    base = base.reshape([sizes[a] for a in order])
    x = base.transpose([order.index(axis) for axis in range(len(order))])
    slices = [slice(None) if fill and r else slice(None, None, s) for s, r in zip(steps, repeated, strict=True)]
    x = x[(*slices, ...)]
    return np.broadcast_to(x, shape) if fill else x


@given(
    source=views(),
    order=st.randoms(use_true_random=False),
    dtype=st.sampled_from(["int8", "uint16", "float32", "complex64", "complex128"]),
)
def test_copies_are_those_of_numpy(source, order, dtype: str) -> None:
    x = view(source, dtype, fill=True)
    axes = list(range(x.ndim))
    order.shuffle(axes)
    out = view((source[0], tuple(axes), [order.choice([1, 2, -1]) for _ in axes], [0] * x.ndim), dtype, fill=False)
    copying.bind(out, x)()
    np.testing.assert_array_equal(out, x)


def test_it_is_a_native_call_and_touches_nothing_else() -> None:
    base = np.full((4, 10), -1.0)
    call = copying.bind(base[:, 2:5], np.arange(4.0).reshape(4, 1))
    assert isinstance(call, NativeCall)
    call()
    np.testing.assert_array_equal(base[:, 2:5], np.arange(4.0).reshape(4, 1) * np.ones(3))
    assert (np.delete(base, slice(2, 5), 1) == -1).all()


def test_an_array_may_be_copied_onto_itself() -> None:
    x = np.arange(10)
    copying.bind(x[1:], x[:-1])()
    np.testing.assert_array_equal(x, [0, 0, 1, 2, 3, 4, 5, 6, 7, 8])


@pytest.mark.parametrize("threads", [1, 2])
def test_large_transposes_on_several_threads(threads: int) -> None:
    x = np.random.default_rng(0).normal(size=(700, 300)).astype("float32")
    out = np.zeros((300, 700), "float32")
    before = config.threads()
    config.set_threads(threads)
    try:
        copying.bind(out, x.T)()
    finally:
        config.set_threads(before)
    np.testing.assert_array_equal(out, x.T)


def test_zeros() -> None:
    x = np.ones((3, 4))[:, ::2]
    copying.bind_zeros(x)()
    assert not x.any()
