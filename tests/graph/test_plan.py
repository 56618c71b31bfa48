"""Plans: memory, in-place results, updates of variables, and that nothing leaks out or stays behind."""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from disttensor import ops
from disttensor.context import Spec
from disttensor.graph import Graph, Node, Plan, function
from disttensor.graph.memory import ALIGNMENT, Lifetime, place
from disttensor.ops.recurrent import lstm_sequence
from disttensor.ops.registry import OPERATORS, apply, operator
from disttensor.tensor import Tensor, Variable


@pytest.fixture
def gather():
    """An operator that lets its inputs be computed in its result, with the arrays that it got."""
    seen = []

    @operator()
    def gather_for_test(out, *arrays):
        seen[:] = [out, *arrays]
        for row, x in zip(out, arrays, strict=True):
            np.copyto(row, x.reshape(-1))

    gather_for_test.infer(lambda *specs: Spec((len(specs), 6), specs[0].dtype))
    gather_for_test.allocate(lambda spec: np.zeros(spec.shape, spec.dtype))
    gather_for_test.destinations(lambda out, *specs: [row.reshape(s.shape) for row, s in zip(out, specs, strict=True)])
    yield gather_for_test, seen
    del OPERATORS["gather_for_test"]


@pytest.fixture
def reader():
    """An operator that reads operands in memory that it gave for them, with the arrays that it gave, and got."""
    given, got = [], []

    @operator()
    def read_for_test(out, *arrays):
        got[:] = arrays
        out[...] = sum(np.sum(array) for array in arrays)

    def allocate(spec):
        given.append(np.full(spec.shape, np.nan, spec.dtype))
        return given[-1]

    read_for_test.infer(lambda *specs: Spec((), specs[0].dtype))
    read_for_test.allocate_operands(allocate)
    yield read_for_test, given, got
    del OPERATORS["read_for_test"]


lifetimes = st.lists(
    st.tuples(st.integers(0, 1000), st.integers(0, 20), st.integers(0, 10)).map(lambda t: (t[0], t[1], t[1] + t[2])),
    max_size=30,
).map(lambda blocks: [Lifetime(*b) for b in sorted(blocks, key=lambda b: b[1])])


@given(lifetimes)
def test_buffers_alive_together_do_not_overlap(blocks):
    offsets, total = place(blocks)
    for i, (a, start) in enumerate(zip(blocks, offsets, strict=True)):
        assert start % ALIGNMENT == 0
        assert start + a.size <= total
        for b, other in zip(blocks[:i], offsets[:i], strict=True):
            together = a.first <= b.last and b.first <= a.last
            assert not together or start + a.size <= other or other + b.size <= start


def test_memory_is_used_again():
    _, total = place([Lifetime(64, i, i + 1) for i in range(100)])
    assert total == 128


def test_a_chain_of_elementwise_operators_works_in_place():
    chain = function(lambda x: ops.exp(ops.tanh(x * 2 + 1)) - 3)
    x = np.zeros(1000, np.float32)
    assert chain.plan(x).arena_bytes < 2 * x.nbytes + 1024


def test_an_operand_is_overwritten_also_through_a_view_of_all_of_it():
    through = function(lambda x: ops.exp(ops.reshape(ops.sin(x), (10, 100))) * 2)
    x = np.linspace(-1, 1, 1000, dtype=np.float32)
    assert through.plan(x).arena_bytes < x.nbytes + ALIGNMENT
    np.testing.assert_array_equal(through(x), ops.exp(ops.reshape(ops.sin(x), (10, 100))) * 2)
    turned = function(lambda x: ops.transpose(ops.sin(x)) + ops.sin(x))  # where the order of elements differs
    x = x[:900].reshape(30, 30)
    wave = ops.sin(x).numpy()
    np.testing.assert_array_equal(turned(x), wave.T + wave)


def test_operators_say_which_operands_they_overwrite():
    rng = np.random.default_rng(0)
    shapes = ((3, 5, 32), (8, 32), (32,), (3, 8), (3, 8))
    z, u, bias, h, c = (rng.normal(size=shape).astype("float32") for shape in shapes)
    mask = rng.random((3, 5)) < 0.8

    def gates(z):
        return lstm_sequence(ops.sin(z), u, bias, h, c, mask)[2]

    def gates_and_operand(z):
        wave = ops.sin(z)
        return lstm_sequence(wave, u, bias, h, c, mask)[2], ops.cos(wave)

    planned = function(gates)
    assert planned.plan(z).memory().buffers[0].spec.shape == z.shape
    assert sum(buffer.spec.shape == z.shape for buffer in planned.plan(z).memory().buffers) == 1
    np.testing.assert_array_equal(planned(z), gates(z))
    for actual, expected in zip(function(gates_and_operand)(z), gates_and_operand(z), strict=True):
        np.testing.assert_array_equal(actual, expected)


def test_results_are_computed_in_their_part_of_a_larger_one(gather):
    op, seen = gather
    x = Node("input", [Spec((2, 3), "float32")])
    square = Node("operator", x.specs, ops.square, x.outputs)
    flat = Node("operator", [Spec((6,), "float32")], OPERATORS["change_shape"], square.outputs, {"new_shape": (6,)})
    used_twice = Node("operator", x.specs, ops.exp, x.outputs)
    together = Node("operator", [Spec((3, 6), "float32")], op, [*flat.outputs, *used_twice.outputs, *x.outputs])
    plan = Plan(Graph([x], [*together.outputs, *used_twice.outputs], {}))
    value = np.arange(6, dtype=np.float32).reshape(2, 3)
    result, other = plan.run([value])
    np.testing.assert_array_equal(result, [value.ravel() ** 2, other.ravel(), value.ravel()])
    inside = [np.shares_memory(seen[0], array) for array in seen[1:]]
    assert inside == [True, False, False]  # also through a view; not what others read, not an input


def test_results_do_not_alias_the_plan():
    double = function(lambda x: 2 * x)
    first = double(np.float32([1, 2]))
    second = double(np.float32([5, 6]))
    assert first.tolist() == [2, 4]
    assert second.tolist() == [10, 12]


def test_an_input_may_be_returned():
    same = function(lambda x: x)
    x = np.float32([1, 2])
    result = same(x)
    x[:] = 0
    assert result.tolist() == [1, 2]


def test_a_variable_is_updated_in_its_own_memory():
    counter = Variable([0.0])
    memory = counter.memory

    @function
    def count():
        counter.assign_add([1.0])
        return counter.value * 10

    assert [float(count()[0]) for _ in range(3)] == [10, 20, 30]
    assert counter.memory is memory
    assert memory[0] == 3


@pytest.fixture
def two_copies():
    """An operator whose results may lie in the variables that they update."""

    @operator(into_variables=True)
    def two_copies_for_test(outs, x):
        np.copyto(outs[0], x)
        np.copyto(outs[1], x)

    two_copies_for_test.infer(lambda x: (x, x))
    yield two_copies_for_test
    del OPERATORS["two_copies_for_test"]


@pytest.mark.parametrize("late", [False, True])
def test_results_fill_the_variables_that_they_update_unless_old_values_are_read_later(two_copies, late):
    a, b = Variable(np.zeros(1000)), Variable(np.ones(1000))

    @function
    def fill(x):
        old = a.value
        first, second = apply(two_copies, [x], {})
        a.assign(first)
        b.assign(second)
        return ops.sum(old + first * 0) if late else ops.sum(x)

    x = np.arange(1000.0)
    assert [float(fill(x)) for _ in range(2)] == ([0, x.sum()] if late else [x.sum()] * 2)
    np.testing.assert_array_equal(a.numpy(), x)
    np.testing.assert_array_equal(b.numpy(), x)
    inside = sum(buffer.operator == "two_copies_for_test" for buffer in fill.plans[0].memory().buffers)
    assert inside == late  # of a, whose old values are read later


def test_old_values_are_read_before_they_are_overwritten():
    a, b = Variable([1.0]), Variable([2.0])

    @function
    def swap():
        old = a.value
        a.assign(b)
        b.assign(old)
        return old

    assert float(swap()[0]) == 1
    assert (a.numpy()[0], b.numpy()[0]) == (2, 1)


@pytest.mark.parametrize("late", [lambda old: old * 1, lambda old: ops.reshape(old, (2, 1)) + 0, lambda old: old])
def test_an_old_value_that_is_used_after_the_update_survives(late):
    v = Variable([1.0, 2.0])

    @function
    def step():
        old = v.value
        v.assign(old + 10)
        return late(old), v.value

    for start in (1, 11, 21):
        old, new = step()
        assert old.numpy().ravel().tolist() == [start, start + 1]
        assert new.tolist() == [start + 10, start + 11]


def test_a_transposed_operand_is_not_overwritten_while_it_is_read():
    square = np.arange(9, dtype=np.float32).reshape(3, 3)

    @function
    def symmetric(x):
        y = x * 1
        return y + ops.transpose(y)

    np.testing.assert_array_equal(symmetric(square), square + square.T)


def test_a_snapshot_taken_before_the_run_stays():
    v = Variable([1.0])
    before = v.value
    function(lambda: v.assign_add([1.0]))()
    assert before.tolist() == [1]
    assert v.value.tolist() == [2]


def test_a_loop_behind_another_does_not_overwrite_what_that_reads():
    """Together they have too many steps for one; the second's wider result lies where the first's operand was."""

    def run(x):
        y = ops.cumsum(x - 0.5)
        for i in range(47):
            y = y * 0.99 + i / 64
        y = ops.cast(y * 100, "int32")
        z = ops.cast(y, "float64")
        for i in range(47):
            z = z * 0.99 + i / 64
        return y, ops.sort(z)

    x = Tensor(np.random.default_rng(0).uniform(size=100_000).astype("float32"))
    for eager, planned in zip(run(x), function(run)(x), strict=True):
        assert np.array_equal(eager.numpy(), planned.numpy())


programs = st.lists(
    st.tuples(st.sampled_from("aAmMsrt"), st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=25
)


@settings(max_examples=60)
@given(programs, st.integers(0, 2**16))
def test_random_programs_give_the_same_bits_eagerly_and_planned(program, seed):
    """Registers are combined at random, with views, reductions and assignments in between."""
    rng = np.random.default_rng(seed)
    start = rng.normal(size=(3, 3)).astype("float32")

    def run(x):
        registers = [x, x + 1]
        for code, i, j in program:
            a, b = registers[i % len(registers)], registers[j % len(registers)]
            if code == "a":
                registers.append(a + b)
            elif code == "m":
                registers.append(ops.tanh(a) * b)
            elif code == "A":
                variable.assign(a)
            elif code == "M":
                registers.append(variable * a)
            elif code == "s":
                registers.append(ops.sum(a, axis=0) + b)
            elif code == "t":
                registers.append(ops.transpose(a))
            else:
                registers.append(ops.reshape(ops.reshape(a, (9,)), (3, 3)))
        return registers[-1], registers[len(registers) // 2]

    results = []
    for runner in (run, function(run)):
        variable = Variable(start * 2)
        twice = [runner(Tensor(start)), runner(Tensor(start))]
        results.append([t.numpy().tobytes() for pair in twice for t in pair] + [variable.numpy().tobytes()])
    assert results[0] == results[1]


def test_operands_lie_in_memory_that_their_reader_gives(reader):
    """Also views of them, those that others read before, and those that are computed in place of something else."""
    read, given, got = reader

    @function
    def step(x):
        product = ops.reshape(ops.matmul(x, x), (4, 9))
        last = ops.tanh(product)
        total = apply(read, [last, ops.reshape(ops.matmul(ops.reshape(last, (6, 6)), x), -1), x], {})
        return total, ops.exp(last)

    x = np.linspace(-1, 1, 36, dtype=np.float32).reshape(6, 6)
    product = ops.matmul(x, x).numpy()
    last = np.tanh(product)
    plan = step.plan(x)
    for _ in range(2):
        total, exponentials = plan.run([x])
        np.testing.assert_allclose(total, last.sum() + (last @ x).sum() + x.sum(), rtol=1e-4)
        np.testing.assert_allclose(exponentials, np.exp(last).reshape(4, 9), rtol=1e-6)
    assert len(given) == 2, "what is not computed in the plan stays where it is"
    assert [array.shape for array in got] == [(4, 9), (36,), (6, 6)]
    for memory, array in zip(given, got, strict=False):
        assert np.shares_memory(memory, array)
    assert plan.arena_bytes < 3 * x.nbytes
