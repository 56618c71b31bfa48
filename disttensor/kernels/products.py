"""Matrix products within compiled kernels, by the BLAS that numpy is linked with.

A kernel that is one loop of products and elementwise work need not come back to Python between them, where threads
would wait for the interpreter's lock at each step. The caller keeps the BLAS to one thread (see
`disttensor.kernels.blas`).
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
from typing import Any

import numpy as np

from disttensor.kernels._jit import kernel
from disttensor.kernels.blas import numpy_library

# CBLAS's names for "row-major" and "not transposed".
_ROW_MAJOR, _PLAIN = np.int32(101), np.int32(111)


@kernel()
def _step(x: np.ndarray) -> int:
    """From one row to the next; of a single row numpy may keep any number, which the BLAS would refuse."""
    return x.shape[1] if x.shape[0] == 1 else x.strides[0] // x.itemsize


@kernel()
def add_product(out: np.ndarray, x: np.ndarray, y: np.ndarray, gemm: Any) -> None:
    """``out += x @ y`` for matrices whose rows are contiguous; `gemm` is what the function `gemm` below gives."""
    if out.size == 0 or x.size == 0:
        return
    if gemm is None:
        for i in range(out.shape[0]):
            for k in range(x.shape[1]):
                for j in range(out.shape[1]):
                    out[i, j] = out[i, j] + x[i, k] * y[k, j]
    else:
        one = out.dtype.type(1)
        gemm(
            _ROW_MAJOR, _PLAIN, _PLAIN, out.shape[0], out.shape[1], x.shape[1],
            one, x.ctypes.data, _step(x), y.ctypes.data, _step(y),
            one, out.ctypes.data, _step(out),
        )  # fmt: skip


@functools.cache
def gemm(dtype: str) -> Any:
    """The general matrix product of numpy's OpenBLAS, as an argument for kernels.

    Parameters
    ----------
    dtype : {"float32", "float64"}

    Returns
    -------
    object or None
        None if numpy is linked with another BLAS, or with one of 32-bit sizes; `add_product` then does without.
    """
    found = address(dtype)
    return None if found is None else _function(found, dtype)


@functools.cache
def address(dtype: str) -> int | None:
    """The address of CBLAS's general product in numpy's OpenBLAS, with sizes of 64 bits; None as for `gemm`."""
    library = numpy_library()
    name = {"float32": "cblas_sgemm", "float64": "cblas_dgemm"}[dtype]
    for symbol in (f"scipy_{name}64_", f"{name}64_"):
        with contextlib.suppress(AttributeError):
            return ctypes.cast(getattr(library, symbol), ctypes.c_void_p).value
    return None


def _function(address: int, dtype: str) -> Any:
    """A function at an address as numba passes it: by its signature, so that compiled kernels can be kept on disk."""
    import numba.experimental.function_type
    from numba import types

    enum, size, pointer, real = types.int32, types.int64, types.uintp, getattr(types, dtype)
    signature = types.void(
        enum, enum, enum, size, size, size, real, pointer, size, pointer, size, real, pointer, size
    )  # fmt: skip

    class Function(numba.types.WrapperAddressProtocol):
        def __wrapper_address__(self) -> int:
            return address

        def signature(self) -> Any:
            return signature

    return Function()
