"""What all tests share: one thread a process, the Keras oracle, MNIST, seeded numbers."""

from __future__ import annotations

import ctypes
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    import numpy as np

# Before numpy, numba or JAX are loaded: tests run several processes on few cores, so each keeps to one thread.
for _name in ("DISTTENSOR_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"):
    os.environ.setdefault(_name, "1")
os.environ.setdefault("DISTTENSOR_TUNING", "0")  # several threads are several, whatever the machine does meanwhile
# Ranks of Open MPI that wait let others have their core: those of other tests, too.
os.environ.setdefault("OMPI_MCA_mpi_yield_when_idle", "1")
os.environ["KERAS_BACKEND"] = "jax"
os.environ["JAX_PLATFORMS"] = "cpu"
# The oracle compiles thousands of small programs, each of which runs once: that is what its time goes to.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true")

# How long examples take says nothing where others use the cores, too; and of fixtures they use what keeps nothing.
settings.register_profile(
    "tests", deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
settings.load_profile("tests")


FOLDERS = {"mpi": ("mpi", "launch", "slurm", "hosts"), "slurm": ("slurm",), "hosts": ("hosts",), "faults": ("faults",)}
"""Where tests with these markers lie: the commands that run them look nowhere else."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if not item.path.is_relative_to(here):
            continue  # somebody's own, collected along with ours
        folder = item.path.relative_to(here).parts[0]
        for marker, folders in FOLDERS.items():
            if folder not in folders and item.get_closest_marker(marker) is not None:
                raise pytest.UsageError(
                    f"{item.nodeid} is marked {marker}; such tests lie in tests/{' or tests/'.join(folders)}, where "
                    "the Makefile looks for them."
                )


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> np.random.Generator:
    """Random numbers that depend on the test's name only, so that a failure repeats alone and in any order."""
    import numpy as np

    return np.random.default_rng(list(request.node.name.encode()))


@pytest.fixture(scope="session")
def keras() -> ModuleType:
    """The installed Keras on its JAX back end; what warns while it loads is not ours to mend."""
    pytest.importorskip("jax")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("keras")


@pytest.fixture(scope="module", autouse=True)
def forget_oracles() -> Iterator[None]:
    """Drop what JAX compiled for a module of tests: gigabytes by the end of all, and of no use to the next."""
    yield
    if "jax" in sys.modules:
        sys.modules["jax"].clear_caches()
        if sys.platform == "linux":
            ctypes.CDLL(None).malloc_trim(0)


@pytest.fixture(scope="session")
def mnist() -> Path:
    """The path of Keras's ``mnist.npz``: ``$DISTTENSOR_MNIST``, or the folder in which downloads are kept."""
    folder = Path(os.environ.get("DISTTENSOR_DATASETS") or Path.home() / ".cache" / "disttensor" / "datasets")
    path = Path(os.environ.get("DISTTENSOR_MNIST") or folder / "mnist.npz")
    if not path.is_file():
        pytest.skip(f"MNIST is not at {path}; set DISTTENSOR_MNIST to the path of mnist.npz")
    return path
