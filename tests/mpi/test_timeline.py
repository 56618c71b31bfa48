"""One trace of all ranks, on one clock; and a word on the rank for which the others wait."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from tests.callbacks.test_timeline import nests
from tests.mpi.libraries import open_mpi_alone

PROGRAM = Path(__file__).with_name("timeline_program.py")


@open_mpi_alone
def test_all_ranks_are_in_the_trace_and_the_slow_one_is_named(mpirun: Any, tmp_path: Path) -> None:
    code, output = mpirun(3, PROGRAM, str(tmp_path / "trace.json"))
    assert code == 0, output
    assert [p.name for p in tmp_path.iterdir() if p.suffix == ".json"] == ["trace.json"]
    content = json.loads((tmp_path / "trace.json").read_text())
    events = [e for e in content["traceEvents"] if e["ph"] == "X"]
    errors = content["otherData"]["clock error of each rank, microseconds"]
    assert len(errors) == 3
    assert errors[0] == 0
    (measuring,) = re.findall(r"^measuring took (.*)$", output, re.MULTILINE)
    rounds = 40  # back and forth, of each of which the error is at most a half
    assert all(
        0 < error < float(took) * 1e6 / rounds / 2
        for error, took in list(zip(errors, measuring.split(), strict=True))[1:]
    )
    assert {e["pid"] for e in events} == {0, 1, 2}
    assert nests(events)
    for rank in range(3):
        mine = [e for e in events if e["pid"] == rank]
        assert [e["name"] for e in mine if e["cat"] == "part"].count("computing") == 10
        assert any(e["cat"] == "operator" for e in mine)
        sums = [e for e in mine if e["cat"] == "communication"]
        assert sum(e["args"]["bytes"] >= 64 * 512 * 4 for e in sums) == 10
        # The kernel's gradient of the first layer is computed while the second layer's gradients are under way.
        products = [e for e in mine if e["name"].startswith("offered_products float32[64, 512]")]
        overlaps = [p for p in products if any(_holds(s, p) for s in sums)]
        assert len(overlaps) == len(products) == 10
    _require_one_clock(events, 1000 + 2 * max(errors))
    found = re.search(r"Epoch 2/2: ranks waited .* for rank 1 \(host .*\): reading data took it (\d+\.\d) s", output)
    assert found, output
    assert float(found[1]) >= 4.8


@open_mpi_alone
def test_what_a_sharded_optimizer_asks_for_has_its_name(mpirun: Any, tmp_path: Path) -> None:
    program = """
import sys
import numpy as np
import disttensor as keras
model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(512), keras.layers.Dense(4)])
model.compile(keras.optimizers.ShardedOptimizer(keras.optimizers.SGD(0.1)), "mse")
timeline = keras.callbacks.Timeline(sys.argv[1], first_step=4, steps=2)
model.fit(np.ones((60, 64)), np.ones((60, 4)), 6, verbose=0, callbacks=[timeline])
"""
    code, output = mpirun(2, program, str(tmp_path / "trace.json"))
    assert code == 0, output
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    sums = [e for e in events if e.get("cat") == "communication" and e["args"]["bytes"] >= 64 * 512 * 4]
    assert [e["name"] for e in sums] == ["reduce_scatter"] * 4  # of two ranks in two steps


def _holds(outer: dict[str, Any], inner: dict[str, Any]) -> bool:
    return outer["ts"] < inner["ts"] and inner["ts"] + inner["dur"] < outer["ts"] + outer["dur"]


def _require_one_clock(events: list[dict[str, Any]], error: float) -> None:
    """Nobody leaves a step's first collective before the last rank has entered it, up to so many microseconds."""
    steps = {rank: [e for e in events if e["pid"] == rank and e["name"] == "computing"] for rank in range(3)}
    for number in range(10):
        bounds = [
            (steps[rank][number]["ts"], steps[rank][number]["ts"] + steps[rank][number]["dur"]) for rank in range(3)
        ]
        assert max(start for start, _ in bounds) < min(end for _, end in bounds) + error
