"""Products of a matrix with one whose elements lie scattered in an array: convolution without gathering patches.

Element (i, j) of the scattered matrix is at ``rows[i] + columns[j]`` bytes from the beginning of an array. That covers
the patches of a convolution of any number of axes, stride, dilation and group, and their transpose. Rows of the result
may lie scattered, too.

A tile of the result stays in vector registers while its rows of the scattered matrix are read once. Every element of
the result is one chain of fused multiply-adds in the order of j, so its bits do not depend on the size of the tiles.

References: Dukhan, "The indirect convolution algorithm", 2019; Goto & van de Geijn, "Anatomy of high-performance matrix
multiplication", 2008.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from disttensor.kernels._jit import Kernel, kernel

_VECTOR_BYTES = 64
"""One register of AVX-512; elsewhere LLVM takes two or four."""

_TILE_ROWS = 8


# Longer sums stream their part of the matrix from beyond the second-level cache for every tile; a matrix product that
# blocks them is faster then.
_LONGEST_SUM = 1280


def suits(rows: int, count: int, dtype: np.dtype) -> bool:
    """Whether `product` computes so many rows, of sums of `count` products, faster than a matrix product would."""
    return rows >= _TILE_ROWS and count <= _LONGEST_SUM and dtype.char in "fd"


@functools.lru_cache(maxsize=128)
def offsets(counts: tuple[int, ...], steps: tuple[int, ...]) -> np.ndarray:
    """The offsets of all elements of an array of `counts` elements along axes of `steps` bytes, in row-major order.

    Examples
    --------
    >>> offsets((2, 3), (100, 8)).tolist()
    [0, 8, 16, 100, 108, 116]
    """
    total = np.zeros(counts, np.int64)
    for axis, (count, step) in enumerate(zip(counts, steps, strict=True)):
        total += (np.arange(count) * step).reshape(-1, *[1] * (len(counts) - axis - 1))
    total.flags.writeable = False
    return total.reshape(-1)


def product(out: np.ndarray, array: np.ndarray, rows: np.ndarray, columns: np.ndarray, matrix: np.ndarray) -> None:
    """``out[i] = Σ_j array[rows[i] + columns[j]] · matrix[j]``.

    Parameters
    ----------
    out : array, shape (…, n), contiguous along the last axis
        Row i is the i-th of the m that its other axes count; there are at least 8, of float32 or float64.
    array : array of the same dtype
    rows, columns : arrays of int64, shapes (m,) and (k,)
        In bytes, see `offsets`.
    matrix : array of the same dtype, shape (k, n), contiguous along the last axis
    """
    width = out.shape[-1]
    missing = -width % (_VECTOR_BYTES // out.itemsize)
    if missing:
        wide = np.empty((*out.shape[:-1], width + missing), out.dtype)
        product(wide, array, rows, columns, np.pad(matrix, ((0, 0), (0, missing))))
        out[...] = wide[..., :width]
        return
    _product(
        out.ctypes.data, offsets(out.shape[:-1], out.strides[:-1]), array.ctypes.data, rows, columns,
        matrix.ctypes.data, matrix.strides[0], width * out.itemsize, out.dtype.type(0),
    )  # fmt: skip


class _Tile(Kernel):
    """A function for compiled code that computes one tile of the result."""

    def __init__(self, rows: int, vectors: int):
        self._size = rows, vectors

    @functools.cached_property
    def _intrinsic(self) -> Any:
        return _tile(*self._size)

    def dispatcher(self, parallel: bool = False) -> Any:
        """What numba knows how to compile a call of."""
        return self._intrinsic


_tall = _Tile(_TILE_ROWS, 1)
_wide = _Tile(_TILE_ROWS, 2)


@kernel()
def _product(
    out: int, places: np.ndarray, array: int, rows: np.ndarray, columns: np.ndarray, matrix: int, matrix_step: int,
    width: int, zero: float,
) -> None:  # fmt: skip
    left = 0
    while left < width:
        wide = width - left >= 2 * _VECTOR_BYTES
        for row in range(0, rows.size, _TILE_ROWS):
            # The last tile overlaps the one before: what both compute is the same to the bit.
            top = min(row, rows.size - _TILE_ROWS)
            place, first = places.ctypes.data + 8 * top, rows.ctypes.data + 8 * top
            if wide:
                _wide(
                    out + left, place, array, first, columns.ctypes.data, columns.size, matrix + left, matrix_step, zero
                )  # fmt: skip
            else:
                _tall(
                    out + left, place, array, first, columns.ctypes.data, columns.size, matrix + left, matrix_step, zero
                )  # fmt: skip
        left += 2 * _VECTOR_BYTES if wide else _VECTOR_BYTES


def _tile(rows: int, vectors: int) -> Any:
    """The intrinsic ``tile(out, places, array, rows, columns, count, matrix, matrix_step, zero)``.

    Arguments are addresses, of which `places`, `rows` and `columns` are those of offsets; steps in bytes; and `zero`,
    which says what dtype.
    """
    from llvmlite import ir
    from numba import types
    from numba.core import cgutils
    from numba.extending import intrinsic

    word = ir.IntType(64)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        out, places, array, first, columns, count, matrix, matrix_step, zero = arguments
        itemsize = signature.args[-1].bitwidth // 8
        lanes = _VECTOR_BYTES // itemsize
        vector = ir.VectorType(zero.type, lanes)
        kind_of_fma = ir.FunctionType(vector, [vector] * 3)
        fma = cgutils.get_or_insert_function(builder.module, kind_of_fma, f"llvm.fma.v{lanes}f{8 * itemsize}")

        def pointer(address: Any, kind: Any) -> Any:
            return builder.inttoptr(address, kind.as_pointer())

        def vector_at(address: Any, number: int) -> Any:
            return pointer(builder.add(address, word(number * _VECTOR_BYTES)), vector)

        def splat(value: Any) -> Any:
            undefined = ir.Constant(vector, ir.Undefined)
            first_lane = ir.Constant(ir.VectorType(ir.IntType(32), lanes), [0] * lanes)
            return builder.shuffle_vector(
                builder.insert_element(undefined, value, ir.IntType(32)(0)), undefined, first_lane
            )

        def offset_at(address: Any, number: Any) -> Any:
            return builder.load(pointer(builder.add(address, builder.mul(number, word(8))), word))

        starts = [builder.add(array, offset_at(first, word(row))) for row in range(rows)]
        zeros = ir.Constant(vector, [0.0] * lanes)
        # LLVM keeps these in registers.
        sums = [[cgutils.alloca_once_value(builder, zeros) for _ in range(vectors)] for _ in range(rows)]
        with cgutils.for_range(builder, count) as loop:
            offset = offset_at(columns, loop.index)
            line = builder.add(matrix, builder.mul(loop.index, matrix_step))
            factors = [builder.load(vector_at(line, number), align=itemsize) for number in range(vectors)]
            for start, row in zip(starts, sums, strict=True):
                element = splat(builder.load(pointer(builder.add(start, offset), zero.type), align=itemsize))
                for total, factor in zip(row, factors, strict=True):
                    builder.store(builder.call(fma, [element, factor, builder.load(total)]), total)
        for number, row in enumerate(sums):
            line = builder.add(out, offset_at(places, word(number)))
            for column, total in enumerate(row):
                builder.store(builder.load(total), vector_at(line, column), align=itemsize)
        return context.get_dummy_value()

    @intrinsic
    def tile(
        typing: Any, out: Any, places: Any, array: Any, first: Any, columns: Any, count: Any, matrix: Any,
        matrix_step: Any, zero: Any,
    ) -> Any:  # fmt: skip
        return types.void(*[types.int64] * 8, zero), generate

    return tile
