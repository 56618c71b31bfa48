"""The commands and what they print, and the arithmetic between measurements and tables."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import checkpoint, convolution, machine, profile, replay, start, steps
from benchmarks.catalogue import WORKLOADS
from benchmarks.cli import main, parser
from benchmarks.contestants import CONTESTANTS, OURS, PEERS
from benchmarks.install import REQUIREMENTS, torch_requirement
from benchmarks.processes import WorkerError
from benchmarks.report import interval, milliseconds, table, write_json
from benchmarks.steps import Comparison, Series
from disttensor import config


def comparison() -> Comparison:
    """Ours takes 2 ms with one thread and 4 ms with two, the peer 5 ms and 1 ms."""
    ready = {"versions": {"jax": "1.0"}, "blas": "none visible"}
    times = {(OURS, 1): 2e-3, (OURS, 2): 4e-3, ("jax", 1): 5e-3, ("jax", 2): 1e-3}
    series = [Series(name, count, [[t, t], [t, t]], ready) for (name, count), t in times.items()]
    roofline = {1: {"flops": 1e10, "bytes": 1e10}, 2: {"flops": 2e10, "bytes": 2e10}}
    return Comparison(WORKLOADS["W1"], "jax", series, roofline, "0.00 0.00 0.00")


def test_the_better_number_of_threads_counts_for_both() -> None:
    found = comparison()
    ours, theirs = found.best(OURS), found.best("jax")
    assert ours is not None
    assert theirs is not None
    assert (ours.threads, theirs.threads) == (1, 2)
    ratios = found.ratios()
    assert ratios is not None
    assert ratios["median"] == ratios["tenth"] == pytest.approx((2, 2, 2))
    row = steps.summary([found]).splitlines()[2].split("|")
    assert [cell.strip() for cell in row[1:-1]] == ["W1", "jax", "2 (1)", "1 (2)", *["2.00 (2.00–2.00)"] * 2]


def test_details_relate_to_the_roofline() -> None:
    found = comparison()
    row = steps.details(found).splitlines()[2].split("|")
    gigaflops = WORKLOADS["W1"].flops / 2e-3 / 1e9
    assert [cell.strip() for cell in row[4:8]] == ["2", "2", f"{gigaflops:.1f}", f"{gigaflops / 10:.0%}"]


def test_what_failed_is_said_and_not_compared() -> None:
    found = comparison()
    for series in found.series[:2]:
        series.rounds, series.error = [], "AttributeError: no such layer"
    assert found.ratios() is None
    assert f"{OURS}, 1 threads: not measured. AttributeError: no such layer" in steps.details(found)
    assert "–" in steps.summary([found])


def test_steps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "found.json"
    arguments = "steps --workload W1 --peer --threads 1 --rounds 2 --steps 3 --json"
    assert main([*arguments.split(), str(path)]) == 0
    output = capsys.readouterr().out
    assert "W1: MLP 784-64-10" in output
    assert "load average at the end" in output
    (series,) = json.loads(path.read_text())["comparisons"][0]["series"]
    assert [len(seconds) for seconds in series["seconds"]] == [3, 3]
    assert series["contestant"] == OURS


def test_start() -> None:
    (found,) = start.measure("W1", [OURS], rounds=1, steps=3)
    assert found.error is None
    assert found.installed_bytes > 1e8
    assert found.peak_bytes[0] > 1e7
    assert len(found.cold_s) == len(found.warm_s) == 1
    assert OURS in start.details([found])


def test_replay_and_profile(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["replay", "--workload", "W1", "--threads", "1", "--rounds", "1", "--steps", "5"]) == 0
    assert main(["profile", "--workload", "W1", "--threads", "1", "--rounds", "1", "--steps", "5", "--calls", "2"]) == 0
    output = capsys.readouterr().out
    assert "fit adds" in output
    assert "matrix_product" in output
    assert "(rest)" in output


def test_replays_share_is_of_the_replay(monkeypatch: pytest.MonkeyPatch) -> None:
    class Fake:
        def __init__(self, *arguments: object) -> None:
            pass

        def __enter__(self) -> Fake:
            return self

        def __exit__(self, *arguments: object) -> None:
            pass

        def round(self) -> dict[str, Any]:
            return {
                "seconds": [5.0, 5.0, 9.0],
                "stretches": [(2, 6.0), (1, 8.0)],
                "replay_seconds": [4.0, 4.0, 6.0],
            }

    monkeypatch.setattr(replay, "Worker", Fake)
    assert replay.measure("W1", 1, 2, None) == {
        "replay_s": 4.0,
        "seen": {"added_s": 1.0, "added_share": 0.25},
        "unseen": {"added_s": 2.0, "added_share": 0.5},
    }


def test_profile_groups_calls() -> None:
    measured = profile.Measured(10e-3, ["a", "b", "a"], ["a x", "b y", "a z"], [1e-3, 4e-3, 4e-3], 0)
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in profile.by_operator(measured).splitlines()[2:]]
    assert rows == [["a", "2", "5", "50.0%"], ["b", "1", "4", "40.0%"], ["(rest)", "", "1", "10.0%"]]
    assert len(profile.by_call(measured, 2).splitlines()) == 4


def test_a_failure_is_an_exit_code(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fail(options: argparse.Namespace) -> None:
        raise WorkerError("it broke")

    monkeypatch.setattr(steps, "run", fail)
    assert main(["steps", "--peer"]) == 1
    assert "it broke" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["steps", "--rounds", "0"], ["steps", "--workload", "W9"], []])
def test_wrong_arguments(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parser().parse_args(arguments)


def test_every_peer_can_be_installed() -> None:
    assert set(REQUIREMENTS) == set(PEERS) == set(CONTESTANTS) - {OURS}


def test_torch_without_a_build_for_cpus() -> None:
    assert torch_requirement("Available versions: 2.9.1, 2.9.0") == "torch"


def test_report(tmp_path: Path) -> None:
    assert table(["a", "b"], [["x", "10"]]).splitlines()[2] == "| x | 10 |"
    assert [milliseconds(s) for s in (0.0001234, 0.00234, 0.0123, 0.1234)] == ["0.123", "2.34", "12.3", "123"]
    assert interval((1.0, 0.5, 2.0)) == "1.00 (0.50–2.00)"
    with pytest.raises(TypeError):
        write_json(tmp_path / "x.json", {"not JSON": object()})
    assert not list(tmp_path.iterdir())


def test_convolution(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convolution, "SHAPES", {"small": (2, 5, 3, 4, 3, 2, (1, 0))})
    monkeypatch.setattr(convolution, "_SECONDS", 0.001)
    before = config.threads()
    try:
        assert main(["convolution", "--threads", "1", "2"]) == 0
    finally:
        config.set_threads(before)
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| small")]
    assert [[cell.strip() for cell in row.split("|")[2:4]] for row in rows] == [["1", "0"], ["2", "0"]]
    assert all(row.count("%)") == 3 for row in rows)


def test_what_saving_costs() -> None:
    found = {
        "parameters": 50_000_000, "bytes": 600_000_000, "with": [9.0, 9.5, 8.0], "without": [10.0, 10.0, 10.0],
        "held_up": [0.1, 0.1, 0.3], "writing": [0.1, 0.1, 0.1], "latency": [1.0, 1.0, 1.0],
    }  # fmt: skip
    said = checkpoint.cost_table(found, window=10, every=30)
    assert said.splitlines()[4].split("|")[4].strip() == "3.3%"  # a tenth of 10 s in 30 s
    assert "slower by 3.3% (median)" in said
    share = (0.1 * len(machine.cores()) + 0.1) / (30 * len(machine.cores()))
    assert f"a save takes {share:.1%} of" in said


def test_saving_and_loading_are_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "_WAYS", ("disttensor", "safetensors"))
    found = checkpoint.measure_speed(tmp_path, 4 << 20, rounds=1)
    assert list(found) == ["dd", "dd, direct", "disttensor", "safetensors"]
    assert all(one[what] > 0 for rounds in found.values() for one in rounds for what in ("save", "load"))
    assert checkpoint.speed_table(found, 4 << 20).count("\n") == 7
