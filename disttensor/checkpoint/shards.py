"""Shards: what one rank writes of a checkpoint, a safetensors file with a checksum for every tensor and for the whole.

All tensors of a checkpoint, laid end to end in the order of their names, are cut into as many stretches of bytes as
there are ranks. So every rank writes the same amount, and a tensor may lie in several shards. What a rank has for
itself comes behind its stretch. The format is written here rather than by the library, which would need a copy of
everything in memory; any safetensors reader can read it.

References: the safetensors format, https://huggingface.co/docs/safetensors. XXH3, https://xxhash.com.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from disttensor import config, dtypes
from disttensor.checkpoint import disk
from disttensor.errors import SerializationError
from disttensor.saving.stored import NAMES, STORED_AS

_CACHED = 1 << 20
"""Bytes that are hashed in one go: few enough to stay in a core's cache."""

_COPIED = 8 << 20
"""Bytes that a thread copies in one go."""


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


def own_name(name: str, rank: int) -> str:
    """What a tensor is called of which each rank has one for itself."""
    return f"{name}@{rank}"


def pieces_of(
    arrays: Mapping[str, np.ndarray], own: Mapping[str, np.ndarray], rank: int, size: int
) -> tuple[list[Piece], dict[str, np.ndarray]]:
    """What a rank writes: its share of what all have, and all that it has for itself; and the arrays by their names."""
    mine = {own_name(name, rank): array for name, array in own.items()}
    return [*share(arrays, rank, size), *(Piece(name, 0, a.size) for name, a in mine.items())], {**arrays, **mine}


class Layout(NamedTuple):
    """A shard's file before it is written: what stands before the pieces, and where each begins and ends."""

    head: bytes
    spans: list[tuple[int, int]]

    @property
    def bytes(self) -> int:
        """Of the whole file."""
        return self.spans[-1][1] if self.spans else len(self.head)


def lay_out(pieces: Sequence[Piece], arrays: Mapping[str, np.ndarray]) -> Layout:
    """The file of these pieces of tensors; a tensor that lies in this shard alone is stored in its shape."""
    header: dict[str, Any] = {"__metadata__": {"format": "disttensor.checkpoint.1"}}
    edges = [0]
    for piece in pieces:
        array = arrays[piece.tensor]
        dtype = dtypes.standardize_dtype(array.dtype)
        whole = piece.count == array.size
        shape = list(array.shape) if whole else [piece.count]
        edges.append(edges[-1] + piece.count * array.itemsize)
        header[piece.tensor if whole else f"{piece.tensor}#{piece.first}"] = {
            "dtype": NAMES[STORED_AS.get(dtype, dtype)],
            "shape": [*shape, 2] if dtype in STORED_AS else shape,
            "data_offsets": edges[-2:],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    head = len(text).to_bytes(8, "little") + text
    return Layout(head, [(len(head) + begin, len(head) + end) for begin, end in itertools.pairwise(edges)])


def fill(image: np.ndarray, layout: Layout, pieces: Sequence[Piece], arrays: Mapping[str, np.ndarray]) -> None:
    """Copy the head and the pieces to where they will stand in the file; training waits for it, so all cores help."""
    image[: len(layout.head)] = np.frombuffer(layout.head, np.uint8)
    stretches = []
    for piece, (begin, end) in zip(pieces, layout.spans, strict=True):
        source = arrays[piece.tensor].reshape(-1)[piece.first : piece.first + piece.count].view(np.uint8)
        for start in range(begin, end, _COPIED):
            stretches.append(
                (image[start : min(start + _COPIED, end)], source[start - begin : start - begin + _COPIED])
            )
    if layout.bytes < 4 * _COPIED:
        for target, source in stretches:
            np.copyto(target, source)
    else:
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(config.threads()) as pool:
            list(pool.map(lambda stretch: np.copyto(*stretch), stretches))


def write_shard(path: str, image: np.ndarray, layout: Layout) -> Written:
    """Write a shard, a new file, and force it to disk.

    Parameters
    ----------
    path : str
    image : array of bytes
        In `disk.aligned_memory`, as `fill` leaves it.
    layout : Layout
    """
    content, found = image.data, []
    for begin, end in layout.spans:
        found.append((begin, _hash(content[begin:end])))
    with disk.new_file(path, direct=True) as write:
        for start in range(0, len(content), disk.CHUNK):
            write(content[start : start + disk.CHUNK])
    return Written(len(content), _hash(content), found)


def _hash(content: memoryview) -> str:
    import xxhash

    total = xxhash.xxh3_128()
    for start in range(0, len(content), _CACHED):
        total.update(content[start : start + _CACHED])
    return total.hexdigest()


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
            total, read = xxhash.xxh3_128(), 0
            for chunk in disk.chunks(descriptor, 0, size):
                total.update(chunk)
                read += len(chunk)
            if read != size:
                raise SerializationError(f"{path} ends before its {size} bytes.")
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

    view, total, read = _bytes_of(target), xxhash.xxh3_128(), 0
    with disk.existing_file(path) as descriptor:
        for chunk in disk.chunks(descriptor, offset, len(view)):
            view[read : read + len(chunk)] = chunk
            total.update(chunk)
            read += len(chunk)
    if read != len(view):
        raise SerializationError(f"{path} ends before byte {offset + len(view)}.")
    if total.hexdigest() != digest:
        raise SerializationError(f"{path} is damaged at bytes {offset} to {offset + len(view)}.")


def _bytes_of(array: np.ndarray) -> memoryview:
    """The memory of a contiguous array, also of a dtype for which Python has no buffers."""
    return array.reshape(-1).view(np.uint8).data
