"""The communicator of this process: connected when a launcher started several ranks, serial otherwise."""

from __future__ import annotations

import os
import secrets
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from disttensor import config, random
from disttensor.context import state
from disttensor.distributed import environment
from disttensor.distributed.communicator import Communicator, SerialCommunicator
from disttensor.errors import ArgumentError, DistributedError, TracingError
from disttensor.tensor import Variable
from launch import stacks
from launch.cores import time_limit

_communicator: Communicator | None = None


class _Grid(NamedTuple):
    """The groups of this rank: who has other data, and who has other parts of the model."""

    data: Communicator
    model: Communicator


_grid: _Grid | None = None
_ALONE = SerialCommunicator()

_SHORT = 1 << 16  # bytes; variables that are shorter are broadcast together


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
        if environment.is_supervised():  # alone; ranks have the watchdog's files, for one another too
            stacks.answer()
        return
    from disttensor.distributed import abort, connection, single_copy, watchdog

    _communicator = connection.connect(found)
    environment.claim_rank()
    watchdog.install(_communicator)
    abort.install()
    _share_cores(_communicator)
    if _communicator.local_size > 1:
        single_copy.bind()
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
        share = min(sum(1 / users[core] for core in mine), time_limit() / comm.local_size)
        config.set_threads(max(int(share + 1e-6), 1))


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
    saved = communicator(), _grid
    _regroup(replacement, None)
    try:
        yield replacement
    finally:
        _regroup(*saved)


def _regroup(comm: Communicator, grid: _Grid | None) -> None:
    """Set the communicator and the grid; what ranks share, they share as a data group."""
    global _communicator, _grid
    from disttensor.distributed import single_copy

    before = data_group()
    _communicator, _grid = comm, grid
    if data_group() is not before:
        single_copy.change_group()


def set_grid(model: int) -> None:
    """Arrange the ranks in a grid: `model` ranks share one model, and size / `model` such teams share the data.

    Ranks r with the same r // `model` are a team, its *model group*: they get the same rows of each batch, and each
    holds its part of the weights of the layers in `disttensor.layers` that can be divided (`ColumnParallelDense`,
    `RowParallelDense`, `VocabParallelEmbedding`). Ranks with the same r mod `model` are a *data group*: they hold the
    same parts of the weights and get different rows; gradients, metrics and batch statistics are averaged over it.
    Neighbours in rank are a team because they mostly share a host, and talk to each other more.

    Collective; call it before models, optimizers and data loaders are made. Without it every rank has its own data.

    Parameters
    ----------
    model : int
        Ranks in a team; must divide the number of ranks. 1 for data parallelism alone.

    Raises
    ------
    ArgumentError
        If it does not divide the number of ranks, or another grid is set already.
    DistributedError
        If ranks ask for different grids.

    References
    ----------
    Shoeybi et al., "Megatron-LM: Training Multi-Billion Parameter Language Models Using Model Parallelism",
    arXiv:1909.08053, 2019.

    Examples
    --------
    >>> from disttensor import distributed
    >>> distributed.set_grid(model=1)
    >>> distributed.size(distributed.model_group())
    1
    """
    _not_while_tracing("set_grid")
    comm = communicator()
    if isinstance(model, bool) or not isinstance(model, int) or model < 1 or comm.size % model:
        raise ArgumentError(f"set_grid: model={model!r} must be an int that divides the number of ranks, {comm.size}.")
    asked = comm.all_gather_object(model)
    if len(set(asked)) > 1:
        raise DistributedError(f"set_grid: the ranks ask for different grids: model={asked}, in the order of ranks.")
    if _grid is not None and _grid.model.size != model:
        raise ArgumentError(f"set_grid: the grid has model={_grid.model.size} already and cannot become {model}.")
    if _grid is None:
        alone = model == 1
        data = comm if alone else comm.split(comm.rank % model)
        _regroup(comm, _Grid(data, _ALONE if alone else comm.split(comm.rank // model)))


def data_group() -> Communicator:
    """The ranks among which batches are divided and gradients are averaged; all ranks, unless `set_grid` was called."""
    return communicator() if _grid is None else _grid.data


def model_group() -> Communicator:
    """The ranks that hold this model together and get the same rows; this rank alone without `set_grid`."""
    return _ALONE if _grid is None else _grid.model


def member(group: Communicator | None) -> Communicator:
    """The group itself, or for None that of all ranks.

    Raises
    ------
    ArgumentError
        If it is something else.
    """
    if group is None:
        return communicator()
    if not hasattr(group, "all_gatherv"):
        raise ArgumentError(f"group must be a Communicator, as distributed.split() returns it, got {group!r}.")
    return group


def rank(group: Communicator | None = None) -> int:
    """The number of this process in the group (default: all ranks), 0 to `size` - 1."""
    return member(group).rank


def size(group: Communicator | None = None) -> int:
    """How many ranks the group has (default: all ranks); 1 without a launcher."""
    return member(group).size


def local_rank(group: Communicator | None = None) -> int:
    """The number of this process among the ranks of the group that share its host, 0 to `local_size` - 1."""
    return member(group).local_rank


def local_size(group: Communicator | None = None) -> int:
    """How many ranks of the group share this process's host."""
    return member(group).local_size


def is_main() -> bool:
    """Whether this is rank 0, which prints and writes files for all."""
    return rank() == 0


def barrier(group: Communicator | None = None) -> None:
    """Return when every rank of the group (default: all ranks) has called it.

    Raises
    ------
    TracingError
        In a function that is being traced: it would wait once, now, and not when the function runs.
    """
    _not_while_tracing("barrier")
    member(group).barrier()


def split(color: int, group: Communicator | None = None) -> Communicator:
    """Divide a group: the sub-communicator of those ranks that gave the same color, in the order of their ranks.

    Collective over `group`. A group costs memory in the MPI library until the program ends: make it once.

    Parameters
    ----------
    color : int, at least 0
    group : Communicator, optional
        Which group to divide; default that of all ranks.

    Returns
    -------
    Communicator
        For the argument `group` of the functions of this module, or to be used directly.

    Raises
    ------
    ArgumentError
        If the color is no int, or negative.
    TracingError
        In a function that is being traced.

    Examples
    --------
    Rows and columns of a grid of ranks that is two wide:

    >>> from disttensor import distributed
    >>> row = distributed.split(distributed.rank() // 2)
    >>> column = distributed.split(distributed.rank() % 2)
    >>> distributed.size(row), distributed.rank(column)
    (1, 0)
    """
    _not_while_tracing("split")
    if isinstance(color, bool) or not isinstance(color, (int, np.integer)):
        raise ArgumentError(f"split: color must be an int, got {color!r}.")
    return member(group).split(int(color))


def _not_while_tracing(name: str) -> None:
    if state.tracer is not None:
        raise TracingError(
            f"distributed.{name}() in a traced function would run once, while it is traced, and not in each step. Call "
            "it outside of the function."
        )


def broadcast_variables(variables: Iterable[Variable]) -> None:
    """Give every rank the values that rank 0 has, in the variables' memory; with one process nothing happens.

    Ranks compare digests first, and send nothing if all have the same values. Of a variable that is divided among ranks
    (`Variable.partition`), ranks with the same part get the same values; one that is divided among those that share the
    data is left alone. Also while a function is traced it happens now, and once.

    Raises
    ------
    DistributedError
        On all ranks, if the shapes or dtypes of variables that are not divided differ.
    """
    variables = list(variables)
    whole = [v for v in variables if v.partition is None]
    agree("the variables to broadcast", {f"variable {i}": [v.shape, v.dtype] for i, v in enumerate(whole)}, variables)


def agree(what: str, facts: Mapping[str, Any], variables: Sequence[Variable]) -> None:
    """Raise on every rank if facts differ between ranks, see `require_same`; else give variables the values of rank 0.

    Parameters
    ----------
    what : str
    facts : mapping
        Among them shapes and dtypes of the variables that are not divided.
    variables : sequence of Variable
        See `broadcast_variables`.
    """
    group = communicator()
    if group.size == 1:
        return
    from disttensor.distributed import background
    from disttensor.distributed.consistency import digest_of, require_same

    background.open_channel(data_group())  # here, since all ranks are
    whole = [v for v in variables if v.partition is None]
    changed = [] if require_same(what, facts, digest_of(whole)) else whole
    short = [v for v in changed if v.memory.nbytes < _SHORT]
    if short:
        message = np.concatenate([v.memory.reshape(-1).view(np.uint8) for v in short])
        ends = np.cumsum([v.memory.nbytes for v in short])[:-1]
        for variable, part in zip(short, np.split(group.broadcast(message), ends), strict=True):
            np.copyto(variable.writable, part.view(variable.memory.dtype).reshape(variable.memory.shape))
    for variable in changed:
        if variable.memory.nbytes >= _SHORT:
            group.broadcast(variable.writable)
    for variable in variables:
        if variable.partition is not None and variable.partition.group is not data_group():
            data_group().broadcast(variable.writable)
            changed.append(variable)
    Variable.touch_all(changed)
