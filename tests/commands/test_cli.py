"""The command ``disttensor``: help, exit codes, and that a subcommand loads nothing it does not need."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from disttensor import cli
from disttensor.errors import ArgumentError
from disttensor.version import __version__


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "disttensor", *arguments], capture_output=True, text=True)


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main([command, "--help"])
    assert end.value.code == 0
    assert f"usage: disttensor {command}" in capsys.readouterr().out


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(["--help"])
    assert end.value.code == 0
    out = capsys.readouterr().out
    assert all(re.search(rf"^ +{name}\s", out, re.MULTILINE) for name in cli.COMMANDS)


@pytest.mark.parametrize("arguments", [[], ["nonsense"], ["info", "--nonsense"]])
def test_wrong_use_ends_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(arguments)
    assert end.value.code == 2
    assert "usage: disttensor" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code"), [(ArgumentError("too long"), 2), (FileNotFoundError("x"), 2), (KeyboardInterrupt(), 130)]
)
def test_errors_become_exit_codes(
    error: BaseException, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(options: object) -> int:
        raise error

    monkeypatch.setattr("disttensor.commands.info.run", fail)
    assert cli.main(["info"]) == code
    assert "Traceback" not in capsys.readouterr().err


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["--version"])
    assert capsys.readouterr().out == f"disttensor {__version__}\n"


def test_info_as_json_tells_of_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("DISTTENSOR_THREADS", "3")
    (tmp_path / "disttensor").mkdir()
    (tmp_path / "disttensor" / "file").write_bytes(bytes(1000))
    finished = run("info", "--json")
    assert finished.returncode == 0, finished.stderr
    found = json.loads(finished.stdout)
    assert found["cache"] == str(tmp_path / "disttensor")
    assert found["cache_bytes"] == 1000
    assert found["threads"] == 3
    assert found["cores"] == len(os.sched_getaffinity(0))
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert found["mpi"] is None or "MPI" in found["mpi"]


def test_info_tells_how_many_threads_pay(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("DISTTENSOR_THREADS", "2")
    assert json.loads(run("info", "--json").stdout)["self_tuning"] is None
    assert re.search("^of these pay +2, not measured; self-tuning is off", run("info").stdout, re.MULTILINE)
    monkeypatch.setenv("DISTTENSOR_TUNING", "1")
    found = json.loads(run("info", "--json").stdout)["self_tuning"]
    assert 1 <= found["threads"] <= 2
    assert len(found["counts"]) == len(found["arithmetic"]) == len(found["memory"])
    assert re.search("^of these pay +[12]; times as fast", run("info").stdout, re.MULTILINE)


def test_info_tells_which_all_reduce_is_faster(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = tmp_path / "disttensor" / "allreduce"
    folder.mkdir(parents=True)
    facts = {"ranks": 64, "library": "Open MPI v5, package"}
    ours, library = {"seconds": [[1e-6, 2e-6, 3e-6]] * 4}, {"seconds": [[2e-6, 1e-6, 3e-6]] * 3 + [[2e-6, 2e-6, 1e-6]]}
    (folder / "1.json").write_text(json.dumps({"facts": facts, **ours}))
    (folder / "2.json").write_text(json.dumps({"facts": facts, **library}))
    (folder / "3.json").write_text("{}")
    printed = " ".join(run("info").stdout.split())  # lines are broken where they must be
    choices = re.findall("all-reduce 64 ranks, Open MPI v5: the library's (.*?); its time by ours", printed)
    assert choices == ["never", "below 512 KiB and in the background from 2 MiB on"]
    assert "its time by ours, alone and in the background: 2.0 and 3.0 at 1 KiB, 2.0 and 3.0 at 16 KiB" in printed
    found = json.loads(run("info", "--json").stdout)["all_reduce"]
    assert [record["finding"]["start"] for record in found] == [0, 512 << 10]


def test_info_for_people() -> None:
    finished = run("info")
    assert finished.returncode == 0, finished.stderr
    for title in ("disttensor", "Python", "processor", "threads", "MPI library", "cache"):
        assert re.search(rf"^{title} ", finished.stdout, re.MULTILINE), finished.stdout


def test_a_closed_pipe_is_no_error() -> None:
    finished = subprocess.run(
        f"{sys.executable} -m disttensor info --json | true", shell=True, capture_output=True, text=True
    )
    assert "Traceback" not in finished.stderr
    assert "BrokenPipeError" not in finished.stderr
