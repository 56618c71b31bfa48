"""`Tensor`, `Variable` and `KerasTensor`.

A `Tensor` is a value: it never changes. It holds a numpy array (*eager*), or stands for a value of the graph that is
being traced (*symbolic*); the class and its methods are the same, and shape and dtype are known in both. A
`Variable` is a place: its memory stays where it is while it lives, and `assign` writes into it. A `KerasTensor` is
neither: it is a shape (some dimensions unknown) and a dtype in a functional model that is being put together.
"""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import numpy as np

from disttensor import dtypes, operable
from disttensor.context import Shape, Shard, Spec, state, suspended
from disttensor.errors import ArgumentError, ShapeError, TracingError
from disttensor.kernels.native import aligned
from disttensor.operable import Operable

_names = itertools.count()


def aligned_empty(shape: Shape, dtype: str) -> np.ndarray:
    """An uninitialised C-contiguous array that starts at a cache line."""
    return aligned(shape, dtypes.to_numpy(dtype))


class Tensor(Operable):
    """An n-dimensional array that never changes.

    Parameters
    ----------
    value : array-like
        Numbers, nested lists of numbers, a numpy array (copied), a `Tensor` or a `Variable`.
    dtype : dtype, optional
        Default: that of the value; Python floats become `config.floatx`, Python ints int32.

    Attributes
    ----------
    shape : tuple of int
    dtype : str
    shard : Shard or None
        Set when the tensor was computed from this rank's slice of a global batch.
    """

    __slots__ = ("_array", "_symbol", "dtype", "shape", "shard", "_keras_mask", "__weakref__")

    def __init__(self, value: Any, dtype: Any = None):
        source = convert_to_tensor(value, dtype)
        if source.is_symbolic:
            raise TracingError("Tensor(...) cannot copy a traced value; use ops.convert_to_tensor(value).")
        self._setup(source.shape, source.dtype, source._array, None, source.shard)

    def _setup(self, shape: Shape, dtype: str, array: np.ndarray | None, symbol: Any, shard: Shard | None) -> None:
        self._array = array
        self._symbol = symbol
        self.shape = shape
        self.dtype = dtype
        self.shard = shard
        self._keras_mask = None

    @classmethod
    def wrap(cls, array: np.ndarray, shard: Shard | None = None) -> Tensor:
        """An eager tensor around an array that the caller promises never to change (no copy)."""
        self = cls.__new__(cls)
        # Spelled out, because a step of a small model makes a few of these and does not take much longer.
        self._array = array
        self._symbol = self._keras_mask = None
        self.shape = array.shape
        self.dtype = dtypes.name_of(array.dtype)
        self.shard = shard
        return self

    @classmethod
    def symbolic(cls, spec: Spec, symbol: Any, shard: Shard | None = None) -> Tensor:
        """A tensor that stands for a value of the graph being traced."""
        self = cls.__new__(cls)
        self._setup(spec.shape, spec.dtype, None, symbol, shard)
        return self

    @property
    def is_symbolic(self) -> bool:
        """Whether this stands for a value in a graph and has no numbers yet."""
        return self._symbol is not None

    @property
    def symbol(self) -> Any:
        """The graph value this stands for, or None."""
        return self._symbol

    @property
    def spec(self) -> Spec:
        """Shape and dtype together."""
        return Spec(self.shape, self.dtype)

    @property
    def size(self) -> int:
        """How many elements."""
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def array(self) -> np.ndarray:
        """The numpy array itself; do not write into it. See `numpy` for a copy."""
        if self._array is None:
            raise _traced_value_error("its numbers (numpy(), float(), a comparison of numpy, …)", self)
        return self._array

    def numpy(self) -> np.ndarray:
        """The values as a new numpy array."""
        return self.array.copy()

    def item(self) -> Any:
        """The value of a tensor with one element, as a Python number."""
        return self.array.item()

    def tolist(self) -> Any:
        """The values as nested Python lists."""
        return self.array.tolist()

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        array = self.array
        if dtype is not None and np.dtype(dtype) != array.dtype:
            if copy is False:
                raise ValueError(f"a Tensor of dtype {self.dtype} cannot become {dtype} without a copy.")
            return array.astype(dtype)
        if copy:
            return array.copy()
        view = array.view()
        view.flags.writeable = False
        return view

    def __dlpack__(self, **kwargs: Any) -> Any:
        # A consumer may write into what it gets, and tensors never change: hand over a copy.
        kwargs.pop("copy", None)
        return self.array.copy().__dlpack__(**kwargs)

    def __dlpack_device__(self) -> Any:
        return self.array.__dlpack_device__()

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("len() of a Tensor without axes (a scalar).")
        return self.shape[0]

    def __iter__(self) -> Iterator[Any]:
        if not self.shape:
            raise TypeError("iteration over a Tensor without axes (a scalar).")
        return (self[i] for i in range(self.shape[0]))

    def __bool__(self) -> bool:
        if self._array is None:
            raise _traced_value_error("its truth (if, while, and, or, not, assert)", self)
        return bool(self._array)

    def __int__(self) -> int:
        return int(self.array)

    def __float__(self) -> float:
        return float(self.array)

    def __complex__(self) -> complex:
        return complex(self.array)

    def __index__(self) -> int:
        if not (dtypes.is_integer(self.dtype) and self.shape == ()):
            raise TypeError(f"only an integer scalar can be an index, not a Tensor {self.dtype}{list(self.shape)}.")
        return int(self.array)

    def __format__(self, spec: str) -> str:
        return format(self.item(), spec) if spec and self.shape == () else format(str(self), spec)

    def __repr__(self) -> str:
        head = f"Tensor(shape={self.shape}, dtype={self.dtype}"
        if self._array is None:
            return f"{head}, traced)"
        body = np.array2string(self._array, separator=", ", threshold=60, prefix=" " * 7)
        return f"{head},\n       {body})" if "\n" in body else f"{head}, {body})"


def _user_frame() -> str:
    """Where the innermost code outside this package stands, as ``file:line``."""
    package = os.path.dirname(os.path.abspath(__file__))
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        filename = frame.f_code.co_filename
        if not os.path.abspath(filename).startswith(package) and not filename.startswith("<frozen"):
            return f"{filename}:{frame.f_lineno} in {frame.f_code.co_name}()"
        frame = frame.f_back
    return "unknown place"


def _traced_value_error(wanted: str, tensor: Tensor) -> TracingError:
    return TracingError(
        f"{_user_frame()}: this code asks a traced Tensor (shape={tensor.shape}, dtype={tensor.dtype}) for {wanted}, "
        "but while a step or a @function is traced it has no numbers yet. To choose between values use "
        "ops.where(condition, a, b); to branch on shapes or Python arguments use those; to debug with real numbers "
        "use compile(run_eagerly=True), or leave out @function."
    )


def is_tensor(x: Any) -> bool:
    """Whether this is a `Tensor` (or a symbolic `KerasTensor`)."""
    return isinstance(x, (Tensor, KerasTensor))


def convert_to_tensor(x: Any, dtype: Any = None) -> Tensor:
    """Make a `Tensor` of anything that looks like numbers.

    Parameters
    ----------
    x : Tensor, Variable, numpy array, number, nested list, or an object with ``__array__`` or ``__dlpack__``
        Arrays are copied, so that later writes into them do not change the tensor.
    dtype : dtype, optional
        Default: that of `x`; a Python float becomes `config.floatx`, a Python int int32 (int64 if it is too large).

    Returns
    -------
    Tensor

    Raises
    ------
    DTypeError
        If the values are not numbers.
    """
    if isinstance(x, Variable):
        x = x.value
    if isinstance(x, Tensor):
        if dtype is None or x.dtype == (name := dtypes.standardize_dtype(dtype)):
            return x
        return operable.namespace.cast(x, name)
    if isinstance(x, KerasTensor):
        raise ArgumentError(
            f"a KerasTensor of a functional model ({x.name}, shape {x.shape}) has no values; pass it to a layer or to "
            "a function of disttensor.ops."
        )
    if _contains_tensor(x):
        stacked = operable.namespace.stack([convert_to_tensor(item) for item in x])
        return stacked if dtype is None else operable.namespace.cast(stacked, dtype)
    return Tensor.wrap(dtypes.array_of(x, None if dtype is None else dtypes.standardize_dtype(dtype)))


def constant(value: Any, dtype: Any = None, shape: Any = None, name: str | None = None) -> Tensor:
    """A tensor with given values (TensorFlow's name for it).

    Parameters
    ----------
    value : array-like
    dtype : dtype, optional
    shape : tuple of int, optional
        The values are put into this shape, or repeated if there is only one.
    name : str, optional
        Ignored.
    """
    tensor = convert_to_tensor(value, dtype)
    if shape is None:
        return tensor
    if tensor.size == 1:
        return operable.namespace.broadcast_to(operable.namespace.reshape(tensor, ()), shape)
    return operable.namespace.reshape(tensor, shape)


def _contains_tensor(x: Any) -> bool:
    return isinstance(x, (list, tuple)) and any(isinstance(i, (Tensor, Variable)) or _contains_tensor(i) for i in x)


class Variable(Operable):
    """A tensor that can be assigned: weights, optimizer state, metric state, the state of random generators.

    Parameters
    ----------
    initializer : array-like or callable
        The first value, or ``initializer(shape, dtype=...)`` that computes it.
    shape : tuple of int, optional
        Needed with a callable.
    dtype : dtype, optional
        Default: that of the value, or `config.floatx` with a callable.
    trainable : bool, default True
        Whether gradient tapes watch it and optimizers change it.
    autocast : bool, default True
        Whether a layer that computes in another dtype than its variables' (mixed precision) reads this one cast to it.
    aggregation : {"none", "mean", "sum", "only_first_replica"}, default "none"
        How values of several ranks are combined; metric state uses "sum".
    name : str, optional

    Notes
    -----
    The memory is allocated once and never moves; `assign` writes into it. Reading (`value`) gives a snapshot that
    later assignments do not change. In a traced function an assignment is recorded, reads that follow see the new
    value, and the memory is written when the plan runs.
    """

    __slots__ = (
        "_array", "_snapshot", "_trainable", "aggregation", "autocast", "constraint", "dtype", "name", "partition",
        "path", "regularizer", "shape", "__weakref__",
    )  # fmt: skip

    trainable_changes = 0
    """How often any variable was made trainable or not; while it stays the same, so does the answer for each."""

    def __init__(
        self,
        initializer: Any,
        shape: Any = None,
        dtype: Any = None,
        trainable: bool = True,
        autocast: bool = True,
        aggregation: str = "none",
        name: str | None = None,
    ):
        with suspended():
            if callable(initializer) and not isinstance(initializer, (Tensor, Variable)):
                if shape is None:
                    raise ArgumentError(f"Variable {name or ''!r} with a callable initializer needs a shape.")
                value = initializer(tuple(shape), dtype=dtypes.standardize_dtype(dtype))
            else:
                value = initializer
            tensor = convert_to_tensor(value, dtype)
        if shape is not None and tuple(shape) != tensor.shape:
            raise ShapeError(
                f"Variable {name or ''!r}: the initial value has shape {tensor.shape}, not {tuple(shape)}."
            )
        self.shape: Shape = tensor.shape
        self.dtype = tensor.dtype
        self._array = aligned_empty(tensor.shape, tensor.dtype)
        np.copyto(self._array, tensor.array)
        self._snapshot: Tensor | None = None
        self._trainable = bool(trainable)
        self.autocast = autocast
        self.aggregation = aggregation
        self.name = name or f"variable_{next(_names)}"
        self.path = self.name
        self.regularizer: Callable[..., Any] | None = None
        self.constraint: Callable[..., Any] | None = None
        self.partition: Any = None  # which part of a larger tensor this is, see `disttensor.distributed.partition`

    @classmethod
    def over(cls, memory: np.ndarray, name: str | None = None) -> Variable:
        """A variable, not trainable, whose memory is this contiguous array."""
        variable = cls(memory, trainable=False, autocast=False, name=name)
        variable._array = memory
        return variable

    @property
    def trainable(self) -> bool:
        """Whether gradient tapes watch it and optimizers change it."""
        return self._trainable

    @trainable.setter
    def trainable(self, value: bool) -> None:
        self._trainable = bool(value)
        Variable.trainable_changes += 1

    @property
    def value(self) -> Tensor:
        """The present value, as a tensor that stays as it is; cast if a layer with mixed precision reads it."""
        tensor = self._read()
        if state.autocast is None or not self.autocast or self.dtype == state.autocast:
            return tensor
        return operable.namespace.cast(tensor, state.autocast) if dtypes.is_floating(self.dtype) else tensor

    def _read(self) -> Tensor:
        if state.overrides is not None and id(self) in state.overrides:
            tensor = state.overrides[id(self)]
        elif state.tracer is not None:
            tensor = state.tracer.read(self)
        else:
            if self._snapshot is None:
                self._snapshot = Tensor.wrap(self._array.copy())
            tensor = self._snapshot
        for recorder in state.recorders:
            recorder.read(self, tensor)
        return tensor

    def read_value(self) -> Tensor:
        """The same as `value` (TensorFlow's name)."""
        return self.value

    @property
    def size(self) -> int:
        """How many elements."""
        return self._array.size

    @property
    def memory(self) -> np.ndarray:
        """The array that holds the value, for code that reads or writes in place; call `touch` after writing."""
        return self._array

    def touch(self) -> None:
        """Forget the snapshot, because `memory` was written."""
        self._snapshot = None

    def numpy(self) -> np.ndarray:
        """The present value as a new numpy array."""
        return self._array.copy() if state.tracer is None else self.value.numpy()

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self.numpy() if dtype is None else self.numpy().astype(dtype)

    def assign(self, value: Any) -> Variable:
        """Set the value; it is cast to the variable's dtype and must have its shape.

        Raises
        ------
        ShapeError
            If the shape differs; the variable keeps its value.
        """
        tensor = convert_to_tensor(value, self.dtype)
        if tensor.shape != self.shape:
            raise ShapeError(
                f"Variable {self.path!r} has shape {self.shape} and cannot be assigned a value of shape {tensor.shape}."
            )
        if state.overrides is not None:
            state.overrides[id(self)] = tensor
        elif state.tracer is not None:
            state.tracer.write(self, tensor)
        else:
            np.copyto(self._array, tensor.array)
            self._snapshot = None
        return self

    def assign_add(self, value: Any) -> Variable:
        """Add to the value."""
        return self.assign(operable.namespace.add(self._read(), convert_to_tensor(value, self.dtype)))

    def assign_sub(self, value: Any) -> Variable:
        """Subtract from the value."""
        return self.assign(operable.namespace.subtract(self._read(), convert_to_tensor(value, self.dtype)))

    def __len__(self) -> int:
        return len(self.value)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.value)

    def __bool__(self) -> bool:
        return bool(self.value)

    def __int__(self) -> int:
        return int(self.value)

    def __float__(self) -> float:
        return float(self.value)

    def __repr__(self) -> str:
        body = np.array2string(self._array, separator=", ", threshold=60, prefix=" " * 9)
        gap = "\n         " if "\n" in body else " "
        head = f"Variable(path={self.path!r}, shape={self.shape}, dtype={self.dtype}, trainable={self.trainable}"
        return f"{head},{gap}{body})"


class KerasTensor(Operable):
    """A symbolic tensor of a functional model: shape (None where unknown), dtype and where it comes from.

    Parameters
    ----------
    shape : tuple of int or None
    dtype : dtype, default float32
    name : str, optional
    """

    __slots__ = ("_keras_history", "dtype", "name", "shape", "__weakref__")

    def __init__(self, shape: Any, dtype: Any = "float32", name: str | None = None):
        self.shape: tuple[int | None, ...] = tuple(shape)
        self.dtype = dtypes.standardize_dtype(dtype)
        self.name = name or f"keras_tensor_{next(_names)}"
        self._keras_history: Any = None

    def __bool__(self) -> bool:
        raise TracingError(
            f"{_user_frame()}: KerasTensor {self.name} (shape {self.shape}) has no values, so it has no truth either. "
            "Use ops.where, or put the branch into a Layer."
        )

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        raise TracingError(f"{_user_frame()}: KerasTensor {self.name} (shape {self.shape}) has no values yet.")

    def __iter__(self) -> Iterator[Any]:
        raise TracingError(f"{_user_frame()}: a KerasTensor (shape {self.shape}) cannot be iterated over.")

    def __repr__(self) -> str:
        return f"KerasTensor(shape={self.shape}, dtype={self.dtype}, name={self.name!r})"


def _no_functional_models(function: Any, args: Any, kwargs: Any) -> Any:
    raise TracingError("operators on KerasTensors need disttensor.layers to be imported.")


symbolic_call: Callable[..., Any] = _no_functional_models
"""Called as ``symbolic_call(function, args, kwargs)`` when an operator meets a KerasTensor; set by the layers floor."""


def bind_symbolic_call(call: Callable[..., Any]) -> None:
    """Say how a functional model records an operator applied to its symbolic tensors."""
    global symbolic_call
    symbolic_call = call
