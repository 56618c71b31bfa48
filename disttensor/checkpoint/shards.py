"""Shards: what one rank writes of a checkpoint, a safetensors file with a checksum for every tensor and for the whole.

All tensors of a checkpoint, laid end to end in the order of their names, are cut into as many stretches of bytes as
there are ranks. So every rank writes the same amount, and a tensor may lie in several shards. The format is written
here rather than by the library, which would need a copy of everything in memory; any safetensors reader can read it.

References: the safetensors format, https://huggingface.co/docs/safetensors. XXH3, https://xxhash.com.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from disttensor import dtypes
from disttensor.checkpoint import disk
from disttensor.errors import SerializationError

CHUNK = 1 << 20
"""Bytes that are hashed and written, or read and hashed, in one go: few enough to stay in a core's cache."""

# safetensors knows no complex numbers of every kind; they are kept as pairs of reals.
_STORED = {"complex64": "float32", "complex128": "float64"}
_NAMES = {
    "bool": "BOOL", "bfloat16": "BF16", "float16": "F16", "float32": "F32", "float64": "F64",
    **{f"{kind}int{bits}": f"{letter}{bits}" for kind, letter in (("", "I"), ("u", "U")) for bits in (8, 16, 32, 64)},
}  # fmt: skip


@dataclass(frozen=True)
class Piece:
    """A stretch of a tensor: `count` elements, in C order, from element `first` on."""

    tensor: str
    first: int
    count: int


class Written(NamedTuple):
    """A shard on disk: bytes in the file, checksum of the file, and offset and checksum of each piece."""

    bytes: int
    digest: str
    pieces: list[tuple[int, str]]


def share(arrays: Mapping[str, np.ndarray], rank: int, size: int) -> list[Piece]:
    """The pieces that a rank writes.

    Examples
    --------
    >>> share({"a": np.zeros(6, np.int8), "b": np.zeros(2, np.int8)}, rank=1, size=2)
    [Piece(tensor='a', first=4, count=2), Piece(tensor='b', first=0, count=2)]
    """
    total = sum(array.nbytes for array in arrays.values())
    begin, end = rank * total // size, (rank + 1) * total // size
    pieces, offset = [], 0
    for name, array in arrays.items():
        # An element belongs to the rank in whose stretch its first byte lies; what is empty, to rank 0.
        bounds = [min(max(-(-(edge - offset) // array.itemsize), 0), array.size) for edge in (begin, end)]
        if bounds[0] < bounds[1] or (array.size == 0 and rank == 0):
            pieces.append(Piece(name, bounds[0], bounds[1] - bounds[0]))
        offset += array.nbytes
    return pieces


def write_shard(path: str, pieces: Sequence[tuple[Piece, np.ndarray]], shapes: Mapping[str, Any]) -> Written:
    """Write a shard and force it to disk.

    Parameters
    ----------
    path : str
        A new file.
    pieces : sequence of (Piece, array)
        With the elements of each, contiguous.
    shapes : mapping of str to tuple of int
        Of the whole tensors: a tensor that lies in this shard alone is stored in its shape.
    """
    import xxhash

    header: dict[str, Any] = {"__metadata__": {"format": "disttensor.checkpoint.1"}}
    position = 0
    for piece, array in pieces:
        dtype = dtypes.standardize_dtype(array.dtype)
        stored = _STORED.get(dtype, dtype)
        shape = list(shapes[piece.tensor])
        whole = piece.count == int(np.prod(shape, dtype=np.int64))
        shape = shape if whole else [piece.count]
        header[piece.tensor if whole else f"{piece.tensor}#{piece.first}"] = {
            "dtype": _NAMES[stored],
            "shape": [*shape, 2] if dtype in _STORED else shape,
            "data_offsets": [position, position + array.nbytes],
        }
        position += array.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    head = len(text).to_bytes(8, "little") + text
    file_hash, found, offset = xxhash.xxh3_128(head), [], len(head)
    with disk.new_file(path) as write:
        write(head)
        for _, array in pieces:
            piece_hash = xxhash.xxh3_128()
            view = _bytes_of(array)
            for start in range(0, len(view), CHUNK):
                chunk = view[start : start + CHUNK]
                piece_hash.update(chunk)
                file_hash.update(chunk)
                write(chunk)
            found.append((offset, piece_hash.hexdigest()))
            offset += len(view)
    return Written(offset, file_hash.hexdigest(), found)


def verify_shard(path: str, size: int, digest: str) -> None:
    """Read a whole shard and compare its size and checksum.

    Raises
    ------
    SerializationError
        If it is missing, or another number of bytes, or other bytes.
    """
    import xxhash

    try:
        with disk.existing_file(path) as descriptor:
            found = os.fstat(descriptor).st_size
            if found != size:
                raise SerializationError(f"{path} has {found} bytes, its manifest says {size}.")
            total, buffer = xxhash.xxh3_128(), memoryview(bytearray(min(CHUNK, max(size, 1))))
            for offset in range(0, size, CHUNK):
                chunk = buffer[: min(CHUNK, size - offset)]
                if not disk.read_into(descriptor, chunk, offset):
                    raise SerializationError(f"{path} ends before its {size} bytes.")
                total.update(chunk)
    except FileNotFoundError:
        raise SerializationError(f"{path} is missing.") from None
    if total.hexdigest() != digest:
        raise SerializationError(f"{path} is damaged: its checksum is {total.hexdigest()}, not {digest}.")


def read_piece(path: str, offset: int, digest: str, target: np.ndarray) -> None:
    """Read a piece into contiguous memory and compare its checksum.

    Raises
    ------
    SerializationError
        If it is damaged; `target` then holds what was read.
    """
    import xxhash

    view, total = _bytes_of(target), xxhash.xxh3_128()
    with disk.existing_file(path) as descriptor:
        for start in range(0, len(view), CHUNK):
            chunk = view[start : start + CHUNK]
            if not disk.read_into(descriptor, chunk, offset + start):
                raise SerializationError(f"{path} ends before byte {offset + len(view)}.")
            total.update(chunk)
    if total.hexdigest() != digest:
        raise SerializationError(f"{path} is damaged at bytes {offset} to {offset + len(view)}.")


def _bytes_of(array: np.ndarray) -> memoryview:
    """The memory of a contiguous array, also of a dtype for which Python has no buffers."""
    return array.reshape(-1).view(np.uint8).data
