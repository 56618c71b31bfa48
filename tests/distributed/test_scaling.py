"""Predictions of scaling against closed forms."""

from __future__ import annotations

import math

import pytest

from disttensor.distributed.scaling import Link, Step, all_reduce_parts, predict
from disttensor.errors import ArgumentError

NETWORK, MEMORY = Link(1e-4, 1e8), Link(1e-5, 1e10)
STEP = Step(0.03, 64, (1 << 20,) * 6, 1)


@pytest.mark.parametrize(
    ("size", "hosts", "ranks", "want"),
    [
        (8e6, 1, 1, 0.0),
        (8e6, 2, 1, 1e-4 + 8e6 / 1e8),  # one exchange of everything
        (8e6, 4, 1, 4e-4 + 1.5 * 8e6 / 1e8),  # reduce-scatter and all-gather
        (80, 8, 1, 3 * (1e-4 + 80 / 1e8)),  # short: recursive doubling
        (8e6, 3, 1, 4 * 1e-4 + 4 / 3 * 8e6 / 1e8),  # pairs: each sends two thirds of it twice
        (80, 3, 1, 3 * (1e-4 + 80 / 1e8)),  # one host hands its values on, two exchange, one gets the sum back
        (8e6, 6, 1, 1e-3 + 5 / 3 * 8e6 / 1e8),
        (8e6, 1, 4, 2e-5 + 8 * 8e6 / 1e10),
        (8e6, 2, 4, 1e-4 + 8e6 / 1e8 + 2e-5 + 8 * 8e6 / 1e10),
    ],
)
def test_all_reduce(size: float, hosts: int, ranks: int, want: float) -> None:
    assert sum(all_reduce_parts(size, hosts, ranks, NETWORK, MEMORY)) == pytest.approx(want, rel=1e-12)


def test_buckets_close_when_they_are_full() -> None:
    sizes = [size for size, _ in STEP.buckets(2 << 20)]
    ready = [share for _, share in STEP.buckets(2 << 20)]
    assert sizes == [2 << 20] * 3
    assert ready == pytest.approx([1 / 3 + 2 / 3 * i / 6 for i in (2, 4, 6)])
    assert STEP.buckets(1) == [(1 << 20, pytest.approx(1 / 3 + 2 / 3 * i / 6)) for i in range(1, 7)]
    assert sum(size for size, _ in STEP.buckets(100 << 20)) == 6 << 20
    assert Step(1.0, 1, ()).buckets() == []


def test_tables_send_the_rows_of_all_ranks_unless_the_table_is_shorter() -> None:
    step = Step(0.03, 64, (1000, 9000, 500), packets=(0, 2000, 0))
    assert step.sent(2, 128) == [1000, 4000, 500]
    assert step.sent(4, 256) == [1000, 8000, 500]
    assert step.sent(8, 512) == [1000, 9000, 500]
    assert step.sent(8, 64) == [1000, 2000, 500]  # of a batch that ranks divide each looks up fewer
    assert step.sent(3, 128) == [1000, 9000, 500]  # ranks with different numbers of rows send tables
    cost = [sum(all_reduce_parts(size, 2, 1, NETWORK, MEMORY)) for size in (1000, 4000, 500, 64)]
    assert predict(step, 2, 1, NETWORK, MEMORY, bucket_bytes=1).seconds == pytest.approx(0.03 + sum(cost))
    with pytest.raises(ArgumentError, match="a packet for each gradient"):
        Step(0.03, 64, (1000, 9000), packets=(0,))


def test_one_rank_is_the_measured_step() -> None:
    found = predict(STEP, 1, 1, NETWORK, MEMORY)
    assert (found.seconds, found.efficiency, found.limit) == (0.03, 1.0, "computation")
    assert found.throughput == pytest.approx(64 / 0.03)


def test_without_overlap_times_add_up() -> None:
    found = predict(STEP, 2, 1, NETWORK, MEMORY)
    cost = sum(sum(all_reduce_parts(size, 2, 1, NETWORK, MEMORY)) for size, _ in STEP.buckets())
    small = sum(all_reduce_parts(64, 2, 1, NETWORK, MEMORY))
    assert found.seconds == pytest.approx(0.03 + cost + small)
    assert found.efficiency == pytest.approx(0.03 / found.seconds)
    assert found.limit == "network"


def test_with_overlap_only_what_ends_after_the_computation_counts() -> None:
    """Buckets of 1 MiB take 10.6 ms each; the first starts after 13.3 ms, and one follows the other without a gap."""
    found = predict(STEP, 2, 1, NETWORK, MEMORY, overlap=1.0, bucket_bytes=1)
    cost, small = (sum(all_reduce_parts(size, 2, 1, NETWORK, MEMORY)) for size in (1 << 20, 64))
    assert found.seconds == pytest.approx(0.03 * (1 / 3 + 2 / 3 / 6) + 6 * cost + small)
    half = predict(STEP, 2, 1, NETWORK, MEMORY, overlap=0.5, bucket_bytes=1)
    none = predict(STEP, 2, 1, NETWORK, MEMORY, overlap=0.0, bucket_bytes=1)
    assert half.seconds == pytest.approx((found.seconds + none.seconds) / 2)


def test_a_fast_network_hides_everything_but_the_last_bucket() -> None:
    fast = Link(1e-6, 1e10)
    found = predict(STEP, 2, 1, fast, MEMORY, overlap=1.0, bucket_bytes=1)
    last, small = (sum(all_reduce_parts(size, 2, 1, fast, MEMORY)) for size in (1 << 20, 64))
    assert found.seconds == pytest.approx(0.03 + last + small)
    assert found.limit == "computation"


def test_a_global_batch_is_divided() -> None:
    found = predict(STEP, 4, 1, Link(0.0, 1e15), MEMORY, global_batch=64, fixed_seconds=0.01)
    assert found.compute == pytest.approx(0.01 + 0.02 / 4)
    assert found.rows == 64
    too_few = predict(STEP, 4, 1, Link(0.0, 1e15), MEMORY, global_batch=2)
    assert too_few.compute == pytest.approx(0.03 / 64)
    assert (too_few.efficiency, too_few.limit) == (pytest.approx(0.5, rel=1e-4), "rows")


@pytest.mark.parametrize(
    ("network", "memory", "ranks", "limit"),
    [
        (Link(0.5, 1e12), MEMORY, 1, "latency"),
        (Link(1e-6, 1e7), MEMORY, 1, "network"),
        (Link(1e-9, 1e15), Link(1e-9, 1e8), 2, "memory"),
    ],
)
def test_it_says_what_limits(network: Link, memory: Link, ranks: int, limit: str) -> None:
    assert predict(STEP, 2, ranks, network, memory).limit == limit


def test_more_hosts_are_never_more_efficient() -> None:
    found = [predict(STEP, 1 << i, 8, NETWORK, MEMORY).efficiency for i in range(8)]
    assert found == sorted(found, reverse=True)


@pytest.mark.parametrize("make", [lambda: Link(-1.0, 1.0), lambda: Link(0.0, 0.0), lambda: Link(math.nan, 1.0)])
def test_links_are_checked(make: object) -> None:
    with pytest.raises(ArgumentError, match="latency"):
        make()  # type: ignore[operator]


def test_steps_are_checked() -> None:
    with pytest.raises(ArgumentError, match="positive seconds"):
        Step(0.0, 1, ())
