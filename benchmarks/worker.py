"""What runs in a worker process: ``python -m benchmarks.worker JOB``, where JOB is JSON; see `benchmarks.processes`.

It gets an activity ready, reports that with one line of JSON, and answers each line that it reads with the result of a
round.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import Any, Protocol


class Activity(Protocol):
    """What a worker does."""

    ready: dict[str, Any]

    def round(self) -> Any:
        """Do it once; the result becomes JSON."""


def _training(job: dict[str, Any]) -> Activity:
    from benchmarks.activities.training import Training

    return Training(job)


def _roofline(job: dict[str, Any]) -> Activity:
    from benchmarks.activities.roofline import Roofline

    return Roofline(job)


def _replay(job: dict[str, Any]) -> Activity:
    from benchmarks.activities.plans import Replay

    return Replay(job)


def _profile(job: dict[str, Any]) -> Activity:
    from benchmarks.activities.plans import Profile

    return Profile(job)


def _size(job: dict[str, Any]) -> Activity:
    from benchmarks.activities.size import Size

    return Size(job)


# Imported when chosen, so that a process loads nothing but what it measures.
ACTIVITIES: dict[str, Callable[[dict[str, Any]], Activity]] = {
    "training": _training,
    "roofline": _roofline,
    "replay": _replay,
    "profile": _profile,
    "size": _size,
}


def main() -> None:
    """Serve until nobody asks any more."""
    # Libraries may print; only answers go where the answers are read.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(content: Any) -> None:
        answers.write(json.dumps(content) + "\n")
        answers.flush()

    job = json.loads(sys.argv[1])
    os.sched_setaffinity(0, job["cores"])
    try:
        activity = ACTIVITIES[job["activity"]](job)
        answer(activity.ready)
        for _ in sys.stdin:
            answer(activity.round())
    except Exception as error:  # whatever a framework raises is reported, and the other contestants go on
        lines = str(error).strip().splitlines() or [""]
        answer({"error": f"{type(error).__name__}: {lines[0]}"})
        raise


if __name__ == "__main__":
    main()
