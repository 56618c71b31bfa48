"""``disttensor checkpoint``: what it shows and its exit codes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from disttensor import cli
from disttensor.checkpoint import CheckpointManager, find_checkpoints


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    with CheckpointManager(tmp_path) as manager:
        for step in (10, 20):
            values = {"kernel": np.full((2, 3), step, np.float32), "bias": np.zeros(3)}
            manager.save(step, values, state={"epoch": step // 10}, metrics={"loss": 1 / step})
    return tmp_path


def test_ls_shows_step_size_and_metrics(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["checkpoint", "ls", str(folder)]) == 0
    out = capsys.readouterr().out
    assert "000001-step-10" in out
    assert "loss 0.05" in out


def test_verify_ends_with_1_if_damaged(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["checkpoint", "verify", str(folder)]) == 0
    shard = next(Path(find_checkpoints(folder)[0]).glob("*.safetensors"))
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    assert cli.main(["checkpoint", "verify", str(folder)]) == 1
    out = capsys.readouterr().out
    assert f"{shard.name} is damaged" in out
    assert cli.main(["checkpoint", "verify", find_checkpoints(folder)[1]]) == 0


def test_show_lists_tensors_and_state(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["checkpoint", "show", str(folder)]) == 0
    out = capsys.readouterr().out
    for text in ("step 20", "kernel", "float32", "[2, 3]", "epoch"):
        assert text in out


def test_diff_says_how_much(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = find_checkpoints(folder)
    assert cli.main(["checkpoint", "diff", first, first]) == 0
    assert cli.main(["checkpoint", "diff", first, second]) == 1
    out = capsys.readouterr().out
    assert "6 of 6 elements" in out
    assert "bias" not in out


def test_nothing_to_look_at(tmp_path: Path) -> None:
    assert cli.main(["checkpoint", "ls", str(tmp_path / "nothing")]) == 2
    assert cli.main(["checkpoint", "verify", str(tmp_path)]) == 2
