"""How many cores a process may keep busy: what its affinity allows, and what its control group gets time for.

A container with a limit of one core's time on a machine of many still sees all of them. Threads on more of them than it
has time for are all stopped together once the time of a period is used up, those that others wait for among them.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

_GROUPS = Path("/sys/fs/cgroup")
_OWN = Path("/proc/self/cgroup")


def usable_cores() -> int:
    """How many cores this process may use: whole ones, at least 1."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(int(min(allowed, time_limit())), 1)


def time_limit() -> float:
    """For how many cores the control groups of this process have time; infinity if they do not say."""
    return min(_limits(_OWN, _GROUPS), default=math.inf)


def _limits(own: Path, groups: Path) -> Iterator[float]:
    """The time of a period, in periods, that each group gets which this process is in: of version 2 or 1.

    Parameters
    ----------
    own : Path
        Of lines ``number:controllers:path``, without controllers in version 2.
    groups : Path
        Where groups are mounted; a container sees its own at the root, whatever the paths say.
    """
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        top = groups / "cpu" if controllers else groups
        group = top / path.strip("/")
        for folder in (group, *group.parents):
            if folder.is_relative_to(top):
                yield from _limit(folder)


def _limit(folder: Path) -> Iterator[float]:
    """The limit of one group, if it has one."""
    try:
        if (folder / "cpu.max").is_file():
            quota, period = (folder / "cpu.max").read_text().split()
        else:
            quota, period = ((folder / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period"))
        if quota != "max" and int(quota) > 0:
            yield int(quota) / int(period)
    except (OSError, ValueError):  # no such group is seen here, or none that limits time
        return
