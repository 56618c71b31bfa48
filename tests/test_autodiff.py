"""`GradientTape` and `custom_gradient`; the gradients of single operators are tested with the registry."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import numpy as np
import pytest

from disttensor import context, ops
from disttensor.autodiff import GradientTape, custom_gradient
from disttensor.errors import ArgumentError, ShapeError, TracingError
from disttensor.graph.function import function
from disttensor.tensor import Tensor, Variable


def test_variables_are_watched_and_tensors_on_request() -> None:
    variable, watched, other = Variable(3.0), Tensor(2.0), Tensor(5.0)
    with GradientTape() as tape:
        tape.watch(watched)
        y = variable * variable * watched * other
    assert tape.watched_variables() == [variable]
    gradients = tape.gradient(y, {"v": variable, "w": [watched, other]})
    assert gradients["v"].item() == 60
    assert gradients["w"][0].item() == 45
    assert gradients["w"][1] is None


def test_not_watched_are_variables_that_do_not_train_or_hold_integers_and_all_if_so_told() -> None:
    frozen, counter, weight = Variable(1.0, trainable=False), Variable(1), Variable(1.0)
    with GradientTape() as tape:
        y = frozen * counter * 2.0
    assert tape.watched_variables() == []
    assert tape.gradient(y, [frozen, counter]) == [None, None]
    with GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(frozen)
        y = frozen * weight * 3.0
    assert [g if g is None else g.item() for g in tape.gradient(y, [frozen, weight])] == [3, None]


@pytest.mark.parametrize(("value", "message"), [(Tensor([1, 2]), "got int32"), (1.0, "got float")], ids=str)
def test_only_differentiable_tensors_can_be_watched(value: Any, message: str) -> None:
    with GradientTape() as tape, pytest.raises(ArgumentError, match=message):
        tape.watch(value)


def test_a_tape_gives_gradients_once_unless_it_is_persistent() -> None:
    x = Variable(2.0)
    with GradientTape() as tape:
        y = x * x
    tape.gradient(y, x)
    with pytest.raises(ArgumentError, match=r"GradientTape\(persistent=True\)"):
        tape.gradient(y, x)
    with GradientTape(persistent=True) as tape:
        y, z = x * x, x * 5
    assert [tape.gradient(t, x).item() for t in (y, z, y)] == [4, 5, 4]


def test_a_used_tape_frees_what_it_held() -> None:
    x = Variable(2.0)
    with GradientTape() as tape:
        middle = x * 2
        alive = weakref.ref(middle)
        y = middle * middle
        del middle
    tape.gradient(y, x)
    gc.collect()
    assert alive() is None


def test_unconnected_sources_give_none_or_zeros() -> None:
    x, unused = Variable([1.0, 2.0]), Variable(np.ones((2, 3)), dtype="float64")
    with GradientTape(persistent=True) as tape:
        y = ops.sum(x)
    assert tape.gradient(y, unused) is None
    zeros = tape.gradient(y, unused, unconnected_gradients="zero")
    assert (zeros.dtype, zeros.tolist()) == ("float64", [[0] * 3] * 2)
    with pytest.raises(ArgumentError, match="'none' or 'zero'"):
        tape.gradient(y, x, unconnected_gradients="null")


def test_targets_are_summed_and_may_be_weighted() -> None:
    x = Variable([1.0, 2.0])
    with GradientTape(persistent=True) as tape:
        y, z = x * x, {"z": 3 * x}
    assert tape.gradient([y, z], x).tolist() == [5, 7]
    assert tape.gradient(y, x, output_gradients=Tensor([10.0, 100.0])).tolist() == [20, 400]
    assert tape.gradient([y, z], x, output_gradients=[Tensor([1.0, 1.0]), {"z": Tensor([0.0, 1.0])}]).tolist() == [2, 7]
    with pytest.raises(ShapeError, match=r"shape \(3,\) for a target of shape \(2,\)"):
        tape.gradient(y, x, output_gradients=Tensor([1.0, 2.0, 3.0]))
    with pytest.raises(ArgumentError, match="2 targets but 1"):
        tape.gradient([y, z], x, output_gradients=[Tensor([1.0, 1.0])])


def test_a_source_may_be_the_target_or_an_intermediate_value() -> None:
    x = Variable(3.0)
    with GradientTape(persistent=True) as tape:
        middle = x * 2
        y = middle * middle
    assert tape.gradient(y, middle).item() == 12
    assert tape.gradient(y, y).item() == 1
    assert tape.gradient(x, x).item() == 1


def test_gradients_have_shape_and_dtype_of_their_source() -> None:
    row, half = Variable(np.ones((1, 3), "float32")), Variable(2.0, dtype="float16")
    with GradientTape() as tape:
        y = row * half * np.ones((4, 1), "float64")
    gradients = tape.gradient(y, [row, half])
    assert [(g.shape, g.dtype) for g in gradients] == [((1, 3), "float32"), ((), "float16")]
    assert gradients[0].tolist() == [[8, 8, 8]]
    assert gradients[1].item() == 12


def test_a_variable_that_is_assigned_meanwhile_has_the_gradient_of_all_its_values() -> None:
    x = Variable(2.0)
    with GradientTape() as tape:
        y = x * x
        x.assign(10.0)
        y = y + 3 * x
    assert tape.gradient(y, x).item() == 2 * 2 + 3


def test_nested_tapes_give_higher_derivatives() -> None:
    x = Variable(2.0)
    with GradientTape() as third, GradientTape() as second:
        with GradientTape() as first:
            y = x**4
        slope = first.gradient(y, x)
        curvature = second.gradient(slope, x)
    assert (slope.item(), curvature.item(), third.gradient(curvature, x).item()) == (32, 48, 48)


def test_an_inner_gradient_enters_the_loss() -> None:
    x = Variable([1.0, 3.0])
    with GradientTape() as outer:
        with GradientTape() as inner:
            y = ops.sum(x**3)
        penalty = ops.sum(ops.square(inner.gradient(y, x)))
    assert outer.gradient(penalty, x).tolist() == [36, 36 * 27]


def test_a_tape_does_not_record_its_own_gradient_nor_what_is_done_while_it_is_stopped() -> None:
    x = Variable(2.0)
    with GradientTape(persistent=True) as tape:
        y = x * x
        slope = tape.gradient(y, x)
        with tape.stop_recording():
            hidden = x * 3
        seen = x * 5
    assert tape.gradient(slope, x) is None
    assert tape.gradient(hidden, x) is None
    assert tape.gradient(seen, x).item() == 5


def test_a_tape_that_is_reset_has_forgotten() -> None:
    x = Variable(2.0)
    with GradientTape(persistent=True) as tape:
        y = x * x
        tape.reset()
        z = x * 3
    assert tape.gradient(y, x) is None
    assert tape.gradient(z, x).item() == 3


def test_stop_gradient_counts_as_a_constant() -> None:
    x = Variable(3.0)
    with GradientTape() as tape:
        y = x * ops.stop_gradient(x * x)
    assert tape.gradient(y, x).item() == 9


def test_integers_and_comparisons_let_nothing_through() -> None:
    x = Variable([1.0, 2.5])
    with GradientTape(persistent=True) as tape:
        rounded = ops.cast(ops.cast(x, "int32"), "float32")
        mask = ops.where(x > 2, x, 0.0)
    assert tape.gradient(rounded, x) is None
    assert tape.gradient(mask, x).tolist() == [0, 1]


# Complex numbers: the gradient of a real loss points where it grows.


def test_gradient_of_a_modulus_is_the_number_itself() -> None:
    z = Variable(np.array([3 + 4j, 1 - 1j]))
    with GradientTape(persistent=True) as tape:
        square = ops.sum(ops.square(ops.absolute(z)))
        product = ops.sum(ops.real(z * ops.conj(z)))
    for loss in (square, product):
        np.testing.assert_allclose(tape.gradient(loss, z), 2 * z.numpy())


def test_descent_finds_a_complex_root() -> None:
    z = Variable(1 + 1j, dtype="complex128")
    for _ in range(200):
        with GradientTape() as tape:
            loss = ops.square(ops.absolute(z * z + 1))
        z.assign_sub(0.05 * tape.gradient(loss, z))
    np.testing.assert_allclose(z, 1j, atol=1e-6)


def test_real_sources_of_complex_values_have_real_gradients() -> None:
    x = Variable(2.0)
    with GradientTape() as tape:
        y = ops.imag(ops.square(ops.complex(x, 3.0)))
    gradient = tape.gradient(y, x)
    assert (gradient.dtype, gradient.item()) == ("float32", 6)


# Gradients of one's own


def test_a_custom_gradient_replaces_the_true_one() -> None:
    @custom_gradient
    def clipped(x: Tensor) -> Any:
        return x * 1.0, lambda upstream: ops.clip(upstream, -1, 1)

    x = Variable([1.0, 2.0])
    with GradientTape() as tape:
        y = clipped(x) * [10.0, 0.5]
    assert y.tolist() == [10, 1]
    assert tape.gradient(y, x).tolist() == [1, 0.5]


def test_a_custom_gradient_of_several_arguments_and_results() -> None:
    @custom_gradient
    def swap(x: Tensor, y: Tensor) -> Any:
        return {"a": y, "b": x}, lambda a, b: (100 * b, 10 * a)

    x, y = Variable(1.0), Variable(2.0)
    with GradientTape() as tape:
        result = swap(x, y)
        z = 2 * result["a"] + 3 * result["b"]
    assert [g.item() for g in tape.gradient(z, [x, y])] == [300, 20]


def test_a_custom_gradient_of_variables() -> None:
    weight = Variable(3.0)

    @custom_gradient
    def scaled(x: Tensor) -> Any:
        def gradient(upstream: Tensor, variables: list[Variable]) -> Any:
            assert variables == [weight]
            return upstream * 7, [upstream * 11]

        return weight * x, gradient

    x = Variable(2.0)
    with GradientTape() as tape:
        y = scaled(x)
    assert [g.item() for g in tape.gradient(y, [x, weight])] == [7, 11]


def test_without_a_tape_a_function_with_a_custom_gradient_is_recorded_by_none() -> None:
    recorders = []

    @custom_gradient
    def pair(x: Any) -> Any:
        recorders.append(context.state.recorders)
        return {"same": x, "double": 2 * x}, lambda **gradients: None

    x = Tensor(3.0)
    found = pair(x)
    assert {name: float(y) for name, y in found.items()} == {"same": 3.0, "double": 6.0}
    assert recorders == [()]


def test_a_custom_gradient_can_be_differentiated_again() -> None:
    @custom_gradient
    def cube(x: Tensor) -> Any:
        return x * x * x, lambda upstream: upstream * 3 * x * x

    x = Variable(2.0)
    with GradientTape() as outer:
        with GradientTape() as inner:
            y = cube(x)
        slope = inner.gradient(y, x)
    assert (slope.item(), outer.gradient(slope, x).item()) == (12, 12)


def test_a_custom_gradient_must_fit_the_arguments() -> None:
    @custom_gradient
    def wrong(x: Tensor, y: Tensor) -> Any:
        return x + y, lambda upstream: upstream

    x = Variable(1.0)
    with GradientTape() as tape:
        y = wrong(x, x)
    with pytest.raises(TracingError, match="'wrong' returned 1 gradients for 2 arguments"):
        tape.gradient(y, x)


def test_tapes_work_while_a_function_is_traced() -> None:
    weight = Variable([1.0, 2.0])

    def step(x: Tensor) -> Any:
        with GradientTape() as tape:
            loss = ops.sum(ops.square(weight * x))
        return loss, tape.gradient(loss, weight)

    x = Tensor([3.0, 4.0])
    (loss, gradient), (traced_loss, traced_gradient) = step(x), function(step)(x)
    assert (traced_loss.item(), traced_gradient.tolist()) == (loss.item(), gradient.tolist())
    assert gradient.tolist() == [18, 64]
