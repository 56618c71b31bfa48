"""Emulated hosts (see `emulated`), and the Pythons with each MPI library."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hosts.emulated import TOOLS, Host, emulated_hosts

COUNT = 3


@pytest.fixture
def hosts(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[list[Host]]:
    """Hosts h1, h2 and h3, or as many as the test asks for by an indirect parameter."""
    skip = pytest.fail if os.environ.get("DISTTENSOR_REQUIRE_CLUSTER") else pytest.skip
    if missing := [tool for tool in TOOLS if shutil.which(tool) is None]:
        skip(f"emulated hosts need {', '.join(missing)}; on Debian: apt-get install openssh-server iproute2")
    if os.geteuid() != 0:
        skip("emulated hosts need root")
    with emulated_hosts(tmp_path, getattr(request, "param", COUNT)) as made:
        yield made


@pytest.fixture(params=["openmpi", "mpich"])
def python(request: pytest.FixtureRequest) -> Path:
    """The Python of the environment with this MPI library."""
    here = Path(sys.executable)
    if request.param == "mpich":
        here = Path(os.environ.get("DISTTENSOR_MPICH_VENV") or Path(sys.prefix).with_name(".venv-mpich"), "bin/python")
    if not here.with_name("mpirun").exists():
        pytest.skip(f"no mpirun beside {here}; run `make setup`")
    return here
