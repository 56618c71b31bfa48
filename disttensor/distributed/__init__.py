"""Ranks and what they say to one another.

When a launcher such as ``disttensor-run``, mpirun or srun started this process as one of several ranks,
`communicator` is that of all ranks; otherwise it is `SerialCommunicator`, and MPI is never loaded. Either way the
code that uses it is the same.

Examples
--------
>>> from disttensor import distributed
>>> if distributed.is_main():
...     print("one of", distributed.size())
one of 1
"""

from __future__ import annotations

from disttensor.distributed.allreduce_pass import insert_allreduce
from disttensor.distributed.collectives import sync_mean, sync_sum
from disttensor.distributed.communicator import Communicator, Handle, SerialCommunicator
from disttensor.distributed.environment import Launcher, launcher
from disttensor.distributed.functional import all_gather, all_reduce, broadcast, reduce_scatter
from disttensor.distributed.helping_pass import offer_products  # before the updates are part of the starts
from disttensor.distributed.replicated import (
    copy_to_group,
    gather_from_group,
    reduce_from_group,
    scatter_to_group,
)
from disttensor.distributed.updates_pass import update_in_sums
from disttensor.distributed.virtual_shards import divided
from disttensor.distributed.world import (
    barrier,
    broadcast_variables,
    communicator,
    data_group,
    initialize,
    is_main,
    local_rank,
    local_size,
    model_group,
    rank,
    set_grid,
    size,
    split,
    use_communicator,
)
from disttensor.graph.function import bind_parts

bind_parts(divided)

__all__ = [
    "Communicator",
    "Handle",
    "Launcher",
    "SerialCommunicator",
    "all_gather",
    "all_reduce",
    "barrier",
    "broadcast",
    "broadcast_variables",
    "communicator",
    "copy_to_group",
    "data_group",
    "gather_from_group",
    "initialize",
    "insert_allreduce",
    "is_main",
    "launcher",
    "local_rank",
    "local_size",
    "model_group",
    "offer_products",
    "rank",
    "reduce_from_group",
    "reduce_scatter",
    "scatter_to_group",
    "set_grid",
    "size",
    "split",
    "sync_mean",
    "sync_sum",
    "update_in_sums",
    "use_communicator",
]
