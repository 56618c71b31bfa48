"""Where tests may lie."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import pytest_collection_modifyitems


class Item:
    """A test that was collected."""

    def __init__(self, path: Path, marker: str | None) -> None:
        self.path, self.nodeid, self._marker = path, path.name, marker

    def get_closest_marker(self, name: str) -> str | None:
        return name if name == self._marker else None


@pytest.mark.parametrize(
    ("path", "marker"), [("mpi/test_a.py", "mpi"), ("slurm/test_a.py", "mpi"), ("test_a.py", None), ("/a.py", "mpi")]
)
def test_what_commands_find_is_taken(path, marker):
    pytest_collection_modifyitems([Item(Path(__file__).parent / path, marker)])


@pytest.mark.parametrize(("path", "marker"), [("ops/test_a.py", "mpi"), ("test_a.py", "slurm"), ("mpi/a.py", "faults")])
def test_what_no_command_finds_is_refused(path, marker):
    with pytest.raises(pytest.UsageError, match=f"is marked {marker}; such tests lie in tests/"):
        pytest_collection_modifyitems([Item(Path(__file__).parent / path, marker)])
