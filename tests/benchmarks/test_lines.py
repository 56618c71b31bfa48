"""How close cores are: the same figure in all processes that measure it together."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import sys
from pathlib import Path
from benchmarks.lines import Lines
lines = Lines(Path(sys.argv[1]), int(sys.argv[2]))
print([lines.seconds() for _ in range(2)])
"""


@pytest.mark.parametrize("count", [1, 2, 3])
def test_all_processes_find_the_same(tmp_path: Path, count: int) -> None:
    command = [sys.executable, "-c", PROGRAM, str(tmp_path), str(count)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(count)]
    found = [process.communicate()[0] for process in processes]
    assert len(set(found)) == 1
    first, second = map(float, found[0].strip("[]\n").split(","))
    assert first > 0
    assert second > 0
