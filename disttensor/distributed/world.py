"""The communicator of this process: connected when a launcher started several ranks, serial otherwise."""

from __future__ import annotations

import os
import secrets
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from disttensor import config, random
from disttensor.distributed import environment
from disttensor.distributed.communicator import Communicator, SerialCommunicator
from disttensor.tensor import Variable

_communicator: Communicator | None = None


def initialize() -> None:
    """Find the launcher and connect the ranks; ``import disttensor`` calls this, and further calls do nothing.

    From then on an uncaught exception or ``sys.exit`` on one rank ends all of them (see
    `disttensor.distributed.abort`). The ranks of one host share its cores: each gets as many threads (`config.threads`)
    as it has cores to itself, unless ``DISTTENSOR_THREADS`` or ``OMP_NUM_THREADS`` says otherwise.

    Raises
    ------
    DistributedError
        If a launcher is present, but no MPI library, or one that does not belong to the launcher.
    """
    global _communicator
    if _communicator is not None:
        return
    found = environment.launcher()
    if found is None:
        _communicator = SerialCommunicator()
        return
    from disttensor.distributed import abort, mpi

    _communicator = mpi.connect(found)
    environment.claim_rank()
    abort.install()
    _share_cores(_communicator)
    seed = _communicator.broadcast_object(secrets.randbits(32))
    random.bind_seed_source(lambda: seed)


def _share_cores(comm: Communicator) -> None:
    """Let the ranks of a host use no more threads together than it has cores, unless the user said how many."""
    mine = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    users: Counter[int] = Counter()
    for node, cores in comm.all_gather_object([comm.node, sorted(mine)]):
        if node == comm.node:
            users.update(cores)
    if not any(os.environ.get(name) for name in ("DISTTENSOR_THREADS", "OMP_NUM_THREADS")):
        config.set_threads(max(int(sum(1 / users[core] for core in mine) + 1e-6), 1))


def communicator() -> Communicator:
    """The communicator of all ranks."""
    initialize()
    assert _communicator is not None
    return _communicator


@contextmanager
def use_communicator(replacement: Communicator) -> Iterator[Communicator]:
    """Let `communicator` be another one for a while, for example in tests.

    Examples
    --------
    >>> with use_communicator(SerialCommunicator()) as comm:
    ...     communicator() is comm
    True
    """
    global _communicator
    saved = communicator()
    _communicator = replacement
    try:
        yield replacement
    finally:
        _communicator = saved


def rank() -> int:
    """The number of this process, 0 to `size` - 1."""
    return communicator().rank


def size() -> int:
    """How many ranks there are; 1 without a launcher."""
    return communicator().size


def is_main() -> bool:
    """Whether this is rank 0, which prints and writes files for all."""
    return rank() == 0


def barrier() -> None:
    """Return when every rank has called it."""
    communicator().barrier()


def broadcast_variables(variables: Iterable[Variable]) -> None:
    """Give every rank the values that rank 0 has, in the variables' memory; with one process nothing happens.

    Also while a function is traced it happens now, and once.
    """
    group = communicator()
    if group.size == 1:
        return
    for variable in variables:
        group.broadcast(variable.memory)
        variable.touch()
