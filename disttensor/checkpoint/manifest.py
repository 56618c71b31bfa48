"""The manifest: what makes a folder a checkpoint. It says what is there and how it can be told to be whole.

The file is one JSON object, ``{"xxh3_128": "<32 digits>", "manifest": {…}}``. The checksum is that of all bytes behind
it, so a change of any byte of the file is noticed. Whatever the manifest says is checked before it is used: shards have
names of one form, in this folder; tensors fill exactly the bytes that are there.
"""

from __future__ import annotations

import json
import math
import os
import re
from dataclasses import dataclass, field
from typing import Any

from disttensor import dtypes
from disttensor.checkpoint import disk
from disttensor.errors import DTypeError, SerializationError

NAME = "manifest.json"
FORMAT = "disttensor.checkpoint.1"
_PREFIX = b'{"xxh3_128": "'
_DIGITS = 32
_LARGEST = 1 << 30  # bytes
_MOST_AXES = 64  # of an array
_SHARD = re.compile(r"shard-\d{5}-of-\d{5}\.safetensors")


@dataclass(frozen=True)
class Shard:
    """A file: its name in the folder, its bytes, and its checksum."""

    name: str
    bytes: int
    digest: str


@dataclass(frozen=True)
class Part:
    """Where elements of a tensor are: shard number, offset in bytes; first element, how many; checksum."""

    shard: int
    offset: int
    first: int
    count: int
    digest: str


@dataclass(frozen=True)
class TensorInfo:
    """A tensor of a checkpoint, and the parts that make it up, in order."""

    shape: tuple[int, ...]
    dtype: str
    parts: tuple[Part, ...]

    @property
    def bytes(self) -> int:
        """How much memory it takes."""
        return math.prod(self.shape) * dtypes.to_numpy(self.dtype).itemsize


@dataclass(frozen=True)
class Manifest:
    """All about a checkpoint but the tensors' values.

    Attributes
    ----------
    step : int
    shards : list of Shard
    tensors : dict of str to TensorInfo
    state : what JSON knows
        See `packing`.
    metrics : dict of str to float
    versions : dict of str to str
    created : str
        Date and time, UTC.
    ranks : int
        How many wrote it; any number can read it.
    """

    step: int
    shards: list[Shard]
    tensors: dict[str, TensorInfo]
    state: Any = None
    metrics: dict[str, float] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    created: str = ""
    ranks: int = 1

    def to_bytes(self) -> bytes:
        """The content of the file."""
        import xxhash

        content = {
            "format": FORMAT,
            "step": self.step,
            "created": self.created,
            "ranks": self.ranks,
            "versions": self.versions,
            "metrics": self.metrics,
            "shards": [[s.name, s.bytes, s.digest] for s in self.shards],
            "tensors": {
                name: [list(t.shape), t.dtype, [[p.shard, p.offset, p.first, p.count, p.digest] for p in t.parts]]
                for name, t in self.tensors.items()
            },
            "state": self.state,
        }
        rest = b'", "manifest": ' + json.dumps(content).encode() + b"}\n"
        return _PREFIX + xxhash.xxh3_128(rest).hexdigest().encode() + rest

    @classmethod
    def read(cls, folder: str) -> Manifest:
        """The manifest of a checkpoint's folder, which is whole and consistent.

        Raises
        ------
        SerializationError
            If there is none, or it is damaged.
        """
        path = os.path.join(folder, NAME)
        try:
            with disk.existing_file(path) as descriptor:
                size = os.fstat(descriptor).st_size
                if size > _LARGEST:
                    raise SerializationError(f"{path} has {size} bytes; no manifest has so many.")
                content = memoryview(bytearray(size))
                disk.read_into(descriptor, content, 0)
        except FileNotFoundError:
            raise SerializationError(f"{folder} is no checkpoint: it has no {NAME}.") from None
        try:
            return cls.from_bytes(bytes(content))
        except SerializationError as error:
            raise SerializationError(f"{path} {error}") from None

    @classmethod
    def from_bytes(cls, content: bytes) -> Manifest:
        """The manifest that a file's content describes, checked.

        Raises
        ------
        SerializationError
            If it is damaged or describes anything impossible.
        """
        import xxhash

        start = len(_PREFIX) + _DIGITS
        digest = xxhash.xxh3_128(content[start:]).hexdigest().encode()
        if content[:start] != _PREFIX + digest:
            raise SerializationError("is damaged: its checksum does not fit its content.")
        try:
            found = json.loads(content)["manifest"]
            if found["format"] != FORMAT:
                raise SerializationError(f"has the format {found['format']!r}; this version reads {FORMAT!r}.")
            manifest = cls(
                step=_natural(found["step"]),
                shards=[Shard(str(n), _natural(b), str(d)) for n, b, d in found["shards"]],
                tensors={
                    name: TensorInfo(tuple(map(_natural, shape)), _dtype(dtype), tuple(_part(*p) for p in ps))
                    for name, (shape, dtype, ps) in found["tensors"].items()
                },
                state=found["state"],
                metrics={name: _number(value) for name, value in found["metrics"].items()},
                versions={name: str(version) for name, version in found["versions"].items()},
                created=str(found["created"]),
                ranks=_natural(found["ranks"]),
            )
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError, DTypeError) as error:
            if isinstance(error, SerializationError):
                raise
            raise SerializationError(f"is malformed: {type(error).__name__}: {error}") from None
        manifest._check()
        return manifest

    def _check(self) -> None:
        """Require that shards lie in the folder, and that tensors fill bytes that are there, none of them twice."""
        free = [shard.bytes for shard in self.shards]
        for shard in self.shards:
            if not _SHARD.fullmatch(shard.name):
                raise SerializationError(
                    f"names a shard {shard.name!r}; names are like shard-00000-of-00001.safetensors."
                )
        for name, tensor in self.tensors.items():
            itemsize, next_element = dtypes.to_numpy(tensor.dtype).itemsize, 0
            # numpy counts the bytes of an empty array as if it had one of each axis without elements
            if len(tensor.shape) > _MOST_AXES or math.prod(max(n, 1) for n in tensor.shape) * itemsize >= 1 << 63:
                raise SerializationError(f"says that {name!r} has the shape {tensor.shape}, which no array can have.")
            for part in tensor.parts:
                if part.first != next_element or part.shard >= len(self.shards):
                    raise SerializationError(f"says that {name!r} lies in parts that do not fit together.")
                next_element += part.count
                free[part.shard] -= part.count * itemsize
                if part.offset + part.count * itemsize > self.shards[part.shard].bytes or free[part.shard] < 0:
                    raise SerializationError(f"says that {name!r} lies beyond the end of its shard.")
            if next_element != math.prod(tensor.shape):
                raise SerializationError(f"has {next_element} elements of {name!r}, whose shape is {tensor.shape}.")


def _natural(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 1 << 63:
        raise ValueError(f"{value!r} is no number that counts")
    return value


def _number(value: Any) -> float:
    if type(value) not in (int, float):
        raise ValueError(f"{value!r} is no number")
    return float(value)


def _part(shard: Any, offset: Any, first: Any, count: Any, digest: Any) -> Part:
    return Part(_natural(shard), _natural(offset), _natural(first), _natural(count), str(digest))


def _dtype(name: Any) -> str:
    if name not in dtypes.ALL:
        raise ValueError(f"{name!r} is no dtype")
    return str(name)
