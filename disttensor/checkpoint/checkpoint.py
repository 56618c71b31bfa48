"""`Checkpoint`: one folder, opened for reading by any number of ranks."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from disttensor import distributed, dtypes
from disttensor.checkpoint.manifest import Manifest, TensorInfo
from disttensor.checkpoint.packing import unpack
from disttensor.checkpoint.shards import own_name, read_piece, verify_shard
from disttensor.errors import ArgumentError, SerializationError
from disttensor.tensor import Variable

_FOLDER = re.compile(r"(\d{6,})-step-(\d+)")
_MOST_LISTED = 10


def folder_name(number: int, step: int) -> str:
    """The name of a checkpoint's folder: the n-th save, after so many steps."""
    return f"{number:06d}-step-{step}"


def number_of(path: str) -> int:
    """Which save a folder is, from its name."""
    match = _FOLDER.fullmatch(os.path.basename(path))
    assert match is not None
    return int(match[1])


def find_checkpoints(directory: Any) -> list[str]:
    """The folders of checkpoints in a directory, oldest first; whether they are whole is not looked at.

    A directory that does not exist has none.
    """
    directory = os.fspath(directory)
    if not os.path.isdir(directory):
        return []
    found = [os.path.join(directory, name) for name in os.listdir(directory) if _FOLDER.fullmatch(name)]
    return sorted(found, key=number_of)


class Checkpoint:
    """A checkpoint on disk, whose manifest is whole.

    Parameters
    ----------
    path : path
        Its folder. Nothing outside is opened.

    Attributes
    ----------
    path, name : str
    manifest : Manifest

    Raises
    ------
    SerializationError
        If the folder has no manifest, or a damaged one.
    """

    def __init__(self, path: Any):
        self.path = os.path.abspath(os.fspath(path))
        self.name = os.path.basename(self.path)
        self.manifest = Manifest.read(self.path)

    @property
    def step(self) -> int:
        """After how many steps it was saved."""
        return self.manifest.step

    @property
    def bytes(self) -> int:
        """Of all its shards."""
        return sum(shard.bytes for shard in self.manifest.shards)

    def verify(self) -> None:
        """Read everything and compare all checksums.

        Raises
        ------
        SerializationError
            If a file is missing or damaged; it names the first one.
        """
        self._verify(range(len(self.manifest.shards)))

    def verify_together(self) -> None:
        """The same, spread over all ranks: call it on all; they fail alike."""
        group = distributed.communicator()
        _raise_first(lambda: self._verify(range(group.rank, len(self.manifest.shards), group.size)))

    def _verify(self, numbers: Sequence[int]) -> None:
        for shard in (self.manifest.shards[n] for n in numbers):
            verify_shard(os.path.join(self.path, shard.name), shard.bytes, shard.digest)

    def array(self, name: str) -> np.ndarray:
        """A tensor by its name, as a new array.

        Raises
        ------
        ArgumentError
            If there is none of that name.
        SerializationError
            If it is damaged.
        """
        info = self.manifest.tensors.get(name)
        if info is None:
            raise ArgumentError(f"{self.path} holds no tensor {name!r}; it holds {', '.join(self.manifest.tensors)}.")
        self._check_sizes(info)
        target = np.empty(info.shape, dtypes.to_numpy(info.dtype))
        for number in range(len(info.parts)):
            self._read(info, number, target)
        return target

    def state(self) -> Any:
        """What was saved beside the tensors, with its arrays.

        Raises
        ------
        SerializationError
            If it is malformed, or an array is damaged.
        """

        def array_of(name: Any) -> np.ndarray:
            if not isinstance(name, str) or name not in self.manifest.tensors:
                raise SerializationError(
                    f"{self.path} is malformed: its state names {name!r}, which is no tensor of it."
                )
            return self.array(name)

        try:
            return unpack(self.manifest.state, array_of)
        except RecursionError:
            raise SerializationError(f"{self.path} is malformed: its state is nested too deeply.") from None

    def restore_together(self, tensors: Mapping[str, Variable]) -> None:
        """Set variables to the values saved under their names: call it on all ranks, after `verify_together`.

        Each rank reads its share of the file and gets the rest from the others.

        Raises
        ------
        SerializationError
            If names, shapes or dtypes differ (nothing is changed), or a file is damaged.
        """
        self.check_fits(tensors)
        group = distributed.communicator()
        wanted = [(name, self.manifest.tensors[name]) for name in tensors]

        def read_own() -> None:
            for name, info in wanted:
                for number, part in enumerate(info.parts):
                    if part.shard % group.size == group.rank:
                        self._read(info, number, tensors[name].writable)

        _raise_first(read_own)
        for name, info in wanted:
            memory = tensors[name].writable.reshape(-1)
            for part in info.parts if group.size > 1 else ():
                group.broadcast(memory[part.first : part.first + part.count], part.shard % group.size)
            tensors[name].touch()

    def holds_own(self, tensors: Mapping[str, Variable]) -> bool:
        """Whether each rank finds what it had for itself: there were as many, which saved tensors of these shapes."""
        infos = {name: self.manifest.tensors.get(own_name(name, 0)) for name in tensors}
        fit = (i is not None and (i.shape, i.dtype) == (tensors[n].shape, tensors[n].dtype) for n, i in infos.items())
        return self.manifest.ranks == distributed.size() and all(fit)

    def restore_own(self, tensors: Mapping[str, Variable]) -> None:
        """Set variables to what this rank had for itself, if it `holds_own`: call it on all ranks.

        Raises
        ------
        SerializationError
            If a file is damaged.
        """

        def read() -> None:
            for name, variable in tensors.items():
                info = self.manifest.tensors[own_name(name, distributed.rank())]
                for number in range(len(info.parts)):
                    self._read(info, number, variable.writable)
                variable.touch()

        _raise_first(read)

    def check_fits(self, tensors: Mapping[str, Variable]) -> None:
        """Require that every variable is in the checkpoint, in its shape and dtype."""
        problems = []
        for name, variable in tensors.items():
            info = self.manifest.tensors.get(name)
            expected = f"{variable.dtype}{list(variable.shape)}"
            found = "missing" if info is None else f"{info.dtype}{list(info.shape)}"
            if found != expected:
                problems.append(f"{name!r} is {found}, should be {expected}")
        if problems:
            more = f"; and {len(problems) - _MOST_LISTED} more" if len(problems) > _MOST_LISTED else ""
            raise SerializationError(
                f"{self.path} does not fit: {'; '.join(sorted(problems)[:_MOST_LISTED])}{more}. It was saved by "
                "another model or optimizer: give the same ones, or another folder."
            )

    def _read(self, info: TensorInfo, number: int, target: np.ndarray) -> None:
        part = info.parts[number]
        shard = self.manifest.shards[part.shard]
        own = target.reshape(-1)[part.first : part.first + part.count]
        read_piece(os.path.join(self.path, shard.name), part.offset, part.digest, own)

    def _check_sizes(self, info: TensorInfo) -> None:
        """Require that the bytes of a tensor are really there, before memory is asked for."""
        for number in {part.shard for part in info.parts}:
            shard = self.manifest.shards[number]
            path = os.path.join(self.path, shard.name)
            found = os.stat(path, follow_symlinks=False).st_size if os.path.lexists(path) else None
            if found != shard.bytes:
                raise SerializationError(f"{path} is {'missing' if found is None else f'{found} bytes long'}.")


def open_together(path: str) -> Checkpoint:
    """Open a checkpoint on all ranks, which fail alike."""
    found, report = None, None
    try:
        found = Checkpoint(path)
    except (SerializationError, OSError) as error:
        report = str(error)
    reports = distributed.communicator().all_gather_object(report)
    first = next((text for text in reports if text is not None), None)
    if found is None or first is not None:
        raise SerializationError(first)
    return found


def _raise_first(action: Any) -> None:
    """Do something on every rank; if it fails on any, all raise what the first failing rank raised."""
    report = None
    try:
        action()
    except (SerializationError, OSError) as error:
        report = str(error)
    reports = distributed.communicator().all_gather_object(report)
    failed = next((rank for rank, text in enumerate(reports) if text is not None), None)
    if failed is not None:
        where = f" (on rank {failed})" if len(reports) > 1 else ""
        raise SerializationError(f"{reports[failed]}{where}")
