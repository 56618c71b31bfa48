"""Which tests run with which MPI library, and on how many ranks.

What is ours is shown with Open MPI, on all numbers of ranks that differ. With MPICH, too, runs what could depend on the
library: every kind of communication and of end, and trainings.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest

open_mpi_alone = pytest.mark.parametrize("mpirun", ["openmpi"], indirect=True)


def on_ranks(*numbers: int, mpich: Sequence[int] = ()) -> pytest.MarkDecorator:
    """Run a test, as `n`, on these numbers of ranks with Open MPI, and on others with MPICH."""
    return pytest.mark.parametrize(
        ("mpirun", "n"), [*(("openmpi", n) for n in numbers), *(("mpich", n) for n in mpich)], indirect=["mpirun"]
    )
