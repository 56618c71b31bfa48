"""What every rank of `test_self_test` runs: a program, where measurements of the all-reduce find what it is told.

Arguments are JSON of the times that are found, seconds for each length and way, or null for nothing; the file of the
program, and its arguments. Ranks have cores enough, unless ``CORES`` says how many there are. ``FOLDER`` is where
findings are kept. In the end rank 0 says how many measurements there were.
"""

from __future__ import annotations

import json
import os
import runpy
import sys

import numpy as np

from disttensor import distributed
from disttensor.distributed import self_test

found, program = json.loads(sys.argv[1]), sys.argv[2]
measurements = 0


def best(group, sums, longest):
    """Try each way once, and find what this rank was told."""
    global measurements
    measurements += 1
    longest.fill(group.rank + 1)
    for i, combine in enumerate(sums):
        part = longest[i * 1000 : (i + 1) * 1000]
        combine(part)
        assert (part == sum(range(1, group.size + 1))).all()
    return None if found is None else np.array(found)


self_test._best, self_test.FOLDER = best, os.environ["FOLDER"]
comm = distributed.communicator()
if comm.rank:
    self_test.disk_cache = None  # what others could read must not matter
if comm._memory is not None:
    comm._memory.cores = int(os.environ.get("CORES", comm.size))
sys.argv = sys.argv[2:]
runpy.run_path(program, run_name="__main__")
if comm.rank == 0:
    print(f"{measurements} measurements")
