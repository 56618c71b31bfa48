"""``disttensor plan``."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings

import disttensor as dt
from disttensor import cli
from disttensor.commands.plan import read_profile
from disttensor.distributed.scaling import Link, Step, predict
from tests.fuzzing import altered, damaged

LINK = ["--latency", "100us", "--bandwidth", "1Gbit"]
STEP = ["--step", "30ms", "--rows", "64", "--gradients", "1MiB,2MB,3kB"]


def as_json(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    assert cli.main(["plan", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_numbers_have_units(capsys: pytest.CaptureFixture[str]) -> None:
    found = as_json(capsys, *STEP, *LINK)
    assert found["step"] == {
        "seconds": 0.03,
        "rows": 64,
        "gradients": [1 << 20, 2_000_000, 3000],
        "small_messages": 1,
        "packets": [],
    }
    assert found["network"] == {"latency": pytest.approx(1e-4), "bandwidth": 1.25e8, "origin": "given"}
    assert found["memory"]["origin"] == "assumed"
    for text, value in (("1.2GB/s", 1.2e9), ("100mbit/s", 1.25e7), ("5e6B/s", 5e6), ("8e6 bit", 1e6)):
        assert as_json(capsys, *STEP, "--latency", "0", "--bandwidth", text)["network"]["bandwidth"] == value


def test_predictions_are_those_of_the_model(capsys: pytest.CaptureFixture[str]) -> None:
    found = as_json(capsys, *STEP, *LINK, "--ranks-per-host", "4", "--overlap", "0.5", "--bucket", "1MB")["predictions"]
    assert [p["ranks"] for p in found] == [4 << i for i in range(9)]
    step = Step(0.03, 64, (1 << 20, 2_000_000, 3000))
    want = predict(step, 8, 4, Link(1e-4, 1.25e8), Link(5e-6, 20e9), overlap=0.5, bucket_bytes=1_000_000)
    assert found[3]["seconds"] == pytest.approx(want.seconds)
    assert found[3]["limit"] == want.limit
    divided = as_json(capsys, *STEP, *LINK, "--hosts", "1,3", "--global-batch", "96")["predictions"]
    assert [(p["hosts"], p["rows"]) for p in divided] == [(1, 96), (3, 96)]


def test_a_table_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", *STEP, *LINK]) == 0
    out = capsys.readouterr().out
    lines = [line.split() for line in out.splitlines()]
    assert next(line for line in lines if line[:2] == ["1024", "1024"])[-1] == "network"
    assert next(line for line in lines if line[:2] == ["1", "1"])[-1] == "computation"
    assert "a faster network" in out


def test_a_narrow_terminal_loses_no_figure(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """80 columns are what mpirun gives rank 0, and most terminals have."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert cli.main(["plan", *STEP, *LINK]) == 0
    out = capsys.readouterr().out
    assert "…" not in out
    assert next(words for line in out.splitlines() if (words := line.split())[:2] == ["1", "1"])[-1] == "computation"


def test_a_profile_from_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "step.json"
    model = dt.Sequential([dt.Input((4,)), dt.layers.Dense(8), dt.layers.BatchNormalization(), dt.layers.Dense(1)])
    model.compile("sgd", "mse")
    x = dt.ops.ones((40, 4)).numpy()
    model.fit(x, x[:, :1], 4, epochs=1, verbose=0, callbacks=[dt.callbacks.StepProfile(path, 4)])
    assert f"disttensor plan {path}" in capsys.readouterr().out
    step = as_json(capsys, str(path), *LINK)["step"]
    assert step["gradients"] == [4, 32, 32, 32, 32, 128]  # from the last layer's bias to the first layer's kernel
    assert (step["rows"], step["small_messages"]) == (4, 3)
    assert 0 < step["seconds"] < 10


@pytest.mark.parametrize(
    ("wrap", "sizes", "packet"),
    [
        (lambda inner: inner, [4, 64, 64000], 16 * 4 * (10 + 1)),
        (lambda inner: dt.optimizers.ShardedOptimizer(inner, stage=1), [4, 64, 64000], 16 * 4 * (10 + 1)),
        (lambda inner: dt.optimizers.ShardedOptimizer(inner, stage=2), [4, 64, 64000], 0),
        (dt.optimizers.CompressedOptimizer, [2, 32, 32000], 0),
        (
            lambda inner: dt.optimizers.CompressedOptimizer(inner, dt.optimizers.PowerSGD(2)),
            [4, 64, 2 * 4 * (1000 + 16)],
            0,
        ),
    ],
)
def test_a_profile_says_what_ranks_would_send(wrap: Any, sizes: list[int], packet: int, tmp_path: Path) -> None:
    """Two rows of 5 words look up 10 rows of the table; a packet has one more for their numbers."""
    path = tmp_path / "step.json"
    model = dt.Sequential(
        [
            dt.Input((5,), dtype="int32"),
            dt.layers.Embedding(1000, 16),
            dt.layers.GlobalAveragePooling1D(),
            dt.layers.Dense(1),
        ]
    )
    model.compile(wrap(dt.optimizers.Adam(clipnorm=1.0)), "mse")
    x = dt.random.randint((20, 5), 0, 1000).numpy()
    model.fit(x, x[:, :1] * 1.0, 2, epochs=1, verbose=0, callbacks=[dt.callbacks.StepProfile(path, 2)])
    step = json.loads(path.read_bytes())
    assert step["gradients"] == sizes
    assert step["packets"] == [0, 0, packet]


PROFILE = {
    "format": "disttensor.step.2", "seconds": 0.1, "rows": 3, "gradients": [3, 4], "packets": [0, 1],
    "small_messages": 2,
}  # fmt: skip


@settings(max_examples=200)
@given(content=altered(PROFILE).map(lambda value: json.dumps(value).encode()) | damaged(json.dumps(PROFILE).encode()))
@example(content=b"[" * 100_000)
def test_whatever_a_profile_holds_it_is_read_or_refused(tmp_path: Path, content: bytes) -> None:
    """Nothing but DataError, whatever is wrong."""
    (tmp_path / "step.json").write_bytes(content)
    with contextlib.suppress(dt.errors.DataError):
        read_profile(tmp_path / "step.json")


def test_profiles_are_checked(tmp_path: Path) -> None:
    model = dt.Sequential([dt.Input((4,)), dt.layers.Dense(1)])
    model.compile("sgd", "mse")
    x = dt.ops.ones((8, 4)).numpy()
    profile = dt.callbacks.StepProfile(tmp_path / "step.json", 4)
    with pytest.raises(dt.errors.ArgumentError, match="measured 0 steps"):
        model.fit(x, x[:, :1], 4, verbose=0, callbacks=[profile])
    with pytest.raises(dt.errors.ArgumentError, match="batch_size"):
        dt.callbacks.StepProfile("x", 0)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ([*STEP], "--latency and --bandwidth"),
        ([*LINK], "StepProfile wrote, or all of"),
        ([*STEP, *LINK, "--overlap", "2"], "between 0 and 1"),
        (["nothing.json", *LINK], "nothing.json"),
        (["nothing.json", *STEP, *LINK], "not both"),
    ],
)
def test_what_cannot_be_planned_ends_with_2(
    arguments: list[str], text: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["plan", *arguments]) == 2
    assert text in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argument", "advice"),
    [
        *((f"--latency={value}", "30us") for value in ("fast", "-1ms", "3 weeks", "nan", "", "30", "10Gbit")),
        *((f"--bandwidth={value}", "10Gbit or 1.2GB/s") for value in ("10", "1e9", "10G", "10GB", "30us")),
    ],
)
def test_units_are_checked(argument: str, advice: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(["plan", *STEP, *LINK, argument])
    assert end.value.code == 2
    assert f"write for example {advice}" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"format": "disttensor.step.2"}', "[" * 100_000])
def test_other_files_are_refused(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "step.json").write_text(text)
    assert cli.main(["plan", str(tmp_path / "step.json"), *LINK]) == 2
    assert "is no profile of a step" in capsys.readouterr().err
