"""``disttensor plan`` on several ranks: it measures what they share, and one of them prints."""

from __future__ import annotations

import json
from typing import Any

import pytest

PROGRAM = """
import sys
from disttensor import cli
step = ["--step", "30ms", "--rows", "64", "--gradients", "4MiB,1MiB"]
sys.exit(cli.main(["plan", *step, "--latency", "30us", "--bandwidth", "1Gbit", "--ranks-per-host", "2", "--json"]))
"""


def test_ranks_measure_what_they_share(mpirun: Any) -> None:
    code, output = mpirun(2, PROGRAM)
    assert code == 0, output
    found = json.loads(output)
    assert found["network"] == {"latency": pytest.approx(3e-5), "bandwidth": 1.25e8, "origin": "given"}
    assert found["memory"]["origin"].startswith("measured on ")
    assert 0 < found["memory"]["latency"] < 1
    assert 1e6 < found["memory"]["bandwidth"] < 1e13
    one, two = found["predictions"][:2]
    assert (one["ranks"], two["ranks"]) == (2, 4)
    assert one["memory"] > 0 == one["network"] < two["network"]
