"""What is remembered of measurements; measuring itself is tested in ``tests/mpi``."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest

from disttensor.distributed.choice import SIZES, _read, threshold_of


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


@pytest.mark.parametrize(
    ("slower", "expected"),
    [
        ([], 0), ([SIZES[0]], SIZES[1]), ([SIZES[0], SIZES[1]], SIZES[2]), ([SIZES[2]], SIZES[3]),
        ([SIZES[-1]], 2 * SIZES[-1]),
    ],
)  # fmt: skip
def test_shared_memory_from_the_length_on_where_the_library_is_nowhere_clearly_faster(slower, expected):
    times = np.array([[2e-6 if size in slower else 1.2e-6, 1e-6] for size in SIZES])
    assert threshold_of(times) == expected
