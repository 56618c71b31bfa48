"""What a measurement depends on beside the code: processor, cores, load."""

from __future__ import annotations

import datetime
import os
import platform
from pathlib import Path
from typing import Any

_FEATURES = ("avx", "avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "asimd", "sve")


def cores() -> list[int]:
    """The cores that this process may run on."""
    return sorted(os.sched_getaffinity(0))


def load() -> str:
    """The load averages of the last 1, 5 and 15 minutes."""
    return " ".join(f"{value:.2f}" for value in os.getloadavg())


def describe() -> dict[str, Any]:
    """Date, processor, its vector extensions, cores, memory, system and load."""
    information = {
        name.strip(): value.strip()
        for name, colon, value in (line.partition(":") for line in Path("/proc/cpuinfo").read_text().splitlines())
        if colon
    }
    flags = (information.get("flags") or information.get("Features") or "").split()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "processor": information.get("model name", platform.machine()),
        "features": [name for name in _FEATURES if name in flags],
        "cores": len(cores()),
        "memory_gib": round(memory / 2**30, 1),
        "system": platform.platform(),
        "load": load(),
    }


def lines(description: dict[str, Any]) -> list[str]:
    """`describe` for people."""
    return [
        f"{description['date']}, {description['system']}",
        f"{description['processor']}, {description['cores']} cores, {description['memory_gib']} GiB; "
        + " ".join(description["features"]),
        f"load average at the start: {description['load']}",
    ]
