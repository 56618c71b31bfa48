"""How a training step scales: predictions from one measured step, the sizes of gradients, and what the links give.

A message of b bytes takes α + b/B over a link of latency α and bandwidth B (Hockney's α–β model, β = 1/B). With it, an
all-reduce between N = 2ᴸ hosts takes, with the best of three algorithms: of an MPI library,

    min(L·(α + b/B),  2·L·α + 2·(N − 1)/N · b/B)                       recursive doubling; Rabenseifner's

and 2·(α + b/B) more where N is no power of two: the hosts beyond one hand their values to others, and get the sums
back; or, by messages between pairs, 2·(N − 1)·α + 2·(N − 1)/N · b/B, if that is less. Within a host, where R ranks sum
in memory that they share, it takes 2·α' + 2·R·b/M with the memory's bandwidth M. Gradients become ready one after the
other in the last two thirds of the step, are packed into buckets, and travel in that order. What of their time lies
before the end of the computation can be hidden, and `overlap` says which share of it is.

References
----------
Thakur, Rabenseifner and Gropp, "Optimization of Collective Communication Operations in MPICH", International Journal of
High Performance Computing Applications 19(1), 2005.
Li et al., "PyTorch Distributed: Experiences on Accelerating Data Parallel Training", VLDB 2020.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from disttensor.errors import ArgumentError

BUCKET_BYTES = 4 << 20
_FORWARD = 1 / 3  # of a step; the backward pass takes about twice as long
_SMALL = 64  # bytes of a message that carries a few numbers
_GOOD = 0.9  # an efficiency from which on computation is what limits


@dataclass(frozen=True)
class Link:
    """What lies between ranks.

    Attributes
    ----------
    latency : float
        α, seconds a message.
    bandwidth : float
        B or M, bytes a second.
    """

    latency: float
    bandwidth: float

    def __post_init__(self) -> None:
        if not (self.latency >= 0 and self.bandwidth > 0):
            raise ArgumentError(f"a link needs a latency of at least 0 and a positive bandwidth, got {self}.")


@dataclass(frozen=True)
class Step:
    """A training step as it was measured in one process.

    Attributes
    ----------
    seconds : float
    rows : int
        Of its batch.
    gradients : tuple of int
        Bytes of each gradient, in the order in which they become ready.
    small_messages : int
        All-reduces of a few numbers that nothing hides: one in which `fit` asks whether all go on, and two for each
        synchronized ``BatchNormalization``.
    packets : tuple of int
        For each gradient the bytes of the rows that the batch looks up, if it is that of a table; else 0, as by
        default. Ranks exchange rows where those of all are no longer than the table (`disttensor.distributed.rows`).
    """

    seconds: float
    rows: int
    gradients: tuple[int, ...]
    small_messages: int = 1
    packets: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        sizes = (self.small_messages, *self.gradients, *self.packets)
        if not (self.seconds > 0 and self.rows > 0 and all(size >= 0 for size in sizes)):
            raise ArgumentError(f"a step needs positive seconds and rows, and sizes of at least 0, got {self}.")
        if self.packets and len(self.packets) != len(self.gradients):
            raise ArgumentError(f"a step needs a packet for each gradient, got {self}.")

    def sent(self, ranks: int, rows: int) -> list[int]:
        """Bytes that are summed over so many ranks for each gradient, if `rows` are those of the global batch."""
        found = list(self.gradients)
        for i, packet in enumerate(self.packets):
            every = ranks * math.ceil(packet * rows / (ranks * self.rows))
            if packet and rows % ranks == 0 and every <= found[i]:
                found[i] = every
        return found

    def buckets(self, limit: int = BUCKET_BYTES, ranks: int = 1, rows: int | None = None) -> list[tuple[int, float]]:
        """Bytes of each bucket, and what share of the step has passed when its last gradient is ready.

        Parameters
        ----------
        limit : int, default 4 MiB
            A bucket is full with so many bytes.
        ranks : int, default 1
        rows : int, optional
            Of the global batch; default: as many for each rank as the step has.
        """
        found: list[tuple[int, float]] = []
        is_open = False
        for i, size in enumerate(self.sent(ranks, ranks * self.rows if rows is None else rows), 1):
            ready = _FORWARD + (1 - _FORWARD) * i / len(self.gradients)
            found[-1:] = [(found[-1][0] + size, ready)] if is_open else [*found[-1:], (size, ready)]
            is_open = found[-1][0] < limit
        return found


@dataclass(frozen=True)
class Prediction:
    """A training step on a number of hosts and ranks.

    Attributes
    ----------
    hosts, ranks : int
        Ranks in all.
    rows : int
        Of the global batch.
    seconds : float
        Of a step: computation, and what communication adds to it.
    compute, latency, network, memory : float
        Seconds of computation on the rank with most rows; seconds that are added by latencies, by the bandwidth between
        hosts, and by that of memory.
    throughput : float
        Rows a second.
    efficiency : float
        Throughput by that of as many ranks that need not communicate and divide rows evenly.
    limit : str
        What limits: "computation", "latency", "network", "memory", or "rows" if there are too few for all ranks.
    """

    hosts: int
    ranks: int
    rows: int
    seconds: float
    compute: float
    latency: float
    network: float
    memory: float
    throughput: float
    efficiency: float
    limit: str


def all_reduce_parts(size: float, hosts: int, ranks_per_host: int, network: Link, memory: Link) -> tuple[float, ...]:
    """Seconds of an all-reduce of so many bytes: those of latencies, of the network's bandwidth, and of memory's."""
    latency = between = within = 0.0
    if hosts > 1:
        rounds = hosts.bit_length() - 1
        power = 1 << rounds
        fold = 0 if hosts == power else 2
        ways = [
            ((rounds + fold) * network.latency, (rounds + fold) * size / network.bandwidth),
            ((2 * rounds + fold) * network.latency, (2 - 2 / power + fold) * size / network.bandwidth),
            (2 * (hosts - 1) * network.latency, (2 - 2 / hosts) * size / network.bandwidth),
        ]
        latency, between = min(ways, key=sum)
    if ranks_per_host > 1:
        latency += 2 * memory.latency
        within = 2 * ranks_per_host * size / memory.bandwidth
    return latency, between, within


def predict(
    step: Step,
    hosts: int,
    ranks_per_host: int,
    network: Link,
    memory: Link,
    *,
    global_batch: int | None = None,
    fixed_seconds: float = 0.0,
    overlap: float = 0.0,
    bucket_bytes: int = BUCKET_BYTES,
) -> Prediction:
    """Predict a training step.

    Parameters
    ----------
    step : Step
        Measured with as many threads as each rank will have.
    hosts, ranks_per_host : int
    network, memory : Link
        Between hosts, and within one.
    global_batch : int, optional
        Rows that all ranks divide; default: as many for each rank as the measured step has.
    fixed_seconds : float, default 0
        The part of the measured time that does not depend on the number of rows.
    overlap : float, default 0
        Which share of communication that could be hidden behind computation is hidden.
    bucket_bytes : int, default 4 MiB
    """
    ranks = hosts * ranks_per_host
    rows = ranks * step.rows if global_batch is None else global_batch
    most = math.ceil(rows / ranks)
    per_row = max(step.seconds - fixed_seconds, 0.0) / step.rows
    compute = fixed_seconds + per_row * most
    parts = [0.0, 0.0, 0.0]
    hidden = 0.0
    if ranks > 1:
        end = 0.0
        for size, ready in step.buckets(bucket_bytes, ranks, rows):
            cost = all_reduce_parts(size, hosts, ranks_per_host, network, memory)
            parts = [a + b for a, b in zip(parts, cost, strict=True)]
            end = max(end, ready * compute) + sum(cost)
        hidden = overlap * (sum(parts) - max(end - compute, 0.0))
    shown = 1 - hidden / sum(parts) if sum(parts) else 1.0
    parts = [part * shown for part in parts]
    if ranks > 1:
        small = all_reduce_parts(_SMALL, hosts, ranks_per_host, network, memory)
        parts = [a + step.small_messages * b for a, b in zip(parts, small, strict=True)]
    seconds = compute + sum(parts)
    ideal = fixed_seconds + per_row * rows / ranks
    efficiency = ideal / seconds
    latency, between, within = parts
    limit = _limit(efficiency, {"rows": compute - ideal, "latency": latency, "network": between, "memory": within})
    return Prediction(
        hosts, ranks, rows, seconds, compute, latency, between, within, rows / seconds, efficiency, limit
    )  # fmt: skip


def _limit(efficiency: float, losses: dict[str, float]) -> str:
    return "computation" if efficiency >= _GOOD else max(losses, key=lambda name: losses[name])
