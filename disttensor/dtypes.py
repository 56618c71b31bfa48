"""Data types: their names, kinds, and the one rule by which they are promoted.

The rule is Keras 3's, which is the lattice of JAX ("Type promotion semantics", JAX documentation) with weakly typed
Python scalars: the result of mixing dtypes is their least upper bound in

    bool → int* → uint8 → uint16 → uint32 → uint64 ┐
             └──→ int8 → int16 → int32 → int64 ────┴→ float* → bfloat16 ┬→ float32 → float64
                                                          └──→ float16 ─┘      └→ complex64 → complex128

with uint8 → int16, uint16 → int32, uint32 → int64 and float64 → complex128 besides. ``int*`` and ``float*`` are the
Python scalars: they take the dtype of what they meet, and become int32 and float32 (`config.floatx`) alone.
"""

from __future__ import annotations

import functools
from typing import Any

import ml_dtypes
import numpy as np

from disttensor.errors import DTypeError

FLOATS = ("bfloat16", "float16", "float32", "float64")
SIGNED = ("int8", "int16", "int32", "int64")
UNSIGNED = ("uint8", "uint16", "uint32", "uint64")
COMPLEX = ("complex64", "complex128")
ALL = ("bool", *UNSIGNED, *SIGNED, *FLOATS, *COMPLEX)

_NUMPY: dict[str, np.dtype[Any]] = {name: np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name) for name in ALL}
_NAME = {numpy_dtype: name for name, numpy_dtype in _NUMPY.items()}
_PYTHON = {bool: "bool", int: "int*", float: "float*", complex: "complex*"}

# Each dtype's direct successors in the lattice.
_SUCCESSORS: dict[str, tuple[str, ...]] = {
    "bool": ("int*",),
    "int*": ("uint8", "int8"),
    "uint8": ("uint16", "int16"),
    "uint16": ("uint32", "int32"),
    "uint32": ("uint64", "int64"),
    "uint64": ("float*",),
    "int8": ("int16",),
    "int16": ("int32",),
    "int32": ("int64",),
    "int64": ("float*",),
    "float*": ("bfloat16", "float16", "complex*"),
    "bfloat16": ("float32",),
    "float16": ("float32",),
    "float32": ("float64", "complex64"),
    "float64": ("complex128",),
    "complex*": ("complex64",),
    "complex64": ("complex128",),
    "complex128": (),
}


def standardize_dtype(dtype: Any) -> str:
    """The canonical name of a dtype.

    Parameters
    ----------
    dtype : str, numpy dtype or scalar type, Python type, anything with a ``dtype``, or None
        None means `config.floatx`; ``int`` means int32 and ``float`` `config.floatx`, as in Keras.

    Returns
    -------
    str
        One of `ALL`.

    Raises
    ------
    DTypeError
        If it is none of them.
    """
    if isinstance(dtype, str) and dtype in _NUMPY:
        return dtype
    if isinstance(dtype, np.dtype) and dtype in _NAME:
        return _NAME[dtype]
    if dtype is None or dtype is float or (isinstance(dtype, str) and dtype == "float"):
        from disttensor import config

        return config.floatx()
    if dtype is int or (isinstance(dtype, str) and dtype == "int"):
        return "int32"
    if not isinstance(dtype, (str, type, np.dtype)) and hasattr(dtype, "dtype"):
        dtype = dtype.dtype
    try:
        return _NAME[np.dtype(dtype)]
    except (KeyError, TypeError):
        raise DTypeError(f"{dtype!r} is not a dtype of disttensor; use one of {', '.join(ALL)}.") from None


def name_of(dtype: np.dtype[Any]) -> str:
    """The canonical name of a numpy dtype: `standardize_dtype`, quicker."""
    return _NAME.get(dtype) or standardize_dtype(dtype)


def to_numpy(dtype: Any) -> np.dtype[Any]:
    """The numpy dtype of a dtype or its name (bfloat16 comes from ml_dtypes)."""
    return _NUMPY[standardize_dtype(dtype)]


def is_floating(dtype: str) -> bool:
    """Whether the dtype is a real floating-point type."""
    return dtype in FLOATS


def is_complex(dtype: str) -> bool:
    """Whether the dtype is complex."""
    return dtype in COMPLEX


def is_inexact(dtype: str) -> bool:
    """Whether the dtype is floating-point or complex, so that it has gradients."""
    return dtype in FLOATS or dtype in COMPLEX


def is_integer(dtype: str) -> bool:
    """Whether the dtype is a signed or unsigned integer."""
    return dtype in SIGNED or dtype in UNSIGNED


def is_unsigned(dtype: str) -> bool:
    """Whether the dtype is an unsigned integer."""
    return dtype in UNSIGNED


def kind(dtype: str) -> str:
    """Whether the dtype is "float", "complex", "int" or "bool"."""
    if dtype == "bool":
        return "bool"
    return "float" if is_floating(dtype) else "complex" if is_complex(dtype) else "int"


def real_part(dtype: str) -> str:
    """The dtype of the real part: complex64 → float32, complex128 → float64, others unchanged."""
    return {"complex64": "float32", "complex128": "float64"}.get(dtype, dtype)


def complex_of(dtype: str) -> str:
    """The complex dtype whose parts can hold a value of this dtype."""
    return "complex128" if dtype in ("float64", "complex128") else "complex64"


def itemsize(dtype: str) -> int:
    """Bytes of one element."""
    return to_numpy(dtype).itemsize


def limits(dtype: str) -> tuple[Any, Any]:
    """The smallest and the largest finite number of an integer or real floating-point dtype, as Python numbers."""
    info = np.iinfo(to_numpy(dtype)) if is_integer(dtype) else ml_dtypes.finfo(to_numpy(dtype))
    return (info.min, info.max) if is_integer(dtype) else (float(info.min), float(info.max))


def result_type(*dtypes: Any) -> str:
    """The dtype of an operation on operands of these dtypes (see the module's rule).

    Parameters
    ----------
    *dtypes : dtypes or Python scalar types
        ``bool``, ``int``, ``float`` and ``complex`` (the Python types) stand for weakly typed Python scalars.

    Returns
    -------
    str

    Examples
    --------
    >>> result_type("int32", float)
    'float32'
    >>> result_type("bfloat16", "float16")
    'float32'
    >>> result_type("uint8", int)
    'uint8'
    """
    keys = tuple(_PYTHON[d] if isinstance(d, type) and d in _PYTHON else standardize_dtype(d) for d in dtypes)
    found = _least_upper_bound(frozenset(keys))
    return {"int*": "int32", "float*": standardize_dtype(None), "complex*": "complex64"}.get(found, found)


@functools.cache
def _upper_bounds(name: str) -> frozenset[str]:
    return frozenset({name}).union(*(_upper_bounds(s) for s in _SUCCESSORS[name]))


@functools.cache
def _least_upper_bound(names: frozenset[str]) -> str:
    common = frozenset.intersection(*(_upper_bounds(n) for n in names))
    return max(common, key=lambda n: len(_upper_bounds(n) & common))


def array_of(x: Any, dtype: str | None) -> np.ndarray:
    """A new array of the numbers in `x`: an array, a number, nested lists, or what numpy understands."""
    weak = not hasattr(x, "dtype")
    try:
        array = np.from_dlpack(x).copy() if hasattr(x, "__dlpack__") and not hasattr(x, "__array__") else np.array(x)
    except (ValueError, TypeError) as error:
        raise DTypeError(f"cannot make a Tensor of {type(x).__name__}: {error}") from None
    if array.dtype.kind not in "biufcV" or (array.dtype.kind == "V" and array.dtype not in _NAME):
        raise DTypeError(
            f"cannot make a Tensor of {type(x).__name__} with numpy dtype {array.dtype}: it needs numbers or booleans."
        )
    if dtype is None and weak:
        dtype = _python_dtype(array)
    if dtype is not None and array.dtype != to_numpy(dtype):
        if weak and is_integer(dtype):
            _check_range(array, dtype)
        array = array.astype(to_numpy(dtype))
    if array.dtype not in _NAME:
        array = array.astype(array.dtype.newbyteorder("="))
        standardize_dtype(array.dtype)
    return array


def _check_range(array: np.ndarray, dtype: str) -> None:
    lowest, highest = limits(dtype)
    if array.dtype.kind in "iu" and array.size and (array.min() < lowest or array.max() > highest):
        raise DTypeError(
            f"the Python integers between {array.min()} and {array.max()} do not fit {dtype}, which holds {lowest} to "
            f"{highest}; cast the other operand to a wider dtype."
        )


def _python_dtype(array: np.ndarray) -> str:
    """The dtype for numbers written in Python, where numpy took its widest."""
    kind = array.dtype.kind
    if kind == "f":
        return standardize_dtype(None)
    if kind == "c":
        return complex_of(standardize_dtype(None))
    if kind in "iu" and array.size and (array.max() > 2**31 - 1 or array.min() < -(2**31)):
        return "int64" if array.dtype.kind == "i" else "uint64"
    return "int32" if kind in "iu" else "bool"
