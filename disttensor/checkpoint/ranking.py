"""Which checkpoints are the best, by a metric that was saved with them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from disttensor.checkpoint.manifest import Manifest
from disttensor.errors import SerializationError


def ranked(paths: Sequence[str], monitor: str, mode: str) -> list[str]:
    """The folders of checkpoints, best first, of equal ones the older; those without the metric are left out.

    Parameters
    ----------
    paths : sequence of str
        Oldest first; those whose manifest is damaged are left out too.
    monitor : str
        The metric. Where it is not a number (nan), it is as if it were missing.
    mode : {"min", "max"}
    """
    scores = []
    for path in paths:
        try:
            score = Manifest.read(path).metrics.get(monitor, math.nan)
        except SerializationError:
            continue
        if not math.isnan(score):
            scores.append((score if mode == "min" else -score, path))
    return [path for _, path in sorted(scores, key=lambda entry: entry[0])]
