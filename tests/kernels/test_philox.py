"""Random numbers against published vectors, and their distributions."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats

from disttensor import dtypes
from disttensor.errors import ArgumentError, DTypeError
from disttensor.kernels import philox

STATE = np.array([1234, 7], np.uint32)
FLOATS = ["bfloat16", "float16", "float32", "float64"]


def _draw(fill: Callable[..., None], dtype: str, count: int, *arguments: float, offset: int = 0) -> np.ndarray:
    out = np.empty(count, dtypes.to_numpy(dtype))
    fill(out, STATE, offset, *arguments)
    return out


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
)
def test_known_answers(counter: list[int], key: list[int], words: list[int]) -> None:
    """The vectors published with Random123."""
    assert [int(w) for w in philox.philox4x32(*map(np.uint64, counter + key))] == words


def test_elements_are_words_of_blocks() -> None:
    block = [int(w) for w in philox.philox4x32(*map(np.uint64, (5, 1, 0, 0, 1234, 7)))]
    first = 4 * (5 + (1 << 32))
    assert _draw(philox.uniform, "float32", 4, offset=first).tolist() == [(w >> 8) / 2**24 for w in block]
    wide = [(block[i] << 32 | block[i + 1]) for i in (0, 2)]
    assert _draw(philox.uniform, "float64", 2, offset=first // 2).tolist() == [(w >> 11) / 2**53 for w in wide]
    assert _draw(philox.randint, "int64", 2, -5, 10**12, offset=first // 2).tolist() == [
        -5 + (w * (10**12 + 5) >> 64) for w in wide
    ]


FILLS: list[tuple[Callable[..., None], str, tuple[float, ...]]] = [
    *((fill, dtype, ()) for fill in (philox.uniform, philox.normal, philox.truncated_normal) for dtype in FLOATS),
    (philox.randint, "int32", (-3, 1000)),
    (philox.randint, "uint8", (0, 256)),
    (philox.bernoulli, "bool", (0.3,)),
    (philox.bernoulli, "float32", (0.3,)),
    (philox.bernoulli, "bfloat16", (0.3,)),
]


@pytest.mark.parametrize(("fill", "dtype", "arguments"), FILLS, ids=lambda v: getattr(v, "__name__", str(v)))
def test_a_slice_is_a_slice_of_the_whole(fill: Callable[..., None], dtype: str, arguments: tuple[float, ...]) -> None:
    whole = _draw(fill, dtype, 9001, *arguments, offset=3)
    for start, stop in ((0, 1), (1, 2), (2, 9), (5, 4105), (4093, 9001), (7, 7)):
        part = _draw(fill, dtype, stop - start, *arguments, offset=3 + start)
        np.testing.assert_array_equal(part, whole[start:stop])
    shaped = np.empty((3, 3000), whole.dtype)
    fill(shaped, STATE, np.array(4), *arguments)
    np.testing.assert_array_equal(shaped.ravel()[:8999], whole[1:9000])


@pytest.mark.parametrize("dtype", FLOATS)
def test_uniform(dtype: str) -> None:
    x = _draw(philox.uniform, dtype, 100_000).astype(np.float64)
    assert x.min() >= 0
    assert x.max() < 1
    step = 2.0 ** -{"bfloat16": 8, "float16": 11, "float32": 24, "float64": 53}[dtype]
    np.testing.assert_array_equal(x / step, np.floor(x / step))
    # Spread evenly inside its step, a coarse number is uniform too.
    spread = x + step * np.random.default_rng(0).random(x.size)
    assert stats.kstest(spread, "uniform").pvalue > 1e-3


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_normal(dtype: str) -> None:
    x = _draw(philox.normal, dtype, 100_000).astype(np.float64)
    assert stats.kstest(x, "norm").pvalue > 1e-3
    np.testing.assert_allclose([x.mean(), x.std(), stats.kurtosis(x)], [0, 1, 0], atol=0.03)
    assert np.abs(x).max() > 4
    assert abs(np.corrcoef(x[:-1], x[1:])[0, 1]) < 0.015


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_normal_inverts_the_distribution(dtype: str) -> None:
    """Element by element: the normal number is the quantile of the uniform one."""
    u, x = _draw(philox.uniform, dtype, 20_000).astype(np.float64), _draw(philox.normal, dtype, 20_000)
    tolerance = {"float32": 1e-7, "float64": 1e-15}[dtype]
    np.testing.assert_allclose(stats.norm.cdf(x.astype(np.float64)), u, atol=tolerance)


@pytest.mark.parametrize("dtype", FLOATS)
def test_truncated_normal(dtype: str) -> None:
    x = _draw(philox.truncated_normal, dtype, 100_000).astype(np.float64)
    assert np.abs(x).max() <= 2
    assert np.abs(x).max() > 1.99
    np.testing.assert_allclose([x.mean(), x.std()], [0, stats.truncnorm(-2, 2).std()], atol=0.01)
    if dtype in ("float32", "float64"):
        assert stats.kstest(x, stats.truncnorm(-2, 2).cdf).pvalue > 1e-3


@pytest.mark.parametrize(
    ("dtype", "low", "high"), [("int32", -3, 7), ("uint8", 0, 256), ("int8", -128, 128), ("uint64", 2**63, 2**63 + 5)]
)
def test_randint(dtype: str, low: int, high: int) -> None:
    values, counts = np.unique(_draw(philox.randint, dtype, 100_000, low, high), return_counts=True)
    assert [int(v) for v in values] == list(range(low, high))
    assert stats.chisquare(counts).pvalue > 1e-3


@pytest.mark.parametrize("dtype", ["int64", "uint64"])
def test_randint_of_the_full_range(dtype: str) -> None:
    limits = np.iinfo(dtype)
    x = _draw(philox.randint, dtype, 100_000, int(limits.min), int(limits.max) + 1).astype(np.float64)
    assert stats.kstest((x - float(limits.min)) / 2.0**64, "uniform").pvalue > 1e-3


@pytest.mark.parametrize("dtype", ["bool", "float32", "float16", "int32"])
def test_bernoulli(dtype: str) -> None:
    x = _draw(philox.bernoulli, dtype, 100_000, 0.3).astype(np.float64)
    assert set(x) == {0, 1}
    assert abs(x.mean() - 0.3) < 0.006
    assert _draw(philox.bernoulli, dtype, 1000, 1.0).all()
    assert not _draw(philox.bernoulli, dtype, 1000, 0.0).any()


def test_states_are_independent() -> None:
    draws = np.empty((8, 10_000))
    for row, state in zip(draws, np.ndindex(2, 4), strict=True):
        philox.normal(row, np.array(state, np.uint32), 0)
    assert np.abs(np.corrcoef(draws) - np.eye(8)).max() < 0.05


def test_arguments_are_checked() -> None:
    with pytest.raises(DTypeError, match="int32"):
        philox.uniform(np.empty(3, np.int32), STATE, 0)
    with pytest.raises(DTypeError, match="float32"):
        philox.randint(np.empty(3, np.float32), STATE, 0, 0, 2)
    with pytest.raises(ArgumentError, match="-128 <= low < high <= 128"):
        philox.randint(np.empty(3, np.int8), STATE, 0, 0, 200)
    with pytest.raises(ArgumentError, match="between 0 and 1"):
        philox.bernoulli(np.empty(3, np.float32), STATE, 0, 1.5)


@pytest.mark.parametrize("shape", [(0, 3), (5, 1), (3, 7), (1, 0), (130, 67)])
@pytest.mark.parametrize("row", [0, 1, 3, 10**9])
@pytest.mark.parametrize("rate", [0.0, 0.3, 1.0])
def test_dropout_is_bernoulli_scaled(shape: tuple[int, int], row: int, rate: float) -> None:
    out, expected = np.full(shape, np.nan, np.float32), np.empty(shape, np.float32)
    call = philox.bind_dropout(out, STATE, np.array(row, np.int64), rate)
    assert call is not None
    call()
    philox.bernoulli(expected, STATE, row * shape[1], 1 - rate)
    np.testing.assert_array_equal(out, expected * np.float32(1 / (1 - rate) if rate < 1 else 0))
