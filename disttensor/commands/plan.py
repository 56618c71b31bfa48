"""``disttensor plan``: predict how fast training will be on more ranks and hosts, and say what limits it."""

from __future__ import annotations

import argparse
import json
import math
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

from disttensor import config, distributed
from disttensor.callbacks.step_profile import FORMAT
from disttensor.distributed import links, scaling
from disttensor.distributed.scaling import Link, Prediction, Step
from disttensor.errors import ArgumentError, DataError

_EXAMPLES = """\
A step is measured by the callback StepProfile("step.json", batch_size=...) in one process, or given by hand. The links
are measured when the command runs on two hosts or two ranks, or given by hand.

examples:
  disttensor plan step.json --latency 30us --bandwidth 10Gbit --ranks-per-host 8
  disttensor plan step.json --latency 30us --bandwidth 10Gbit --global-batch 4096
  disttensor-run --hosts a:1,b:1 --module disttensor plan step.json
  disttensor plan --step 15ms --rows 64 --gradients 4MB,4MB,40kB --latency 2us --bandwidth 100Gbit --json"""

_MOST_RANKS = 1024
# Assumed where it is neither given nor measured: a host's memory is seldom what limits.
_MEMORY = Link(5e-6, 20e9)
_FIELDS = {"format", "seconds", "rows", "gradients", "packets", "small_messages"}
_PREFIXES = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9}
_UNITS = {
    "time": {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0},
    "size": {"b": 1.0, "kb": 1e3, "mb": 1e6, "gb": 1e9, "kib": 2.0**10, "mib": 2.0**20, "gib": 2.0**30},
    "rate": {
        **{f"{p}bit{s}": f / 8 for p, f in _PREFIXES.items() for s in ("", "/s")},
        **{f"{p}b/s": f for p, f in _PREFIXES.items()},
    },
}
_EXAMPLE_OF = {"time": "30us or 1.5ms", "size": "4MB or 512KiB", "rate": "10Gbit or 1.2GB/s"}
_LIMITS = {
    "computation": "nothing but computation",
    "latency": "latency: fewer, larger messages and larger batches for each rank help; more bandwidth does not",
    "network": "bandwidth between hosts: a faster network, or more rows for each rank, help",
    "memory": "memory bandwidth within a host: fewer ranks with more threads each help",
    "rows": "too few rows: a larger global batch, or fewer ranks",
}


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.epilog = _EXAMPLES
    parser.add_argument("profile", nargs="?", type=Path, help="the file that StepProfile wrote")
    step = parser.add_argument_group("the step, instead of a file")
    step.add_argument("--step", type=_time, metavar="TIME", help="seconds of a step in one process")
    step.add_argument("--rows", type=_positive, metavar="N", help="rows of its batch")
    step.add_argument(
        "--gradients", type=_sizes, metavar="SIZES", help="bytes of the gradients, as they become ready: 4MB,400kB"
    )
    step.add_argument("--small-messages", type=int, metavar="N", help="all-reduces of a few numbers in a step (1)")
    group = parser.add_argument_group("links")
    group.add_argument("--latency", type=_time, metavar="TIME", help="of a message between hosts (measured)")
    group.add_argument("--bandwidth", type=_rate, metavar="RATE", help="between hosts, one way (measured)")
    group.add_argument("--memory-latency", type=_time, metavar="TIME", help="within a host (measured, or 5us)")
    group.add_argument("--memory-bandwidth", type=_rate, metavar="RATE", help="within a host (measured, or 20GB/s)")
    run = parser.add_argument_group("the run to predict")
    run.add_argument("--hosts", type=_counts, metavar="N,N,…", help="numbers of hosts (powers of 2 up to 1024 ranks)")
    run.add_argument("--ranks-per-host", type=_positive, default=1, metavar="R", help="default 1")
    run.add_argument(
        "--global-batch",
        type=_positive,
        metavar="N",
        help="rows that all ranks divide (default: as many for each rank as in the measured step)",
    )
    run.add_argument(
        "--fixed", type=_time, default=0.0, metavar="TIME", help="what of the step does not depend on its rows (0)"
    )
    run.add_argument(
        "--overlap", type=float, default=0.0, metavar="SHARE",
        help="share of the communication that could hide behind computation and does (%(default)s)",
    )  # fmt: skip
    run.add_argument("--bucket", type=_size, metavar="SIZE", help="size of a bucket (config.bucket_bytes)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(options: argparse.Namespace) -> int:
    """Measure what is missing, and print."""
    step = _step(options)
    if not 0 <= options.overlap <= 1:
        raise ArgumentError(f"--overlap must lie between 0 and 1, got {options.overlap}.")
    bucket_bytes = config.bucket_bytes() if options.bucket is None else int(options.bucket)
    network, memory, origin = _links(options)
    most = max(_MOST_RANKS // options.ranks_per_host, 1)
    hosts = options.hosts or [1 << i for i in range(int(math.log2(most)) + 1)]
    predictions = [
        scaling.predict(
            step, count, options.ranks_per_host, network, memory, global_batch=options.global_batch,
            fixed_seconds=options.fixed, overlap=options.overlap, bucket_bytes=bucket_bytes,
        )
        for count in hosts
    ]  # fmt: skip
    if not distributed.is_main():
        return 0
    if options.json:
        found = {
            "step": asdict(step),
            "network": asdict(network) | {"origin": origin["network"]},
            "memory": asdict(memory) | {"origin": origin["memory"]},
            "overlap": options.overlap,
            "bucket_bytes": bucket_bytes,
            "predictions": [asdict(p) for p in predictions],
        }
        print(json.dumps(found, indent=2))
    else:
        _print(step, network, memory, origin, predictions)
    return 0


def _step(options: argparse.Namespace) -> Step:
    by_hand = [options.step, options.rows, options.gradients]
    if options.profile is None:
        if any(value is None for value in by_hand):
            raise ArgumentError("give the file that StepProfile wrote, or all of --step, --rows and --gradients.")
        small = 1 if options.small_messages is None else options.small_messages
        return Step(options.step, options.rows, tuple(int(g) for g in options.gradients), small)
    if any(value is not None for value in [*by_hand, options.small_messages]):
        raise ArgumentError("give either a file or --step, --rows, --gradients and --small-messages, not both.")
    return read_profile(options.profile)


def read_profile(path: Path) -> Step:
    """A step as `StepProfile` wrote it.

    Raises
    ------
    DataError
        If the file holds something else.
    """
    try:
        found: Any = json.loads(path.read_bytes())
        if not isinstance(found, dict) or found.keys() != _FIELDS or found["format"] != FORMAT:
            raise ValueError(f"it is none of format {FORMAT!r}")
        numbers = [found["rows"], found["small_messages"], *found["gradients"], *found["packets"]]
        if any(type(n) is not int for n in numbers) or type(found["seconds"]) not in (int, float):
            raise ValueError("its values are no numbers")
        return Step(
            found["seconds"], found["rows"], tuple(found["gradients"]),
            small_messages=found["small_messages"], packets=tuple(found["packets"]),
        )  # fmt: skip
    except (ValueError, TypeError, RecursionError) as error:
        raise DataError(f"{path} is no profile of a step ({error}). The callback StepProfile writes one.") from None


def _links(options: argparse.Namespace) -> tuple[Link, Link, dict[str, str]]:
    """Between hosts and within one, and where the figures come from."""
    comm = distributed.communicator()
    origin = {"network": "given", "memory": "given"}
    wanted = options.latency is None or options.bandwidth is None
    measured = links.between_hosts(comm) if wanted else None
    if measured is not None:
        origin["network"] = f"measured between {comm.hosts[0]} and another host"
    single_host = options.hosts == [1]
    if wanted and measured is None and not single_host:
        raise ArgumentError(
            "the links between hosts are not known: give --latency and --bandwidth, or measure them with "
            f"`disttensor-run --hosts a:1,b:1 --module disttensor plan {options.profile or '…'}`."
        )
    base = measured or Link(0.0, math.inf)
    network = Link(_first(options.latency, base.latency), _first(options.bandwidth, base.bandwidth))
    wanted = options.memory_latency is None or options.memory_bandwidth is None
    measured = links.within_host(comm) if wanted else None
    if wanted:
        origin["memory"] = f"measured on {comm.hosts[0]}" if measured else "assumed"
    base = measured or _MEMORY
    memory = Link(
        _first(options.memory_latency, base.latency), _first(options.memory_bandwidth, base.bandwidth)
    )  # fmt: skip
    return network, memory, origin


def _first(given: float | None, otherwise: float) -> float:
    return otherwise if given is None else given


def _print(step: Step, network: Link, memory: Link, origin: dict[str, str], predictions: list[Prediction]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, markup=False, soft_wrap=True)
    # A narrow terminal breaks lines, but no figure is cut.
    console.size = console.size._replace(width=max(console.width, 120))
    megabytes = sum(step.gradients) / 1e6
    console.print(
        f"step      {1e3 * step.seconds:.3g} ms for {step.rows} rows in one process; {megabytes:.3g} MB of gradients, "
        f"{step.small_messages} small messages"
    )
    for name, link in (("network", network), ("memory", memory)):
        if math.isfinite(link.bandwidth):
            rate = f"{link.bandwidth * 8 / 1e9:.3g} Gbit/s" if name == "network" else f"{link.bandwidth / 1e9:.3g} GB/s"
            console.print(f"{name:9} {1e6 * link.latency:.3g} µs, {rate} ({origin[name]})")
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in (
        "hosts",
        "ranks",
        "rows",
        "ms a step",
        "compute",
        "latency",
        "network",
        "memory",
        "rows/s",
        "efficiency",
    ):
        table.add_column(column, justify="right")
    table.add_column("limited by")
    for p in predictions:
        seconds = (p.seconds, p.compute, p.latency, p.network, p.memory)
        table.add_row(
            str(p.hosts), str(p.ranks), str(p.rows), *(f"{1e3 * t:.3g}" for t in seconds), f"{p.throughput:.4g}",
            f"{p.efficiency:.0%}", p.limit,
        )  # fmt: skip
    console.print(table)
    for limit in dict.fromkeys(p.limit for p in predictions):
        if limit != "computation":
            console.print(f"{limit}: {_LIMITS[limit].partition(': ')[2] or _LIMITS[limit]}")


# --- numbers with units


def _quantity(kind: str, text: str) -> float:
    found = re.fullmatch(r"([0-9.]+(?:[eE][-+]?[0-9]+)?)\s*(\S*)", text.strip())
    unit = found.group(2).lower() if found else ""
    try:
        value = float(found.group(1)) if found else math.nan
        if unit or (kind != "size" and value):  # who writes 30 means no seconds, and seldom bytes a second
            value *= _UNITS[kind][unit]
    except (ValueError, KeyError):
        value = math.nan
    if not (math.isfinite(value) and value >= 0):
        raise argparse.ArgumentTypeError(f"{text!r} is no {kind}; write for example {_EXAMPLE_OF[kind]}")
    return value


def _time(text: str) -> float:
    return _quantity("time", text)


def _size(text: str) -> float:
    return _quantity("size", text)


def _rate(text: str) -> float:
    return _quantity("rate", text)


def _sizes(text: str) -> list[float]:
    return [_size(part) for part in text.split(",")]


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"needs a positive number, got {text!r}")
    return int(text)


def _counts(text: str) -> list[int]:
    return [_positive(part) for part in text.split(",")]
