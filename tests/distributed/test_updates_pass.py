"""Which updates ranks may do within the sums of gradients, and what has to be computed before such a sum starts."""

from types import SimpleNamespace

import numpy as np
import pytest

import disttensor as dt
from disttensor import ops
from disttensor.distributed.buckets import all_reduce_start, all_reduce_wait, unpack
from disttensor.ops.registry import apply

N = 8


def variable(name, number=1):
    """A variable that ranks have shared as so many-th; 0 if never, None if they cannot."""
    made = dt.Variable(np.ones((N, N), np.float32), name=name)
    made.single_copy = None if number is None else Copy(name, number)
    return made


class Copy(SimpleNamespace):
    def __init__(self, name, number):
        super().__init__(name=name, number=number)

    def leave(self, for_good):
        """As is done where ranks do not sum in machine code."""


def summed(gradient):
    """A gradient that makes a bucket by itself, as the pass for all-reduces leaves it."""
    attrs = {"starts": (0,), "runs": (N * N,), "factors": (1.0,)}
    start = apply(all_reduce_start, [ops.reshape(gradient, (-1,)), dt.constant(0.5, dtype="float32")], attrs)
    total = apply(all_reduce_wait, [start], {})
    return apply(unpack, [total], {"start": 0, "shape": (N, N)})


class Step:
    """A step of two layers with momentum, and a learning rate that is computed."""

    def __init__(self, number=1, kept=lambda step, mean: None, rate=None, direction=lambda mean: mean):
        self.w, self.u = variable("w"), variable("u", number)
        self.v = variable("v", number)
        self.count = dt.Variable(1.0)
        self.kept, self.rate, self.direction = kept, rate, direction

    def __call__(self, x):
        Step.x = x
        h = ops.matmul(x, self.w)
        g = ops.tanh(ops.matmul(h, self.u))
        mean = summed(ops.matmul(ops.transpose(h), g))
        back = ops.matmul(g, ops.transpose(self.u))  # reads u behind its gradient
        other = summed(ops.matmul(ops.transpose(x), back))
        rate = 0.1 / ops.sqrt(self.count.value) if self.rate is None else self.rate(other)
        self.count.assign_add(1.0)
        self.v.assign(0.9 * self.v.value - self.direction(mean) * rate)
        self.u.assign_add(self.v.value)
        self.w.assign_sub(other * rate)
        return self.kept(self, mean)

    def graph(self):
        return dt.function(self.__call__).graph(dt.constant(np.ones((3, N), np.float32)))


def names(graph):
    return [node.name for node in graph if node.kind == "operator"]


def starts(graph):
    return [node for node in graph if node.op is all_reduce_start]


def needs(graph, node):
    """All that a node needs."""
    found, stack = set(), [node]
    while stack:
        for value in stack.pop().inputs:
            if id(value.node) not in found:
                found.add(id(value.node))
                stack.append(value.node)
    return [other for other in graph if id(other) in found]


def leaf(graph, variable):
    return next(node for node in graph if node.source is variable)


def test_a_sum_is_told_which_loops_update_what():
    step = Step()
    graph = step.graph()
    first, second = starts(graph)
    assert [len(update.outputs) for update in first.attrs["updates"]] == [2]
    assert [len(update.outputs) for update in second.attrs["updates"]] == [1]
    (update,) = first.attrs["updates"]
    assert {copy.name for copy in update.copies} == {"u", "v"}
    more = first.inputs[2:]
    changed = {more[number].node for number in update.outputs}
    sources = {(n.inputs[0].node if n.name == "fence" else n).source for n in changed}
    assert sources == {step.u, step.v}
    assert graph.updated_in_sums == {step.u, step.v, step.w}
    assert names(graph).count("fused_unless_summed") == 2


def test_what_reads_old_values_and_the_learning_rate_come_before_the_sum():
    graph = Step().graph()
    first, second = starts(graph)
    products = [node for node in graph if node.name in ("matrix_product", "offered_products")]
    assert len(products) == 5
    before = needs(graph, first)
    assert sum(node in products for node in before) == 4  # all but the gradient of w
    rate = next(value.node for update in first.attrs["updates"] for value in first.inputs[2:] if value.spec.shape == ())
    assert rate in before
    order = list(graph)
    assert order.index(first) < order.index(products[-1]) < order.index(second)


def test_what_a_sum_changes_is_known():
    graph = Step().graph()
    for start in starts(graph):
        changed = all_reduce_start.changes_rule(*[v.spec for v in start.inputs], **start.attrs)
        update = start.attrs["updates"][0]
        assert changed == [2 + number for number in update.outputs]


DIVIDED = {  # and how many sums are needed
    "the sum is read elsewhere": ({"kept": lambda step, mean: ops.sum(mean)}, 1),
    "elements depend on others": ({"direction": lambda mean: mean / ops.norm(mean)}, 1),
    "elements depend on others of their row": ({"direction": lambda mean: ops.softmax(mean)}, 1),
    "the rate depends on a sum": ({"rate": lambda other: 0.1 / ops.sqrt(ops.sum(other))}, 2),
}


@pytest.mark.parametrize(("case", "sums"), DIVIDED.values(), ids=DIVIDED.keys())
def test_loops_that_need_more_than_their_elements_are_divided(case, sums):
    step = Step(**case)
    graph = step.graph()
    assert not starts(graph)[0].attrs.get("updates"), graph
    start = starts(graph)[sums - 1]
    behind = start.attrs["behind"]
    loops = [node for node in graph if node.name == "fused_divided"]
    assert [loop.attrs["copies"] for loop in loops] == [one.copies for one in behind]
    ours = next(loop for loop in loops if len(loop.specs) == 2)
    assert {copy.name for copy in ours.attrs["copies"]} == {"u", "v"}
    assert ours.inputs[-1].node.op is all_reduce_wait
    assert ours.inputs[-1].node.inputs[0].node is start
    assert graph.updated_in_sums == {step.u, step.v, step.w}
    # What reads old values comes before the sum.
    views = [node for node in graph if node.name == "permute" and node.inputs[0].node.source is step.u]
    both = [
        n
        for n in needs(graph, start)
        if n.name == "matrix_product" and n.inputs[1].node in (*views, leaf(graph, step.u))
    ]
    assert len(both) == 2


def test_the_longest_loops_are_divided_if_there_are_many():
    tables = []
    for i, rows in enumerate((1, 5, 2, 4, 3)):
        tables.append(dt.Variable(np.ones((rows, N), np.float32), name=f"{rows} rows"))
        tables[-1].single_copy = Copy(f"{rows} rows", i + 1)

    def step(x):
        mean = summed(ops.matmul(ops.transpose(x), x))
        for table in tables:
            rows = mean[: table.shape[0]]
            table.assign_sub(rows / ops.norm(rows))

    graph = dt.function(step).graph(dt.constant(np.ones((3, N), np.float32)))
    (start,) = starts(graph)
    assert [one.copies[0].name for one in start.attrs["behind"]] == ["5 rows", "4 rows", "3 rows"]
    numbers = {n.attrs["copies"][0].name: n.attrs["number"] for n in graph if n.name == "fused_divided"}
    assert numbers == {"5 rows": 0, "4 rows": 1, "3 rows": 2}
    assert graph.updated_in_sums == {table for table in tables if table.shape[0] > 2}


SPOILT = {
    "the new value is read": {"kept": lambda step, mean: ops.sum(step.v.value)},
    "the rate is this rank's own": {"rate": lambda other: ops.sum(other) * ops.sum(Step.x)},
    "the direction is this rank's own": {"direction": lambda mean: mean / ops.norm(mean) + Step.x[0]},
}


@pytest.mark.parametrize("spoilt", SPOILT.values(), ids=SPOILT.keys())
def test_other_updates_stay_as_they_are(spoilt):
    step = Step(**spoilt)
    graph = step.graph()
    assert not starts(graph)[0].attrs.get("updates"), graph
    assert not graph.updated_in_sums & {step.u, step.v}


@pytest.mark.parametrize("read", [lambda value: value, lambda value: value[2:4], lambda value: ops.reshape(value, -1)])
def test_a_sum_does_not_change_what_is_a_result_as_it_was(read):
    class Keeping(Step):
        def __call__(self, x):
            old = read(self.u.value)
            super().__call__(x)
            return old

    step = Keeping()
    assert step.graph().updated_in_sums == {step.w}


def test_what_may_raise_comes_before_the_sums():
    class Looking(Step):
        def __call__(self, x):
            super().__call__(x)
            return ops.take(dt.constant([1.0, 2.0]), ops.cast(x[0], "int32"))

    graph = Looking().graph()
    first, second = starts(graph)
    for start in first, second:
        assert start.attrs["updates"]
        assert "gather" in names(needs(graph, start))


@pytest.mark.parametrize("number", [None, 0])
def test_variables_that_are_not_shared_stay_as_they_are(number):
    step = Step(number)
    graph = step.graph()
    assert [bool(start.attrs.get("updates")) for start in starts(graph)] == [False, True]
    assert graph.updated_in_sums == {step.w}


def test_without_variables_that_can_be_shared_the_graph_is_what_it_was():
    step = Step(None)
    step.w.single_copy = None
    graph = step.graph()
    assert graph.history[-1][::2] == ("update_in_sums", False)
    assert "fused_unless_summed" not in names(graph)
