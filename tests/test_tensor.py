"""`Tensor`, `Variable` and `KerasTensor`: values, protocols of Python and numpy, immutability, errors."""

from __future__ import annotations

import copy
import math
import operator
from typing import Any

import numpy as np
import pytest

from disttensor import dtypes, ops
from disttensor.autodiff import GradientTape
from disttensor.context import Spec, suspended
from disttensor.errors import ArgumentError, DTypeError, ShapeError, TracingError
from disttensor.graph.function import function
from disttensor.tensor import KerasTensor, Tensor, Variable, convert_to_tensor, is_tensor


class OnlyDLPack:
    """An array of another library, which offers nothing but DLPack."""

    def __init__(self, array: np.ndarray):
        self.array = array

    def __dlpack__(self, **arguments: Any) -> Any:
        return self.array.__dlpack__(**arguments)

    def __dlpack_device__(self) -> Any:
        return self.array.__dlpack_device__()


# Making tensors


@pytest.mark.parametrize("dtype", dtypes.ALL)
def test_a_tensor_has_a_shape_and_a_dtype(dtype: str) -> None:
    tensor = Tensor([[0, 1, 1]], dtype)
    assert (tensor.shape, tensor.dtype, tensor.ndim, tensor.size) == ((1, 3), dtype, 2, 3)
    assert tensor.spec == Spec((1, 3), dtype)
    assert tensor.numpy().dtype == dtypes.to_numpy(dtype)
    assert is_tensor(tensor)
    assert not is_tensor(tensor.numpy())


def test_tensors_are_made_of_tensors_variables_and_lists_of_them() -> None:
    variable = Variable([1.0, 2.0])
    tensor = convert_to_tensor([variable, Tensor([3.0, 4.0])])
    assert tensor.tolist() == [[1, 2], [3, 4]]
    assert convert_to_tensor([[tensor[0, 0]], [5.0]], "int32").tolist() == [[1], [5]]
    assert convert_to_tensor(tensor) is tensor
    assert convert_to_tensor(tensor, "float32") is tensor
    assert Tensor(variable).tolist() == [1, 2]
    assert convert_to_tensor(variable, "int32").dtype == "int32"


@pytest.mark.parametrize("value", ["text", None, {"a": 1}])
def test_what_is_not_numbers_cannot_be_a_tensor(value: Any) -> None:
    with pytest.raises(DTypeError, match="cannot make a Tensor of"):
        convert_to_tensor(value)


def test_dlpack_goes_both_ways() -> None:
    source = np.arange(6, dtype=np.float32).reshape(2, 3)
    tensor = convert_to_tensor(OnlyDLPack(source))
    source[0, 0] = 9
    assert tensor.tolist() == [[0, 1, 2], [3, 4, 5]]
    exported = np.from_dlpack(tensor)
    np.testing.assert_array_equal(exported, tensor)
    assert not np.shares_memory(exported, tensor.array)


# A tensor never changes


def test_writing_into_the_source_changes_nothing() -> None:
    source = np.zeros(2)
    tensor = Tensor(source)
    source[0] = 1
    assert tensor.tolist() == [0, 0]


def test_what_is_handed_out_cannot_change_the_tensor() -> None:
    tensor = Tensor([1.0, 2.0])
    tensor.numpy()[0] = 5
    np.array(tensor)[0] = 5
    view = np.asarray(tensor)
    with pytest.raises(ValueError, match="read-only"):
        view[0] = 5
    with pytest.raises(TypeError, match="item assignment"):
        tensor[0] = 5  # type: ignore[index]
    assert tensor.tolist() == [1, 2]


# Protocols


def test_numpy_reads_tensors() -> None:
    tensor = Tensor([1.0, 2.0])
    assert np.shares_memory(np.asarray(tensor), tensor.array)
    assert np.asarray(tensor, dtype="float64").dtype == np.float64
    with pytest.raises(ValueError, match="without a copy"):
        np.array(tensor, dtype="float64", copy=False)


def test_python_reads_scalars() -> None:
    scalar = Tensor(3)
    assert (int(scalar), float(scalar), complex(scalar), scalar.item()) == (3, 3.0, 3 + 0j, 3)
    assert [10, 11, 12, 13][scalar] == 13
    assert f"{Tensor(math.pi):.2f}" == "3.14"
    assert bool(Tensor(1.0))
    assert not bool(Tensor(False))


def test_python_refuses_what_is_no_scalar_or_has_no_axes() -> None:
    with pytest.raises(TypeError, match="integer scalar can be an index, not a Tensor float32"):
        range(Tensor(1.0))
    with pytest.raises(ValueError, match="ambiguous"):
        bool(Tensor([1, 2]))
    with pytest.raises(TypeError, match="without axes"):
        len(Tensor(1))
    with pytest.raises(TypeError, match="without axes"):
        iter(Tensor(1))


def test_iteration_and_indices() -> None:
    x = np.arange(24).reshape(2, 3, 4)
    tensor = Tensor(x)
    assert len(tensor) == 2
    assert [row.tolist() for row in tensor] == x.tolist()
    for index in (0, -1, (1, 2), (..., 0), (slice(None), slice(0, 3, 2)), None, (0, None, slice(None, None, -1))):
        np.testing.assert_array_equal(tensor[index], x[index])
    np.testing.assert_array_equal(tensor.T, x.T)


OPERATORS = [
    operator.add, operator.sub, operator.mul, operator.truediv, operator.floordiv, operator.mod, operator.pow,
    operator.lt, operator.le, operator.gt, operator.ge, operator.eq, operator.ne,
]  # fmt: skip


@pytest.mark.parametrize("apply", OPERATORS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("kind", [Tensor, Variable])
def test_operators_take_numbers_and_arrays_on_both_sides(apply: Any, kind: Any) -> None:
    x, y = np.array([1.0, 2.0, 5.0]), np.array([3.0, 2.0, 1.0])
    for left, right in [(kind(x), kind(y)), (kind(x), y), (x, kind(y))]:
        result = apply(left, right)
        assert type(result) is Tensor
        np.testing.assert_array_equal(result, apply(x, y))
    np.testing.assert_array_equal(apply(kind(x), 2), apply(x, 2))
    np.testing.assert_array_equal(apply(2, kind(x)), apply(2, x))


def test_unary_operators_bits_and_matrices() -> None:
    x = np.array([[1, -2], [3, 4]])
    tensor = Tensor(x)
    np.testing.assert_array_equal(-tensor, -x)
    np.testing.assert_array_equal(abs(tensor), abs(x))
    np.testing.assert_array_equal(~tensor, ~x)
    np.testing.assert_array_equal(tensor & 1, x & 1)
    np.testing.assert_array_equal(2 | tensor, 2 | x)
    np.testing.assert_array_equal(tensor ^ x, x ^ x)
    np.testing.assert_array_equal(tensor @ x, x @ x)
    np.testing.assert_array_equal(x @ tensor, x @ x)
    assert +tensor is tensor
    assert round(Tensor([1.26, 2.5]), 1).tolist() == pytest.approx([1.3, 2.5])
    assert [t.tolist() for t in divmod(Tensor(7), 2)] == [3, 1]


def test_a_tensor_is_equal_to_itself_as_a_key() -> None:
    tensor = Tensor([1.0, 2.0])
    assert {tensor: 1}[tensor] == 1
    assert (tensor == None) is False  # noqa: E711
    assert (tensor != None) is True  # noqa: E711


def test_repr_tells_shape_dtype_and_values() -> None:
    assert repr(Tensor([1, 2])) == "Tensor(shape=(2,), dtype=int32, [1, 2])"
    assert "\n" in repr(Tensor([[1], [2]]))
    assert "..." in repr(Tensor(np.zeros(1000)))
    variable = Variable([1, 2], trainable=False, name="count")
    assert repr(variable) == "Variable(path='count', shape=(2,), dtype=int32, trainable=False, [1, 2])"
    assert repr(KerasTensor((None, 3), name="x")) == "KerasTensor(shape=(None, 3), dtype=float32, name='x')"


def test_tensors_can_be_copied() -> None:
    tensor = Tensor([1.0, 2.0])
    assert copy.deepcopy(tensor).tolist() == [1, 2]


# Traced tensors


@pytest.mark.parametrize("ask", [float, bool, np.asarray, lambda x: x.numpy(), lambda x: [x][int(x)]])
def test_a_traced_tensor_has_no_numbers_and_says_where_they_were_wanted(ask: Any) -> None:
    with pytest.raises(TracingError, match=r"test_tensor\.py:\d+ in .*no numbers yet.*ops\.where"):
        function(lambda x: ask(x))(Tensor(1.0))


def test_a_traced_tensor_must_not_be_kept() -> None:
    kept: list[Tensor] = []
    function(lambda x: kept.append(x) or x + 1)(Tensor(1.0))
    assert "traced" in repr(kept[0])
    with pytest.raises(TracingError, match="add got a value of a function that was traced earlier"):
        kept[0] + 1


# Variables


def test_a_variable_is_a_place() -> None:
    variable = Variable([1.0, 2.0])
    before, memory = variable.value, variable.memory
    variable.assign([3, 4])
    assert (before.tolist(), variable.value.tolist()) == ([1, 2], [3, 4])
    assert variable.memory is memory
    assert variable.assign_add(1) is variable
    assert variable.assign_sub([0.5, 0.5]).numpy().tolist() == [3.5, 4.5]
    assert memory.tolist() == [3.5, 4.5]
    assert memory.ctypes.data % 64 == 0


def test_reading_twice_gives_one_snapshot_until_memory_is_touched() -> None:
    variable = Variable([1.0])
    first = variable.value
    assert variable.value is first
    variable.memory[0] = 2
    variable.touch()
    assert (first.tolist(), variable.value.tolist()) == ([1], [2])
    variable.numpy()[0] = 7
    np.asarray(variable)[0] = 7
    assert variable.value.tolist() == [2]


def test_an_assignment_casts_but_keeps_the_shape() -> None:
    variable = Variable([1, 2], dtype="float32")
    variable.assign(Tensor([3, 4]))
    assert variable.value.dtype == "float32"
    with pytest.raises(ShapeError, match=r"'weights' has shape \(2,\) and cannot be assigned a value of shape \(3,\)"):
        Variable([1.0, 2.0], name="weights").assign([1, 2, 3])
    with pytest.raises(ShapeError, match="cannot be assigned"):
        variable.assign(0.0)
    assert variable.numpy().tolist() == [3, 4]


def test_a_variable_may_be_computed_by_an_initializer() -> None:
    variable = Variable(lambda shape, dtype: np.full(shape, 2, dtype), shape=(2, 3), dtype="float64")
    assert (variable.shape, variable.dtype, variable.size) == ((2, 3), "float64", 6)
    with pytest.raises(ArgumentError, match="callable initializer needs a shape"):
        Variable(lambda shape, dtype: None)
    with pytest.raises(ShapeError, match=r"initial value has shape \(2,\), not \(3,\)"):
        Variable([1, 2], shape=(3,))


def test_a_variable_reads_like_a_tensor() -> None:
    variable = Variable([1.0, 2.0])
    assert len(variable) == 2
    assert [x.item() for x in variable] == [1, 2]
    assert variable[1].item() == 2
    assert float(Variable(2.0)) == 2
    assert int(Variable(2)) == 2
    assert bool(Variable(True))


def test_a_traced_assignment_is_seen_by_later_reads() -> None:
    variable = Variable(1.0)

    @function
    def step(x: Tensor) -> Tensor:
        variable.assign_add(x)
        return variable.value * 10

    assert [step(Tensor(2.0)).item(), step(Tensor(3.0)).item()] == [30, 60]
    assert float(variable) == 6


# Keras tensors and contexts


@pytest.mark.parametrize("ask", [bool, list, np.asarray])
def test_a_keras_tensor_has_no_values(ask: Any) -> None:
    with pytest.raises(TracingError, match="KerasTensor"):
        ask(KerasTensor((None, 3)))


def test_a_keras_tensor_is_no_tensor_to_convert() -> None:
    with pytest.raises(ArgumentError, match="has no values; pass it to a layer"):
        convert_to_tensor(KerasTensor((2,)))


def test_suspended_code_is_neither_recorded_nor_traced() -> None:
    variable = Variable(2.0)
    with GradientTape() as tape:
        y = variable * 3
        with suspended():
            z = variable * variable
    assert tape.gradient([y, z], variable).item() == 3

    def traced(x: Tensor) -> Tensor:
        with suspended():
            assert ops.exp(0.0).item() == 1
        return x

    assert function(traced)(Tensor(1.0)).item() == 1
