"""`Tensor`, and what becomes one."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from types import FrameType
from typing import Any

import numpy as np

from disttensor import dtypes, operable
from disttensor.context import Shape, Shard, Spec
from disttensor.errors import TracingError
from disttensor.kernels.native import aligned
from disttensor.operable import Operable


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

    def to_tensor(self) -> Tensor:
        """Itself."""
        return self

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


def user_frame() -> str:
    """Where the innermost code outside this package stands, as ``file:line``."""
    package = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        filename = frame.f_code.co_filename
        if not os.path.abspath(filename).startswith(package) and not filename.startswith("<frozen"):
            return f"{filename}:{frame.f_lineno} in {frame.f_code.co_name}()"
        frame = frame.f_back
    return "unknown place"


def _traced_value_error(wanted: str, tensor: Tensor) -> TracingError:
    return TracingError(
        f"{user_frame()}: this code asks a traced Tensor (shape={tensor.shape}, dtype={tensor.dtype}) for {wanted}, "
        "but while a step or a @function is traced it has no numbers yet. To choose between values use "
        "ops.where(condition, a, b); to branch on shapes or Python arguments use those; to debug with real numbers "
        "use compile(run_eagerly=True), or leave out @function."
    )


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
    if type(x) is Tensor and (dtype is None or (type(dtype) is str and dtype == x.dtype)):
        return x  # what most calls are, asked first
    if isinstance(x, Operable):
        x = x.to_tensor()
        if dtype is None or x.dtype == (name := dtypes.standardize_dtype(dtype)):
            return x
        return operable.namespace.cast(x, name)
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
    return isinstance(x, (list, tuple)) and any(isinstance(i, Operable) or _contains_tensor(i) for i in x)
