"""Attention in blocks against its definition on all scores at once, and stacks of products on several threads."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from disttensor import config, dtypes
from disttensor.kernels import attention as kernels


class Problem(NamedTuple):
    """The operands of a call."""

    q: np.ndarray
    k: np.ndarray
    v: np.ndarray
    extra: np.ndarray | None
    options: dict[str, Any]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks so small that short sequences have many."""
    monkeypatch.setattr(kernels, "_LEAST", 4)
    monkeypatch.setattr(kernels, "_SCORES", 1)


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    batch, queries, keys, heads, size, width = (
        draw(st.integers(0, 3)), draw(st.integers(0, 9)),
        draw(st.one_of(st.integers(0, 9), st.sampled_from([16, 17, 40]))), draw(st.integers(1, 3)),
        draw(st.integers(1, 4)), draw(st.integers(1, 4)),
    )  # fmt: skip
    rng = np.random.default_rng(draw(st.integers(0, 1000)))
    kind = draw(st.sampled_from(["none", "mask", "bias"]))
    full = (batch, heads, queries, keys)
    shape = tuple(draw(st.sampled_from([1, n])) for n in full)
    extra = {"none": None, "mask": rng.random(shape) < 0.6, "bias": 3 * rng.normal(size=shape)}[kind]
    return Problem(
        2 * rng.normal(size=(batch, queries, heads, size)), 2 * rng.normal(size=(batch, keys, heads, size)),
        rng.normal(size=(batch, keys, heads, width)), extra,
        {"scale": draw(st.sampled_from([1.0, 0.3])), "causal": draw(st.booleans())},
    )  # fmt: skip


def probabilities(problem: Problem) -> tuple[np.ndarray, np.ndarray]:
    """The softmax of all scores, and the logarithm of its denominator; both 0 for a query that sees no key."""
    q, k, _, extra, options = problem
    scores = options["scale"] * np.einsum("btnh,bsnh->bnts", q, k)
    if extra is not None:
        scores = np.where(extra, scores, -np.inf) if extra.dtype == bool else scores + extra
    if options["causal"]:
        scores = np.where(np.tri(*scores.shape[2:], dtype=bool), scores, -np.inf)
    totals = np.exp(scores).sum(axis=-1, keepdims=True)
    totals[totals == 0] = 1
    return np.exp(scores) / totals, np.log(totals)[..., 0].transpose(0, 2, 1)


def attend(problem: Problem, dtype: Any = np.float64) -> tuple[np.ndarray, np.ndarray]:
    q, k, v, extra, options = problem
    out = np.full((*q.shape[:3], v.shape[3]), 77, dtype)
    lse = np.full(q.shape[:3], 77, np.float32 if out.itemsize == 2 else dtype)
    arrays = [a if a.dtype == bool else a.astype(dtype) for a in (q, k, v, extra) if a is not None]
    with np.errstate(all="ignore"):
        kernels.attention((out, lse), *arrays, **options)
    return out, lse


def differentiate(problem: Problem, g: np.ndarray, dtype: Any = np.float64) -> tuple[np.ndarray, ...]:
    q, k, v, extra, options = problem
    out, lse = attend(problem)
    outs = tuple(np.full(a.shape, 77, dtype) for a in (q, k, v))
    arrays = [a if a.dtype == bool else a.astype(dtype) for a in (q, k, v, g, lse, (g * out).sum(-1))]
    with np.errstate(all="ignore"):
        kernels.attention_gradient(outs, *arrays, *([] if extra is None else [extra]), **options)
    return outs


@given(problems())
@settings(max_examples=150)
def test_is_the_mean_weighted_by_the_softmax(problem: Problem) -> None:
    p, expected = probabilities(problem)
    out, lse = attend(problem)
    np.testing.assert_allclose(out, np.einsum("bnts,bsnh->btnh", p, problem.v), atol=1e-12)
    np.testing.assert_allclose(lse, expected, atol=1e-12)


@given(problems())
@settings(max_examples=150)
def test_gradient(problem: Problem) -> None:
    q, k, v, _, options = problem
    g = np.random.default_rng(1).normal(size=(*q.shape[:3], v.shape[3]))
    p, _ = probabilities(problem)
    dp = np.einsum("btnh,bsnh->bnts", g, v)
    ds = options["scale"] * p * (dp - (p * dp).sum(axis=-1, keepdims=True))
    expected = (
        np.einsum("bnts,bsnh->btnh", ds, k), np.einsum("bnts,btnh->bsnh", ds, q), np.einsum("bnts,btnh->bsnh", p, g)
    )  # fmt: skip
    for actual, right in zip(differentiate(problem, g), expected, strict=True):
        np.testing.assert_allclose(actual, right, atol=1e-11)


def one_problem(rng: np.random.Generator, factor: float = 1.0) -> Problem:
    q, k, v = factor * rng.normal(size=(3, 2, 11, 3, 4))
    return Problem(q, k, v, rng.random((2, 1, 1, 11)) < 0.8, {"scale": 0.5, "causal": False})


def test_large_scores_do_not_overflow(rng: np.random.Generator) -> None:
    problem = one_problem(rng, 100.0)
    with np.errstate(all="raise", under="ignore"):
        out, lse = attend(problem, np.float32)
    scores = 0.5 * np.einsum("btnh,bsnh->bnts", problem.q, problem.k)
    assert problem.extra is not None
    best = np.where(problem.extra, scores, -np.inf).argmax(axis=-1)
    # Scores are thousands apart: each query gets the value of its best key.
    batch, heads, queries = np.ogrid[:2, :3, :11]
    np.testing.assert_allclose(out.transpose(0, 2, 1, 3), problem.v[batch, best, heads], rtol=1e-3)
    assert np.isfinite(lse).all()


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_half_precision_is_float32_rounded_once(name: str, rng: np.random.Generator) -> None:
    dtype = dtypes.to_numpy(name)
    problem = one_problem(rng)
    half = problem._replace(**{n: getattr(problem, n).astype(dtype).astype(np.float64) for n in "qkv"})
    (out, lse), (expected, expected_lse) = attend(half, dtype), attend(half, np.float32)
    np.testing.assert_array_equal(out, expected.astype(dtype))
    np.testing.assert_array_equal(lse, expected_lse)


@pytest.fixture
def threads() -> Iterator[Any]:
    before = config.threads()
    yield config.set_threads
    config.set_threads(before)


def test_bits_do_not_depend_on_the_number_of_threads(threads: Any, rng: np.random.Generator) -> None:
    problem = one_problem(rng)
    g = rng.normal(size=problem.q.shape)
    found = []
    for count in (1, 2, 3):
        threads(count)
        found.append([a.tobytes() for a in (*attend(problem, np.float32), *differentiate(problem, g, np.float32))])
    assert found[0] == found[1] == found[2]
