"""What every rank runs: ``python -m benchmarks.ranks_worker JOB``, where JOB is JSON; it prints its answer as JSON.

The job's "activity" is "allreduce" (sums of arrays of "sizes" bytes), "training" (steps of a "workload" whose batches
the ranks divide), "scaling" (steps of a workload together and apart, in turns) or "sharded" (memory of a training whose
optimizer state is divided as "stage" says).
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import json
import os
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.catalogue import WORKLOADS, Workload
from benchmarks.lines import Lines
from benchmarks.ranks import GLOO

_SKIPPED = 3
"""Steps at the start of a round that do not count."""


def allreduce(job: dict[str, Any]) -> dict[str, list[float]]:
    """Seconds of an all-reduce in place of float32, for each size: ours and the library's in turn.

    The best of some rounds, by turns, of so many calls one after another: the time on a machine that does nothing else.
    """
    found: dict[str, list[float]] = {}
    for size in job["sizes"]:
        sums, times = _sums(job["library"], size // 4), max(4, min(50, (1 << 20) // size))
        for call in sums.values():
            for _ in range(3):  # until all is prepared
                call()
        rounds = [{name: _seconds(call, times) for name, call in sums.items()} for _ in range(job["rounds"])]
        for name in sums:
            found.setdefault(name, []).append(min(seconds[name] for seconds in rounds))
    return found


def _sums(library: str, count: int) -> dict[str, Callable[[], Any]]:
    if library == GLOO:
        import torch
        from torch import distributed

        tensor = torch.zeros(count)
        return {"library": lambda: distributed.all_reduce(tensor)}
    from disttensor import distributed as ours

    comm = ours.communicator()
    from mpi4py import MPI  # which is loaded, and set up, by the package

    shared, own = comm.shared_empty((count,), np.float32), np.zeros(count, np.float32)
    shared.fill(0)
    return {
        "ours": lambda: comm.all_reduce(shared),
        "library": lambda: comm.mpi.Allreduce(MPI.IN_PLACE, own),
    }


def _seconds(call: Callable[[], Any], times: int) -> float:
    for _ in range(3):  # so that all begin together, and the cache holds what it does again and again
        call()
    start = time.perf_counter()
    for _ in range(times):
        call()
    return (time.perf_counter() - start) / times


def training(job: dict[str, Any]) -> list[float]:
    """Seconds of each step of a workload that the ranks do together."""
    workload = WORKLOADS[job["workload"]]
    return _Training(workload, job, together=True).steps(0)


def scaling(job: dict[str, Any]) -> dict[str, list[float]]:
    """Seconds a step of a workload took in each turn: "together", where each rank gets a batch of the workload's size,
    and "apart", where each trains at the same time as if it were alone; with "floor" also "seen", which is apart with a
    callback that sees every step, and "meeting", where that waits for the other ranks. "line" is what `Lines` says
    before each turn together.
    """
    alone = WORKLOADS[job["workload"]]
    ways = {"together": dataclasses.replace(alone, batch=alone.batch * job["ranks"]), "apart": alone}
    if job["library"] == GLOO:
        ways["together"] = alone
    trainings = {way: _Training(workload, job, way == "together") for way, workload in ways.items()}
    turns = [(way, one, []) for way, one in trainings.items()]
    if job["floor"] and job["library"] != GLOO:
        turns += [(way, trainings["apart"], [_watcher(way == "meeting")]) for way in ("seen", "meeting")]
    found: dict[str, list[float]] = {way: [] for way in ("line", *(way for way, *_ in turns))}
    lines = Lines(Path(job["folder"]), job["ranks"])
    for number in range(job["rounds"]):
        found["line"].append(lines.seconds())
        for turn, (way, one, callbacks) in enumerate(turns):
            found[way].append(one.seconds_a_step(len(turns) * number + turn, *callbacks))
    return found


def _watcher(meets: bool) -> Any:
    """A callback that sees each step, and may wait for all ranks then; what they exchange is one number."""
    from disttensor import callbacks, distributed

    comm, number = distributed.communicator(), np.zeros(1, np.int64)

    class Watcher(callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            if meets:
                comm.all_reduce(number)

    return Watcher()


class _Training:
    """A workload's training on this rank, `together` with the others or as if there were none.

    Parameters
    ----------
    workload : Workload
        Its batch is this rank's in PyTorch, and that of all ranks otherwise.
    job : dict
    together : bool
    """

    def __init__(self, workload: Workload, job: dict[str, Any], together: bool):
        self._job = job
        self._alone: Callable[[], AbstractContextManager[Any]] = contextlib.nullcontext
        self._session: Any
        if job["library"] == GLOO:
            from benchmarks.workloads import torch_steps

            self._session = torch_steps.Session(workload, parallel=together)
        else:
            from benchmarks.workloads import keras_like
            from disttensor.distributed.communicator import SerialCommunicator
            from disttensor.distributed.world import use_communicator

            if not together:
                self._alone = lambda: use_communicator(SerialCommunicator())
            with self._alone():
                self._session = keras_like.Session(workload, "disttensor")
            if job.get("rank_statistics"):
                from disttensor.layers import BatchNormalization

                for layer in self._session.model.layers:
                    if isinstance(layer, BatchNormalization):
                        layer.synchronized = False
        self._count = (job["steps"] or workload.steps) + _SKIPPED
        self._data = self._session.prepare(*workload.data(self._count))
        with self._alone():
            self._session.train(*self._session.prepare(*workload.data(2)))

    def steps(self, number: int) -> list[float]:
        """Seconds of each step of a round, which all ranks begin at the same time."""
        _meet(Path(self._job["folder"]), number, self._job["ranks"])
        with self._alone():
            ends, _ = self._session.train(*self._data)
        return [end - start for start, end in zip(ends[_SKIPPED:], ends[_SKIPPED + 1 :], strict=False)]

    def seconds_a_step(self, number: int, *callbacks: Any) -> float:
        """The same of a whole round, in which nobody but these callbacks looks at each step."""
        _meet(Path(self._job["folder"]), number, self._job["ranks"])
        with self._alone():
            return float(self._session.seconds(*self._data, *callbacks) / self._count)


def sharded(job: dict[str, Any]) -> dict[str, float]:
    """Bytes that training takes on this rank, by what they are for, and seconds of a step."""
    import disttensor as keras
    from disttensor import distributed, layers

    keras.config.set_single_copy(job["single_copy"])

    def network(width: int, depth: int) -> tuple[keras.Model, Any]:
        model = keras.Sequential([keras.Input((width,)), *(layers.Dense(width, "relu") for _ in range(depth))])
        optimizer: Any = keras.optimizers.Adam()
        if job["stage"]:
            optimizer = keras.optimizers.ShardedOptimizer(optimizer, stage=job["stage"])
        model.compile(optimizer, "mse")
        return model, optimizer

    x = np.random.default_rng(0).normal(size=(job["rows"] * distributed.size(), job["width"])).astype("float32")
    rows = np.ones((distributed.size(), 16), np.float32)
    network(16, 1)[0].fit(rows, rows, distributed.size(), verbose=0)  # what any first training loads and compiles
    before = _proportional_set_size()
    model, optimizer = network(job["width"], job["depth"])
    model.fit(x, x, len(x), epochs=3, verbose=0)
    start = time.perf_counter()
    model.fit(x, x, len(x), epochs=job["steps"], verbose=0)
    seconds = (time.perf_counter() - start) / job["steps"]
    plans = list(model.train_function.plans)
    slots = [v for v in optimizer.variables if v.shape]
    return {
        "weights": sum(v.memory.nbytes for v in model.weights),
        "state": sum(v.memory.nbytes for v in slots),
        "bucket": keras.config.bucket_bytes(),
        "arena": max(plan.memory().arena for plan in plans),
        "measured": _proportional_set_size() - before,
        "seconds": seconds,
    }


def _proportional_set_size() -> int:
    """Bytes of memory of this process, of what it shares with others its part."""
    gc.collect()
    text = Path("/proc/self/smaps_rollup").read_text()
    return 1024 * int(next(line.split()[1] for line in text.splitlines() if line.startswith("Pss:")))


def _meet(folder: Path, number: int, ranks: int) -> None:
    """Return when all have called it, whether they are coupled or not."""
    (folder / f"{number}-{os.getpid()}").touch()
    while len(list(folder.glob(f"{number}-*"))) < ranks:
        time.sleep(0.001)


ACTIVITIES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "allreduce": allreduce,
    "training": training,
    "scaling": scaling,
    "sharded": sharded,
}


def main() -> None:
    """Do the job, and print what came out."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    job = json.loads(sys.argv[1])
    if job["library"] == GLOO:
        from torch import distributed

        distributed.init_process_group("gloo")
    answer = ACTIVITIES[job["activity"]](job)
    if job["library"] == GLOO:
        distributed.destroy_process_group()
    # In one piece, so that lines of ranks do not mix.
    os.write(answers.fileno(), (json.dumps(answer) + "\n").encode())


if __name__ == "__main__":
    main()
