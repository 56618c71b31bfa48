"""Which products ranks offer one another."""

import numpy as np
import pytest

import disttensor as dt
from disttensor import ops
from disttensor.distributed.buckets import all_reduce_start, all_reduce_wait, unpack
from disttensor.distributed.helping_pass import offered_products
from disttensor.ops.registry import apply

N = 8


@pytest.fixture(autouse=True)
def one_thread():
    before = dt.config.threads()
    dt.config.set_threads(1)
    yield
    dt.config.set_threads(before)


def summed(*gradients):
    """Gradients that make a bucket, as the pass for all-reduces leaves it."""
    starts = tuple(range(0, N * N * len(gradients), N * N))
    attrs = {"starts": starts, "runs": (N * N * len(gradients),), "factors": (1.0,) * len(gradients)}
    members = [ops.reshape(gradient, (-1,)) for gradient in gradients]
    start = apply(all_reduce_start, [*members, dt.constant(0.5, dtype="float32")], attrs)
    return start, [{"start": place, "shape": (N, N)} for place in starts]


def waited(start, places):
    total = apply(all_reduce_wait, [start], {})
    return [apply(unpack, [total], place) for place in places]


def graph(step):
    return dt.function(step).graph(*(dt.constant(np.ones((3, N), np.float32)) for _ in range(4)))


def product(x, y):
    return ops.matmul(ops.transpose(x), y)


def test_products_between_the_last_two_starts_are_offered():
    def step(a, b, c, d):
        first = summed(product(a, b))
        last = summed(product(b, c), product(c, d))
        return [*waited(*first), *waited(*last)]

    found = graph(step)
    (offered,) = [node for node in found if node.op is offered_products]
    assert [spec.shape for spec in offered.specs] == [(N, N), (N, N), ()]
    first, last = (node for node in found if node.op is all_reduce_start)
    order = list(found)
    assert order.index(first) < order.index(offered) < order.index(last)
    assert sum(node.name == "matrix_product" for node in found) == 1
    waits = [node for node in found if node.op is all_reduce_wait]
    assert [wait.inputs[0].node for wait in waits] == [first, last]
    assert [wait.inputs[1] for wait in waits] == [offered.outputs[2]] * 2


def read_elsewhere(a, b, c, d):
    first = summed(product(a, b))
    kept = product(c, d)
    return [*waited(*first), *waited(*summed(kept)), kept]


def one_sum(a, b, c, d):
    return waited(*summed(product(a, b), product(c, d)))


def no_product(a, b, c, d):
    first = summed(product(a, b))
    return [*waited(*first), *waited(*summed(ops.tanh(product(c, d))))]


@pytest.mark.parametrize("step", [read_elsewhere, one_sum, no_product])
def test_others_are_not(step):
    assert not any(node.op is offered_products for node in graph(step))


def test_threads_that_share_a_product_need_no_help():
    dt.config.set_threads(2)
    test_others_are_not(lambda a, b, c, d: waited(*summed(product(a, b))) + waited(*summed(product(c, d))))
