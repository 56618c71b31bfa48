"""`CheckpointManager`: saves that are complete or do not exist, of all ranks together, while training goes on.

A save has three stages. *Snapshot*: each rank copies its share of the tensors; then training may go on. *Shards*: a
thread on each rank writes its share into a folder with a temporary name, and forces it to disk. *Commit*: when all
ranks' shards are there, a thread on rank 0 writes the manifest, forces it to disk, and gives the folder its name. So a
folder with a checkpoint's name is complete, whenever the machine stops; and checksums tell if it was damaged later.

Ranks talk to one another only in the thread that calls these methods, never in the threads that write.
"""

from __future__ import annotations

import os
import platform
import secrets
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np

from disttensor import distributed, dtypes
from disttensor.checkpoint import disk
from disttensor.checkpoint.checkpoint import Checkpoint, find_checkpoints, folder_name, number_of, open_together
from disttensor.checkpoint.lock import FolderLock
from disttensor.checkpoint.manifest import NAME, Manifest, Part, Shard, TensorInfo
from disttensor.checkpoint.packing import pack
from disttensor.checkpoint.ranking import ranked
from disttensor.checkpoint.shards import Written, fill, lay_out, own_name, pieces_of, write_shard
from disttensor.distributed.consistency import require_same
from disttensor.distributed.partition import Term, assign_whole, stand_in, whole_array, whole_shape
from disttensor.errors import ArgumentError, CheckpointError, SerializationError
from disttensor.saving.files import on_main
from disttensor.tensor import Variable
from disttensor.version import __version__

if TYPE_CHECKING:
    from concurrent.futures import Future, ThreadPoolExecutor

_TEMPORARY = ".unfinished-"


@dataclass
class _Save:
    """A save under way."""

    number: int
    folder: str
    manifest: Manifest
    own: dict[str, TensorInfo]
    started: float
    held_up: float
    shards: Future[Written] | None = None
    commit: Future[None] | None = None


def _new_thread() -> ThreadPoolExecutor:
    from concurrent.futures import ThreadPoolExecutor

    return ThreadPoolExecutor(1, thread_name_prefix="disttensor-checkpoint")


class CheckpointManager:
    """Saves and finds checkpoints in a directory.

    All methods but `checkpoints` are collective: all ranks call them, in the same order.

    Parameters
    ----------
    directory : path
        On a file system that all ranks see; made when the first checkpoint is saved.
    keep : int, default 2
        How many of the newest checkpoints stay.
    keep_best : int, default 0
        How many of those with the best `monitor` stay besides; see `best`.
    monitor : str, default "val_loss"
        A name in the metrics that `save` is given.
    mode : {"min", "max"}, default "min"
        Whether less or more is better.

    Examples
    --------
    >>> import tempfile
    >>> import disttensor as dt
    >>> weight = dt.Variable([1.0, 2.0])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with CheckpointManager(folder) as manager:
    ...         manager.save(10, {"weight": weight}, state={"epoch": 1})
    ...         _ = weight.assign([0.0, 0.0])
    ...         found = manager.latest()
    ...         manager.restore(found, {"weight": weight})
    ...     print(found.name, weight.numpy(), found.state())
    000001-step-10 [1. 2.] {'epoch': 1}
    """

    def __init__(
        self, directory: Any, keep: int = 2, keep_best: int = 0, monitor: str = "val_loss", mode: str = "min"
    ) -> None:
        if not isinstance(keep, int) or keep < 1 or not isinstance(keep_best, int) or keep_best < 0:
            raise ArgumentError(f"keep must be at least 1 and keep_best not negative, got {keep!r} and {keep_best!r}.")
        if mode not in ("min", "max"):
            raise ArgumentError(f"mode must be 'min' or 'max', got {mode!r}.")
        self.directory = os.path.abspath(os.fspath(directory))
        self.keep, self.keep_best, self.monitor, self.mode = keep, keep_best, monitor, mode
        self.cost = self.latency = 0.0
        self._lock: FolderLock | None = None
        self._opened = False
        self._last_number = 0
        self._save: _Save | None = None
        self._staging: np.ndarray | None = None
        self._reserved: Future[None] | None = None
        self._thread = _new_thread()

    def __enter__(self) -> CheckpointManager:
        return self

    def __exit__(self, kind: Any, *rest: Any) -> None:
        if kind is None:
            self.wait()
        self.close()

    # --- finding

    @property
    def checkpoints(self) -> list[str]:
        """The folders of the checkpoints, oldest first, whole or not."""
        return find_checkpoints(self.directory)

    def latest(self) -> Checkpoint | None:
        """The newest checkpoint that is whole, read and compared with its checksums; None if there is none.

        Warns
        -----
        UserWarning
            For each newer one that is damaged: which file, and how.
        """
        self.wait()
        return self._first_whole(self.checkpoints[::-1])

    def best(self) -> Checkpoint | None:
        """The checkpoint with the best `monitor` of those that are there and whole; None if none was saved with it.

        Warns
        -----
        UserWarning
            As `latest` does, for each better one that is damaged.
        """
        self.wait()
        return self._first_whole(on_main(lambda: ranked(self.checkpoints, self.monitor, self.mode)))

    def _first_whole(self, paths: Any) -> Checkpoint | None:
        for path in distributed.communicator().broadcast_object(paths):
            try:
                found = open_together(path)
                found.verify_together()
                return found
            except SerializationError as error:
                warnings.warn(f"checkpoint {os.path.basename(path)} is left out: {error}", stacklevel=2)
        return None

    def restore(self, checkpoint: Checkpoint, tensors: Mapping[str, Variable]) -> None:
        """Set variables to the values saved under their names, those that ranks divide to their parts of them.

        Raises
        ------
        SerializationError
            If a name, shape or dtype differs; then nothing is changed.
        """
        stands = {name: stand_in(variable) for name, variable in tensors.items()}
        checkpoint.restore_together(stands)
        for name, variable in tensors.items():
            if stands[name] is not variable:
                assign_whole(variable, stands[name].memory)
        if checkpoint.holds_own(terms := _terms(tensors)):
            checkpoint.restore_own(terms)

    # --- saving

    def open(self) -> None:
        """Make the directory, take the right to write there, and remove what killed jobs left; `save` does it too.

        Raises
        ------
        CheckpointError
            If another job is writing there.
        OSError
            If the directory cannot be made or written.
        """
        if not self._opened:
            on_main(self._open)
            self._opened = True

    def _open(self) -> None:
        os.makedirs(self.directory, exist_ok=True)
        self._lock = FolderLock(self.directory)
        self._remove_leftovers()
        self._last_number = max(map(number_of, self.checkpoints), default=0)

    def save(
        self,
        step: int,
        tensors: Mapping[str, Variable | np.ndarray],
        state: Any = None,
        metrics: Mapping[str, float] | None = None,
        wait: bool = True,
    ) -> None:
        """Save tensors and state.

        Parameters
        ----------
        step : int
        tensors : mapping of str to Variable or array
            The same on every rank; each writes a part. Of variables that ranks divide, such as the state of a
            `ShardedOptimizer`, the whole is saved, so that any number of ranks can go on. Of terms of a sum, such as
            gradients that each rank accumulates, each rank's own is saved as well: as many go on with the same bits.
        state : nested dict or list of numbers, str, None and arrays, optional
            See `disttensor.checkpoint.packing`. That of rank 0 is saved.
        metrics : mapping of str to number, optional
        wait : bool, default True
            Return when the checkpoint is complete; otherwise as soon as the values are copied. Then call `poll`
            now and then, on all ranks; a new save waits for the one before.

        Raises
        ------
        ArgumentError
            If a metric is no number.
        CheckpointError
            On all ranks, if any cannot write, or if the state cannot be saved; checkpoints there are stay.
        DistributedError
            On all ranks, if their tensors have other names, shapes or dtypes.
        """
        numbers = {name: _number(name, value) for name, value in (metrics or {}).items()}
        self.open()
        self.wait()
        started = time.monotonic()
        packed, arrays = pack(state, "state")
        # Before anything is joined: ranks that divide other variables would wait for each other there.
        shapes = {n: whole_shape(t) if isinstance(t, Variable) else t.shape for n, t in tensors.items()}
        facts = {n: [shapes[n], dtypes.standardize_dtype(t.dtype)] for n, t in tensors.items()}
        require_same("the tensors of a checkpoint", facts | {n: [a.shape, str(a.dtype)] for n, a in arrays.items()})
        everything = {n: whole_array(t) if isinstance(t, Variable) else t for n, t in tensors.items()} | arrays
        self._begin(started, step, everything, _own(tensors), packed, numbers)
        assert self._save is not None
        self._save.held_up = time.monotonic() - started
        if wait:
            self.wait()

    def _begin(
        self, started: float, step: int, arrays: dict[str, np.ndarray], own: dict[str, np.ndarray], state: Any,
        metrics: dict[str, float],
    ) -> None:  # fmt: skip
        group = distributed.communicator()
        made = on_main(self._make_folder)
        number, folder = group.broadcast_object(made)
        manifest = Manifest(
            step, [], _infos(arrays), state, metrics,
            {"disttensor": __version__, "numpy": np.__version__, "python": platform.python_version()},
            time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), group.size,
        )  # fmt: skip
        pieces, named = pieces_of(arrays, own, group.rank, group.size)
        layout = lay_out(pieces, named)
        image = self._memory(layout.bytes)
        fill(image, layout, pieces, named)
        path = os.path.join(folder, _shard_name(group.rank, group.size))
        self._save = _Save(number, folder, manifest, _infos(own), started, 0.0)
        self._save.shards = self._thread.submit(write_shard, path, image, layout)

    def _make_folder(self) -> tuple[int, str]:
        number = self._last_number + 1
        folder = os.path.join(self.directory, f"{_TEMPORARY}{number:06d}-{secrets.token_hex(4)}")
        try:
            disk.make_folder(folder)
        except OSError as error:
            raise self._failure(f"{folder}: {error.strerror}", 0) from None
        return number, folder

    def reserve(self, tensors: Mapping[str, Variable | np.ndarray]) -> None:
        """Get the memory for copies of these tensors now, on the thread that writes, so that no save waits for it.

        Memory that a process uses for the first time costs the system more than all else in a save. Not collective.
        """
        group = distributed.communicator()
        arrays = {name: t.memory if isinstance(t, Variable) else t for name, t in tensors.items()}
        size = lay_out(*pieces_of(arrays, _own(tensors), group.rank, group.size)).bytes

        def touch() -> None:
            memory = disk.aligned_memory(size + size // 16)  # and some room for state
            memory[::4096] = 0
            self._staging = memory

        self._reserved = self._thread.submit(touch)

    def _memory(self, size: int) -> np.ndarray:
        """So many bytes, in memory that the next save uses again."""
        if self._reserved is not None:
            self._reserved.result()
            self._reserved = None
        if self._staging is None or self._staging.size < size:
            self._staging = disk.aligned_memory(size)
        return self._staging[:size]

    # --- the stages of a save under way

    def progress(self) -> tuple[bool, bool]:
        """Whether this rank's writing is still under way, and whether it failed; not collective.

        A loop that exchanges something in every step anyway can exchange these too, and call `poll` only when no rank
        is busy, or one failed.
        """
        stage = None if self._save is None else self._save.commit or self._save.shards
        if stage is None:
            return False, False
        busy = not stage.done()
        return busy, not busy and stage.exception() is not None

    @property
    def is_saving(self) -> bool:
        """Whether a save is under way; the same on all ranks."""
        return self._save is not None

    def poll(self) -> bool:
        """Move a save under way on to its next stage, if all ranks are ready; True if none is under way afterwards.

        Raises
        ------
        CheckpointError
            On all ranks, if any could not write.
        """
        if self._save is None:
            return True
        group = distributed.communicator()
        reports = group.all_gather_object(self._report())
        failed = next((r for r, report in enumerate(reports) if "error" in report), None)
        if failed is not None:
            self._give_up()
            raise self._failure(reports[failed]["error"], failed)
        if any(report["busy"] for report in reports):
            return False
        if self._save.shards is not None:
            written = [Written(b, d, [(o, h) for o, h in ps]) for b, d, ps in (r["written"] for r in reports)]
            save, self._save.shards = self._save, None
            if group.rank == 0:
                self._save.commit = self._thread.submit(self._commit, save, written)
            return False
        self.cost, self.latency = self._save.held_up, time.monotonic() - self._save.started
        self._last_number = self._save.number
        self._save = None
        return True

    def wait(self) -> None:
        """Return when no save is under way; raises what `poll` raises."""
        while self._save is not None and not self.poll():
            stage = self._save.commit or self._save.shards
            if stage is not None:
                stage.exception()  # blocks until it is done

    def _report(self) -> dict[str, Any]:
        assert self._save is not None
        busy, failed = self.progress()
        if failed and (stage := self._save.commit or self._save.shards):
            error = stage.exception()
            where = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) else repr(error)
            return {"busy": busy, "error": where}
        shards = self._save.shards
        return {"busy": busy, "written": None if busy or shards is None else list(shards.result())}

    def _commit(self, save: _Save, written: list[Written]) -> None:
        """Make the folder a checkpoint; on rank 0."""
        size = len(written)
        infos = save.manifest.tensors | {own_name(n, r): info for n, info in save.own.items() for r in range(size)}
        arrays, own = ({n: _Sized(i) for n, i in these.items()} for these in (save.manifest.tensors, save.own))
        parts: dict[str, list[Part]] = {name: [] for name in infos}
        for rank, shard in enumerate(written):
            path = os.path.join(save.folder, _shard_name(rank, size))
            found = os.stat(path).st_size if os.path.exists(path) else None
            if found != shard.bytes:
                raise CheckpointError(
                    f"rank {rank} wrote {path}, but rank 0 sees {'nothing' if found is None else f'{found} bytes'} "
                    "there; the directory must be on a file system that all ranks share"
                )
            pieces, _ = pieces_of(arrays, own, rank, size)  # type: ignore[arg-type]
            for piece, (offset, digest) in zip(pieces, shard.pieces, strict=True):
                parts[piece.tensor].append(Part(rank, offset, piece.first, piece.count, digest))
        manifest = Manifest(
            **vars(save.manifest)
            | {
                "shards": [Shard(_shard_name(r, size), w.bytes, w.digest) for r, w in enumerate(written)],
                "tensors": {n: TensorInfo(i.shape, i.dtype, tuple(parts[n])) for n, i in infos.items()},
            }
        )
        with disk.new_file(os.path.join(save.folder, NAME)) as write:
            write(manifest.to_bytes())
        disk.sync_folder(save.folder)
        disk.rename(save.folder, os.path.join(self.directory, folder_name(save.number, manifest.step)))
        disk.sync_folder(self.directory)
        try:
            self._prune()
        except OSError as error:
            what = f"{error.filename}: {error.strerror}"
            warnings.warn(f"an old checkpoint could not be removed, {what}; it is tried again.", stacklevel=2)

    def _prune(self) -> None:
        """Remove checkpoints that are neither among the newest nor among the best, and what was left half removed."""
        self._remove_leftovers()
        paths = self.checkpoints
        best = ranked(paths, self.monitor, self.mode)[: self.keep_best] if self.keep_best else []
        for path in paths[: -self.keep]:
            if path not in best:
                self._remove(path)

    def _remove_leftovers(self) -> None:
        for name in os.listdir(self.directory):
            if name.startswith(_TEMPORARY):
                disk.remove_tree(os.path.join(self.directory, name))

    def _remove(self, path: str) -> None:
        """Remove a checkpoint: first its name, so that nobody takes what is left for one."""
        doomed = os.path.join(self.directory, f"{_TEMPORARY}{os.path.basename(path)}")
        disk.rename(path, doomed)
        disk.remove_tree(doomed)

    def _remove_all(self) -> None:
        for path in self.checkpoints:
            self._remove(path)

    def _give_up(self) -> None:
        assert self._save is not None
        folder, self._save = self._save.folder, None
        self._thread.submit(lambda: None).result()  # nothing writes any more
        distributed.barrier()
        if distributed.is_main():
            disk.remove_tree(folder)
            # It may have got its name all the same, if only what came after that failed.
            self._last_number = max(map(number_of, self.checkpoints), default=self._last_number)

    def _failure(self, what: str, rank: int) -> CheckpointError:
        on_rank = f" on rank {rank}" if distributed.size() > 1 else ""
        there = [os.path.basename(path) for path in self.checkpoints]
        left = (
            f"The checkpoints before it are as they were: {', '.join(there)}." if there else "There is none before it."
        )
        return CheckpointError(f"a checkpoint could not be saved{on_rank}: {what}. {left}")

    # --- the end

    def delete(self) -> None:
        """Remove all checkpoints of the directory, and the directory if nothing else is in it."""
        self.open()
        self.wait()
        on_main(self._remove_all)
        self.close()
        if distributed.is_main() and not set(os.listdir(self.directory)) - {".lock"}:
            disk.remove_tree(self.directory)

    def close(self) -> None:
        """Give the right to write back; what is under way and not complete is left to be removed by the next job."""
        self._thread.shutdown(wait=True)
        self._thread = _new_thread()
        self._save = None
        self._opened = False
        if self._lock is not None:
            self._lock.release()
            self._lock = None


def _terms(tensors: Mapping[str, Variable | np.ndarray]) -> dict[str, Variable]:
    """Those that are terms of sums over several ranks, by the names that each rank's own are saved under."""
    variables = {name: t for name, t in tensors.items() if isinstance(t, Variable) and isinstance(t.partition, Term)}
    return {f"{n}/of-{v.partition.group.size}": v for n, v in variables.items() if v.partition.group.size > 1}


def _own(tensors: Mapping[str, Variable | np.ndarray]) -> dict[str, np.ndarray]:
    return {name: term.memory for name, term in _terms(tensors).items()}


def _infos(arrays: Mapping[str, np.ndarray]) -> dict[str, TensorInfo]:
    """All about them but where they are."""
    return {name: TensorInfo(a.shape, dtypes.standardize_dtype(a.dtype), ()) for name, a in arrays.items()}


class _Sized:
    """As much of an array as `share` asks for."""

    def __init__(self, info: TensorInfo):
        self.itemsize = dtypes.to_numpy(info.dtype).itemsize
        self.nbytes = info.bytes
        self.size = self.nbytes // self.itemsize


def _number(name: str, value: Any) -> float:
    if not isinstance(value, Real):
        raise ArgumentError(f"metrics are numbers; {name!r} is {value!r}.")
    return float(value)


def _shard_name(rank: int, size: int) -> str:
    return f"shard-{rank:05d}-of-{size:05d}.safetensors"
