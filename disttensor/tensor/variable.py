"""`Variable`: a tensor's place."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from disttensor import dtypes, operable
from disttensor.context import Shape, state, suspended
from disttensor.errors import ArgumentError, ShapeError
from disttensor.operable import Operable
from disttensor.tensor.tensor import Tensor, aligned_empty, convert_to_tensor

_names = itertools.count()
Allocate = Callable[[Shape, str], tuple[np.ndarray, Any]]


def _own(shape: Shape, dtype: str) -> tuple[np.ndarray, None]:
    return aligned_empty(shape, dtype), None


_allocate: Allocate = _own


def bind_memory(allocate: Allocate) -> None:
    """Say where variables get their memory from, and what each has as its `Variable.single_copy`."""
    global _allocate
    _allocate = allocate


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

    The ranks of one host may have one copy of the memory together (`single_copy`). Whoever reads `memory` need not
    care: it changes only within a step that all of them take. Whoever writes in place asks for `writable` instead,
    which first makes it this rank's own, at the same address; and calls `touch` afterwards.
    """

    __slots__ = (
        "_array", "_snapshot", "_trainable", "aggregation", "autocast", "constraint", "dtype", "name", "partition",
        "path", "regularizer", "shape", "single_copy", "__weakref__",
    )  # fmt: skip

    trainable_changes = 0
    """How often any variable was made trainable or not; while it stays the same, so does the answer for each."""

    sharing_changes = 0
    """How often the memory of any became one that ranks share, or was made a rank's own again; likewise."""

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
        memory, single_copy = _allocate(tensor.shape, tensor.dtype)
        self._array = memory
        self.single_copy: Any = single_copy  # what can share it, see `disttensor.distributed.single_copy`
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
        variable._array, variable.single_copy = memory, None
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

    def to_tensor(self) -> Tensor:
        """The present value."""
        return self.value

    def read_value(self) -> Tensor:
        """The same as `value` (TensorFlow's name)."""
        return self.value

    @property
    def size(self) -> int:
        """How many elements."""
        return self._array.size

    @property
    def memory(self) -> np.ndarray:
        """The array that holds the value, to be read in place; for writing there is `writable`."""
        return self._array

    @property
    def writable(self) -> np.ndarray:
        """`memory`, to be written in place: this rank's own from now on. Call `touch` after writing."""
        if self.single_copy is not None:
            self.single_copy.leave()
        return self._array

    def touch(self) -> None:
        """Forget the snapshot, because the memory was written."""
        self._snapshot = None

    @staticmethod
    def touch_all(variables: Iterable[Variable]) -> None:
        """Do so for some variables: after each step, where one call takes less time than one for each."""
        for variable in variables:
            variable._snapshot = None

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
            np.copyto(self.writable, tensor.array)
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
