"""A loop follows the product that it reads part by part, and nothing else changes."""

import ctypes

import numpy as np
import pytest

from disttensor import config
from disttensor.kernels import gemm, generated
from disttensor.kernels.chain import by_pieces, chained
from disttensor.kernels.loop import Literal, Writing
from disttensor.kernels.native import NativeCall, segments

M, K, N = 401, 270, 300


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    return {name: rng.normal(size=shape).astype("float32") for name, shape in _SHAPES.items()}


_SHAPES = {"x": (M, K), "y": (K, N), "g": (M, N), "w": (M, N), "bias": (N,), "rate": (), "other": (N, N)}


def _update():
    write = Writing(("float32", "full"), ("float32", "full"), ("float32", "scalar"))
    return write.loop(write("subtract", 1, write("multiply", 0, 2)))


def _activation():
    write = Writing(("float32", "full"), ("float32", "row"))
    return write.loop(write("maximum", write("add", 0, 1), Literal(0.0)))


def _softmax():
    write = Writing(("float32", "full"))
    exponentials = write("exp", write("subtract", 0, write("max", 0)))
    return write.loop(write("divide", exponentials, write("sum", exponentials)))


def _run(calls):
    for call in segments(calls):
        call()


@pytest.mark.parametrize("name", ["update", "activation", "softmax"])
def test_a_loop_that_follows_gives_the_same_bits(arrays, name):
    a = arrays
    loop, inputs, target = {
        "update": (_update(), [a["g"], a["w"], a["rate"]], "w"),
        "activation": (_activation(), [a["g"], a["bias"]], "g"),
        "softmax": (_softmax(), [a["g"]], "w"),
    }[name]
    calls = [gemm.bind(a["g"], a["x"], a["y"]), generated.bind(loop, inputs, [a[target]], N)]
    before = a["w"].copy()
    _run(calls)
    wanted = a[target].copy()
    a["w"][...], a["g"][...] = before, np.nan
    found = chained(calls)
    assert len(found) == 2  # what packs, and the chain
    _run(found)
    assert np.array_equal(a[target], wanted)
    product = a["x"] @ a["y"]
    if name == "update":
        assert np.allclose(wanted, before - product * a["rate"], atol=1e-3)
    if name == "activation":
        assert np.allclose(wanted, np.maximum(product + a["bias"], 0), atol=1e-3)


def _not_chained(first, second):
    found = chained([first, second])
    return [call for bound in found for call in bound] == [*first, *second]


def test_loops_that_one_thread_does_in_one_part_are_chained_as_a_whole(arrays):
    """Not element by element, which would be a call for each."""
    small = {name: np.ascontiguousarray(arrays[name][:2]) for name in ("g", "w")}
    inputs = [small["g"], small["w"], arrays["rate"]]
    calls = [call for _ in range(2) for call in generated.bind(_update(), inputs, [small["w"]], 1)]
    assert [call.grain for call in calls] == [0, 0]
    expected = small["w"] - 2 * arrays["rate"] * small["g"]
    (chain,) = chained(calls)
    chain()
    np.testing.assert_allclose(small["w"], expected, rtol=1e-5)
    assert ctypes.c_int64.from_address(chain.block + 8 * 6).value == chain.extent == small["g"].size


def test_what_reads_other_places_does_not_follow(arrays):
    a = arrays
    write = Writing(("float32", "full"), ("float32", "row"))
    loop = write.loop(write("add", 0, 1))
    product = gemm.bind(a["g"], a["x"], a["y"])
    assert _not_chained(product, generated.bind(loop, [a["g"], a["g"][0]], [a["w"]], N))


def test_what_overwrites_an_operand_does_not_follow(arrays):
    a = arrays
    g = a["g"][:N]
    first = gemm.bind(g, a["w"][:N], a["other"])
    second = generated.bind(_update(), [g, a["w"][:N], a["rate"]], [a["w"][:N]], N)
    assert _not_chained(first, second)
    apart = np.empty_like(g)
    assert not _not_chained(first, generated.bind(_update(), [g, apart, a["rate"]], [apart], N))


def test_what_overwrites_what_a_loop_has_still_to_read_does_not_follow():
    write = Writing(("float32", "full"))
    negative = write.loop(write("negative", 0))
    memory = np.empty(2 * M * N, "float32")
    x, shifted = memory[: M * N].reshape(M, N), memory[N : N + M * N].reshape(M, N)
    y = np.empty_like(x)
    first = generated.bind(_softmax(), [x], [y], N)
    assert _not_chained(first, generated.bind(negative, [y], [shifted], 1))
    assert not _not_chained(first, generated.bind(negative, [y], [x], 1))  # each part in its own place


def test_what_reads_something_else_does_not_follow(arrays):
    a = arrays
    first = gemm.bind(a["g"], a["x"], a["y"])
    assert _not_chained(first, generated.bind(_activation(), [a["w"], a["bias"]], [a["w"]], N))


def test_sums_of_columns_do_not_follow(arrays):
    a = arrays
    write = Writing(("float32", "full"))
    loop = write.loop(write("sum_rows", 0))
    first = gemm.bind(a["g"], a["x"], a["y"])
    second = generated.bind(loop, [a["g"]], [np.empty(N, "float32")], N)
    assert _not_chained(first, second)


def test_python_in_between_stays():
    calls = [lambda: None, NativeCall(0, [], 0), lambda: None]
    assert chained(calls) == calls


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("skip", [0, 48])
def test_a_call_behind_each_piece_of_another(threads, skip):
    """The second one counts its elements from somewhere else, and finds what the first has just made."""
    x, total, w = np.random.default_rng(0).normal(size=(3, 10_048)).astype("float32")
    one, rate = np.float32(1), np.float32(0.1)
    later = slice(skip, None)
    made, wanted = x[later] - x[: x.size - skip], w.copy()
    generated.bind(_update(), [made, wanted[later], rate], [wanted[later]], 1)()
    calls = (
        generated.bind(_update(), [x[: x.size - skip], x[later], one], [total[later]], 1),
        generated.bind(_update(), [total, w, rate], [w], 1),
    )
    first, second = (NativeCall(call.address, call._words, call.extent, 256, call) for call in calls)
    before = config.threads()
    config.set_threads(threads)
    try:
        by_pieces(first, second, skip, 512)()
    finally:
        config.set_threads(before)
    assert np.array_equal(total[later], made)
    assert np.array_equal(w, wanted)


def test_a_call_set_apart_is_not_chained(arrays):
    a = arrays
    first = gemm.bind(a["g"], a["x"], a["y"])
    (second,) = generated.bind(_update(), [a["g"], a["w"], a["rate"]], [a["w"]], N)
    assert not _not_chained(first, second)
    assert _not_chained(first, apart := second.apart())
    assert (apart.address, apart.block, apart.extent, apart.grain) == (
        second.address, second.block, second.extent, second.grain,
    )  # fmt: skip
