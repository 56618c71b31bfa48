"""Collectives for loops of one's own, in the group of one process."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import disttensor as dt
from disttensor import distributed
from disttensor.errors import ArgumentError, DTypeError, ShapeError, TracingError

CALLS = {
    "all_reduce": distributed.all_reduce,
    "mean": lambda x, group=None: distributed.all_reduce(x, "mean", group),
    "max": lambda x, group=None: distributed.all_reduce(x, "max", group),
    "all_gather": lambda x, group=None: distributed.all_gather(x, 1, group),
    "reduce_scatter": lambda x, group=None: distributed.reduce_scatter(x, "mean", 1, group),
    "broadcast": lambda x, group=None: distributed.broadcast(x, 0, group),
}
every_call = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)


@every_call
def test_one_rank_gets_what_it_gave(call: Any) -> None:
    x = np.arange(6.0).reshape(2, 3)
    group = distributed.split(3)
    got = call(x, group=group)
    assert type(got) is np.ndarray
    assert not np.may_share_memory(got, x)
    np.testing.assert_array_equal(got, x)
    np.testing.assert_array_equal(call(dt.Variable(x)).numpy(), x)
    np.testing.assert_array_equal(dt.function(call)(x).numpy(), x)


@every_call
def test_gradients_are_those_of_the_identity(call: Any) -> None:
    x = dt.constant([[1.0, 2.0]])
    with dt.GradientTape() as tape:
        tape.watch(x)
        y = dt.ops.sum(call(x) ** 2)
    np.testing.assert_array_equal(tape.gradient(y, x).numpy(), [[2.0, 4.0]])


@every_call
def test_they_are_steps_of_functional_models(call: Any) -> None:
    inputs = dt.Input((3,))
    outputs = call(inputs)
    assert outputs.shape == (None, 3)
    x = np.ones((2, 3), np.float32)
    np.testing.assert_array_equal(dt.Model(inputs, outputs).predict(x, verbose=0), x)


def test_ranks_and_groups() -> None:
    group = distributed.split(0)
    for g in (None, group):
        assert (distributed.rank(g), distributed.local_rank(g)) == (0, 0)
        assert (distributed.size(g), distributed.local_size(g)) == (1, 1)
    distributed.barrier(group)


@pytest.mark.parametrize(
    ("error", "text", "action"),
    [
        (ArgumentError, "'product' is unknown; use one of sum", lambda: distributed.all_reduce(1.0, "product")),
        (ArgumentError, "use one of sum, mean", lambda: distributed.reduce_scatter([1.0], "max")),
        (DTypeError, "got dtype int64", lambda: distributed.all_reduce(np.array([1]), "mean")),
        (DTypeError, "complex64", lambda: distributed.all_reduce(np.zeros(1, np.complex64), "max")),
        (ShapeError, "expand_dims", lambda: distributed.all_gather(1.0)),
        (ArgumentError, "it has axes 0 to 1", lambda: distributed.all_gather(np.ones((2, 2)), 2)),
        (ArgumentError, "ranks are 0 to 0", lambda: distributed.broadcast(1.0, 1)),
        (ArgumentError, "Communicator", lambda: distributed.all_reduce(1.0, group=[0, 1])),
        (ArgumentError, "color must be an int", lambda: distributed.split(0.5)),
        (ArgumentError, "negative", lambda: distributed.split(-1)),
        (TracingError, "outside of the function", lambda: dt.function(lambda: distributed.barrier())()),
    ],
)
def test_errors_say_what_was_expected(error: type[Exception], text: str, action: Any) -> None:
    with pytest.raises(error, match=text):
        action()
