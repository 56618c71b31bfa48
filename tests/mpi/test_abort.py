"""However a rank ends, all ranks end, and the guilty one is named; `mpirun` fails a test that leaves a process."""

from __future__ import annotations

import re

import pytest

from tests.mpi.libraries import open_mpi_alone

# Every rank reduces for ever; rank 1 does something else at the third step.
TRAINING = """
import os, sys, threading
import numpy as np
from disttensor import distributed
comm = distributed.communicator()
for step in range(10**9):
    if step == 3 and comm.rank == 1:
        {deed}
    comm.all_reduce(np.ones(10))
"""
GRACE = {"DISTTENSOR_EXIT_GRACE": "0.5"}


def run(mpirun, deed, n=2):
    code, output = mpirun(n, TRAINING.format(deed=deed), env=GRACE)
    assert code != 0, output
    return code, output


@open_mpi_alone
def test_exception(mpirun):
    code, output = run(mpirun, "raise ValueError('no such\\nfile')", n=3)
    assert code == 1
    assert "[rank 1] ValueError: no such\n[rank 1] file\n[rank 1] The exception above" in output
    assert re.search(r"\[rank 1\] +File .*program.py\", line 8", output)


def test_exception_in_thread(mpirun):
    code, output = run(mpirun, "threading.Thread(target=lambda: 1 / 0, name='loader').start()")
    assert code == 1
    assert "[rank 1] ZeroDivisionError" in output
    assert "not caught in thread 'loader'" in output


def test_exit_with_code(mpirun):
    code, output = run(mpirun, "sys.exit(3)")
    assert code == 3
    assert "[rank 1] sys.exit(3) on this rank ends the whole job." in output


@open_mpi_alone
def test_exit_with_message(mpirun):
    code, output = run(mpirun, "sys.exit('no data')")
    assert code == 1
    assert "[rank 1] no data\n[rank 1] sys.exit('no data')" in output


def test_interrupt(mpirun):
    code, output = run(mpirun, "raise KeyboardInterrupt")
    assert code == 130
    assert "[rank 1] interrupted" in output
    assert "Traceback" not in output


@pytest.mark.parametrize(
    ("mpirun", "deed"),
    [("openmpi", "sys.exit(0)"), ("openmpi", "raise SystemExit(3)"), ("mpich", "sys.exit(0)")],
    indirect=["mpirun"],
)
def test_end_while_others_need_the_rank(mpirun, deed):
    code, output = run(mpirun, deed)
    assert code == 1
    assert re.search(r"\[rank 0\] waits in all_reduce\(\) \(collective \d+\) for rank 1, but rank 1 came", output)


@open_mpi_alone
def test_end_while_others_need_the_rank_for_an_unfinished_handle(mpirun):
    program = TRAINING.replace("comm.all_reduce(np.ones(10))", "comm.all_reduce_async(np.ones(10)).wait()")
    code, output = mpirun(2, program.format(deed="break"), env=GRACE)
    assert code == 1
    assert "waits in all_reduce() (collective" in output


def test_killed(mpirun):
    code, _ = run(mpirun, "os.kill(os.getpid(), 9)")
    assert code in (9, 137)


@open_mpi_alone
def test_caught_exit_is_no_end(mpirun):
    program = """
import sys, threading
from disttensor import distributed
comm = distributed.communicator()
for status in (0, 3, "text", None):
    try:
        sys.exit(status)
    except SystemExit as error:
        assert error.code == status
thread = threading.Thread(target=sys.exit, args=(3,))
thread.start()
thread.join()
comm.barrier()
sys.exit(0 if comm.rank else None)
"""
    code, output = mpirun(2, program)
    assert code == 0, output


def test_those_who_go_on_may_wait_for_one_another(mpirun):
    """Longer than the grace, and than it takes the last rank to say that it has come to its end.

    The grace is long enough for ranks that are on their way out of a collective to get no processor for a while.
    """
    program = """
import time
import numpy as np
from disttensor import distributed
comm = distributed.communicator()
first = comm.split(comm.rank // 2)
comm.barrier()
if comm.rank == 1:
    time.sleep(6)
first.all_reduce(np.ones(3))
if comm.rank == 0:
    print("saved")
"""
    code, output = mpirun(3, program, env={"DISTTENSOR_EXIT_GRACE": "2"})
    assert code == 0, output
    assert output == "saved\n"


def test_different_exit_codes_at_a_joint_end(mpirun):
    code, output = mpirun(2, "import disttensor.distributed as d\nraise SystemExit(4 * d.rank())\n")
    assert code == 4, output


@open_mpi_alone
def test_bad_grace(mpirun):
    code, output = mpirun(
        2, "import disttensor.distributed as d\nd.initialize()\n", env={"DISTTENSOR_EXIT_GRACE": "no"}
    )
    assert code != 0
    assert "DISTTENSOR_EXIT_GRACE='no' must be a positive number" in output
