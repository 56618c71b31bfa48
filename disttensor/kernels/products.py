"""Matrix products within numba's kernels.

A kernel that is one loop of products and elementwise work need not come back to Python between them, where threads
would wait for the interpreter's lock at each step.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
from typing import Any

import numpy as np

from disttensor.kernels._jit import kernel
from disttensor.kernels.blas import numpy_library
from disttensor.kernels.gemm import library
from disttensor.kernels.gemm_ir import PRODUCT


@kernel()
def add_product(out: np.ndarray, x: np.ndarray, y: np.ndarray, gemm: Any) -> None:
    """``out += x @ y``; rows of `out` are contiguous. `gemm` is what the function `gemm` below gives."""
    gemm(
        out.ctypes.data, out.strides[0], x.ctypes.data, x.strides[0], x.strides[1],
        y.ctypes.data, y.strides[0], y.strides[1], out.shape[0], out.shape[1], x.shape[1], 1,
    )  # fmt: skip


@functools.cache
def gemm(dtype: str) -> Any:
    """The product of matrices, as an argument for kernels.

    Parameters
    ----------
    dtype : {"float32", "float64"}
    """
    return _function(library(np.dtype(dtype).char)["multiply"])


@functools.cache
def address(dtype: str) -> int | None:
    """The address of CBLAS's general product in numpy's OpenBLAS, with sizes of 64 bits; None if there is none."""
    library = numpy_library()
    name = {"float32": "cblas_sgemm", "float64": "cblas_dgemm"}[dtype]
    for symbol in (f"scipy_{name}64_", f"{name}64_"):
        with contextlib.suppress(AttributeError):
            return ctypes.cast(getattr(library, symbol), ctypes.c_void_p).value
    return None


def _function(address: int) -> Any:
    """A function at an address as numba passes it: by its signature, so that compiled kernels can be kept on disk."""
    import numba.experimental.function_type
    from numba import types

    kinds = {"ptr": types.uintp, "i64": types.int64}
    signature = types.void(*(kinds[kind] for kind, _ in PRODUCT))

    class Function(numba.types.WrapperAddressProtocol):
        def __wrapper_address__(self) -> int:
            return address

        def signature(self) -> Any:
            return signature

    return Function()
