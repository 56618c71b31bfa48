"""What is remembered of measurements; measuring itself is tested in ``tests/mpi``."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from disttensor.distributed.choice import _read


def test_a_threshold_is_read_while_it_is_young(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    assert _read(path) is None
    path.write_text("65536")
    assert _read(path) == 65536
    os.utime(path, (time.time() - 2 * 24 * 3600,) * 2)
    assert _read(path) is None


@pytest.mark.parametrize(
    "content", [b"", b"\xff", b"{}", b"null", b"true", b"1.5", b'"7"', b"[" * 100_000, b"9" * 5000]
)
def test_whatever_else_a_file_holds_is_nothing(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.json").write_bytes(content)
    assert _read(tmp_path / "x.json") is None
