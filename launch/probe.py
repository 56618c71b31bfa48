"""What `launch.doctor` runs on every host, by its path: prints, as JSON, what a rank would find there.

Another package than the standard library's may be what is missing.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import platform
import runpy
import shutil
import subprocess
import sys
import time

PACKAGES = ("disttensor", "numpy", "numba", "llvmlite", "mpi4py", "safetensors")
_LIBRARY = "import mpi4py; mpi4py.rc.initialize = False; from mpi4py import MPI; print(MPI.Get_library_version())"


def main(folder: str, token: str) -> None:
    """Leave a file in the folder, so that others can tell whether it is the same one, and print."""
    library = subprocess.run([sys.executable, "-c", _LIBRARY], capture_output=True, text=True, check=False)
    lines = (library.stdout.splitlines()[:1] if library.returncode == 0 else library.stderr.splitlines()[-1:]) or [""]
    versions = {}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    found = {
        "time": time.time(),
        "versions": {"Python": platform.python_version(), **versions, "processor": platform.machine()},
        "mpi_loads": library.returncode == 0,
        "mpi": " ".join(lines[0].split(",")[0].replace("Version:", "").strip("\0").split()),
        "cores": runpy.run_path(os.path.join(os.path.dirname(__file__), "cores.py"))["usable_cores"](),
        "all_cores": os.cpu_count(),
        "problem": _write(folder, token),
        "disk": _free(folder),
        "shm": _free("/dev/shm"),
    }
    print(json.dumps(found))


def _write(folder: str, token: str) -> str:
    try:
        with open(os.path.join(folder, f".disttensor-doctor-{token}-{platform.node()}"), "x") as file:
            file.write(token)
    except OSError as error:
        return error.strerror or str(error)
    return ""


def _free(folder: str) -> int | None:
    return shutil.disk_usage(folder).free if os.path.isdir(folder) else None


if __name__ == "__main__":
    main(*sys.argv[1:])
