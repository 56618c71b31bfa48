"""What `launch.setup_environment` writes, and that plain mpirun then works."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from launch.setup_environment import set_up

DEFAULTS, ACTIVATE = "etc/prte-mca-params.conf", "bin/activate"


@pytest.fixture
def prefix(tmp_path):
    for name, text in ((DEFAULTS, "# Open MPI's own\n"), (ACTIVATE, "export VIRTUAL_ENV=here\n")):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(text)
    return tmp_path


def test_blocks_are_added_once(prefix):
    (prefix / ACTIVATE).chmod(0o644)
    assert set_up(prefix) == [prefix / DEFAULTS, prefix / ACTIVATE]
    first = [(prefix / name).read_text() for name in (DEFAULTS, ACTIVATE)]
    assert first[0].startswith("# Open MPI's own\n\n# >>> disttensor")
    assert "\nrmaps_default_mapping_policy = slot:oversubscribe\n" in first[0]
    set_up(prefix)
    assert [(prefix / name).read_text() for name in (DEFAULTS, ACTIVATE)] == first
    assert (prefix / ACTIVATE).stat().st_mode & 0o777 == 0o644
    assert sorted(path.name for path in (prefix / "bin").iterdir()) == ["activate"]


def test_what_others_write_stays(prefix):
    set_up(prefix)
    path = prefix / DEFAULTS
    path.write_text(path.read_text().replace("slot:oversubscribe", "changed") + "own_setting = 1\n")
    set_up(prefix)
    text = path.read_text()
    assert text.endswith("own_setting = 1\n")
    assert text.count("slot:oversubscribe") == 1
    assert "changed" not in text


def test_only_root_lets_root_run(prefix):
    set_up(prefix)
    script = 'id() { echo "$USER_ID"; }; . bin/activate; echo "$VIRTUAL_ENV ${OMPI_ALLOW_RUN_AS_ROOT-}"'
    for user, expected in (("0", "here 1\n"), ("1000", "here \n")):
        finished = subprocess.run(
            ["sh", "-euc", script],
            env={"USER_ID": user, "PATH": os.environ["PATH"]},
            cwd=prefix,
            capture_output=True,
            text=True,
            check=True,
        )
        assert finished.stdout == expected


def test_an_environment_without_open_mpi_is_left_alone(prefix):
    (prefix / DEFAULTS).unlink()
    assert set_up(prefix) == []
    assert (prefix / ACTIVATE).read_text() == "export VIRTUAL_ENV=here\n"


@pytest.mark.mpi
def test_plain_mpirun_in_the_activated_environment():
    activate = Path(sys.prefix) / ACTIVATE
    if not activate.exists() or "disttensor" not in activate.read_text():
        pytest.skip(f"{sys.prefix} is not prepared; run `python -m launch.setup_environment`")
    script = f'. "{activate}"; mpirun -n 5 python -c "import os; print(os.environ[\'OMPI_COMM_WORLD_SIZE\'])"'
    environ = {name: os.environ[name] for name in ("HOME", "PATH") if name in os.environ}
    finished = subprocess.run(["sh", "-c", script], env=environ, capture_output=True, text=True, check=False)
    assert finished.stdout == "5\n" * 5, finished.stderr
