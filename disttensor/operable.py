"""Python's operators for everything that behaves like a tensor.

The module lies below the operators of `disttensor.ops`, which are bound when that package is imported
(`bind_operators`), so that no import points upwards.
"""

from __future__ import annotations

from typing import Any

namespace: Any = None


def bind_operators(operators: Any) -> None:
    """Say which functions do the arithmetic; called once by `disttensor.ops`."""
    global namespace
    namespace = operators


class Operable:
    """The operators of Python, in terms of `disttensor.ops`; shared by tensors, variables and Keras tensors."""

    __slots__ = ()
    __array_priority__ = 100
    # numpy must leave `array + tensor` to us instead of adding element by element.
    __array_ufunc__ = None

    dtype: str
    shape: Any

    @property
    def ndim(self) -> int:
        """How many axes."""
        return len(self.shape)

    def to_tensor(self) -> Any:
        """What it is worth now, as a `Tensor`."""
        raise NotImplementedError

    @property
    def T(self) -> Any:
        """The transpose: axes in reversed order."""
        return namespace.transpose(self)

    def __add__(self, other: Any) -> Any:
        return namespace.add(self, other)

    def __radd__(self, other: Any) -> Any:
        return namespace.add(other, self)

    def __sub__(self, other: Any) -> Any:
        return namespace.subtract(self, other)

    def __rsub__(self, other: Any) -> Any:
        return namespace.subtract(other, self)

    def __mul__(self, other: Any) -> Any:
        return namespace.multiply(self, other)

    def __rmul__(self, other: Any) -> Any:
        return namespace.multiply(other, self)

    def __truediv__(self, other: Any) -> Any:
        return namespace.true_divide(self, other)

    def __rtruediv__(self, other: Any) -> Any:
        return namespace.true_divide(other, self)

    def __floordiv__(self, other: Any) -> Any:
        return namespace.floor_divide(self, other)

    def __rfloordiv__(self, other: Any) -> Any:
        return namespace.floor_divide(other, self)

    def __mod__(self, other: Any) -> Any:
        return namespace.mod(self, other)

    def __rmod__(self, other: Any) -> Any:
        return namespace.mod(other, self)

    def __divmod__(self, other: Any) -> Any:
        return self // other, self % other

    def __pow__(self, other: Any) -> Any:
        return namespace.power(self, other)

    def __rpow__(self, other: Any) -> Any:
        return namespace.power(other, self)

    def __matmul__(self, other: Any) -> Any:
        return namespace.matmul(self, other)

    def __rmatmul__(self, other: Any) -> Any:
        return namespace.matmul(other, self)

    def __neg__(self) -> Any:
        return namespace.negative(self)

    def __pos__(self) -> Any:
        return self

    def __abs__(self) -> Any:
        return namespace.absolute(self)

    def __invert__(self) -> Any:
        return namespace.bitwise_not(self)

    def __round__(self, ndigits: int = 0) -> Any:
        return namespace.round(self, ndigits)

    def __and__(self, other: Any) -> Any:
        return namespace.bitwise_and(self, other)

    def __rand__(self, other: Any) -> Any:
        return namespace.bitwise_and(other, self)

    def __or__(self, other: Any) -> Any:
        return namespace.bitwise_or(self, other)

    def __ror__(self, other: Any) -> Any:
        return namespace.bitwise_or(other, self)

    def __xor__(self, other: Any) -> Any:
        return namespace.bitwise_xor(self, other)

    def __rxor__(self, other: Any) -> Any:
        return namespace.bitwise_xor(other, self)

    def __lt__(self, other: Any) -> Any:
        return namespace.less(self, other)

    def __le__(self, other: Any) -> Any:
        return namespace.less_equal(self, other)

    def __gt__(self, other: Any) -> Any:
        return namespace.greater(self, other)

    def __ge__(self, other: Any) -> Any:
        return namespace.greater_equal(self, other)

    def __getitem__(self, index: Any) -> Any:
        return namespace.getitem(self, index)

    def __eq__(self, other: Any) -> Any:
        return NotImplemented if other is None else namespace.equal(self, other)

    def __ne__(self, other: Any) -> Any:
        return NotImplemented if other is None else namespace.not_equal(self, other)

    __hash__ = object.__hash__
