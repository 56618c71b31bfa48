"""Which rank is named when several fail, whoever's report comes first."""

from __future__ import annotations

import itertools
import re
import signal

import pytest

from launch.failure import Evidence, Failure
from tests.launch.running import WITH_MPI

AFTERMATH, VANISHED, CODE, CAUSE = Evidence


def named(*failures):
    """Of failures given as (host, evidence) in the order of their reports."""
    found, *later = (Failure(i, host, 1, 0, 0.0, 0, evidence) for i, (host, evidence) in enumerate(failures))
    for failure in later:
        if failure.outranks(found):
            found = failure
    return found.rank


@pytest.mark.parametrize("evidence", [*Evidence])
def test_the_first_of_equals_is_named(evidence):
    assert named(("a", evidence), ("b", evidence), ("a", evidence)) == 0


@pytest.mark.parametrize(("less", "more"), [*itertools.combinations(Evidence, 2)])
@pytest.mark.parametrize("others_host", ["a", "b"])
def test_the_cause_is_named_in_any_order(less, more, others_host):
    assert named(("a", more), (others_host, less)) == 0
    on_another_host = (less, more) == (VANISHED, CODE) and others_host != "a"
    assert named((others_host, less), ("a", more)) == (0 if on_another_host else 1)


# What ends a rank: a line of its program, and how it is named.
KILLED = "os.kill(os.getpid(), signal.SIGKILL)", r"was killed by signal 9 \(SIGKILL\)"
EXITED = "os._exit(3)", "ended with exit code 3"
RAISED = "report(code=5, aftermath=False)", "ended with exit code 5"
LOST_A_PEER = "report(code=1, aftermath=True)", "ended with exit code 1"
TOLD = (
    "os.kill(os.getppid(), signal.SIGTERM); os.kill(os.getpid(), signal.SIGTERM)",  # as mpirun: the whole group
    r"was killed by signal 15 \(SIGTERM\)",
)

# The last rank ends first, but its parent, which reports it, is held up for longer than the others' reports are waited
# for without asking. Each rank's children keep its parent for a second, so that mpirun knows of no end before.
LATE = """
import json
def report(**said):  # as disttensor.distributed does before it aborts the job
    os.write(int(os.environ["DISTTENSOR_REPORT_FD"]), json.dumps(said).encode())
    time.sleep(60)
subprocess.Popen(["sleep", "60"])
if last:
    held = os.getppid()
    subprocess.Popen(["sh", "-c", f"sleep 0.8; kill -CONT {{held}}"])
    os.kill(held, signal.SIGSTOP)
    open({file!r}, "w").close()
    {cause}
elif rank == 0:
    while not os.path.exists({file!r}): time.sleep(0.005)
    time.sleep(0.05)
    {consequence}
time.sleep(60)
"""


OPEN_MPI, MPICH = WITH_MPI


@pytest.mark.parametrize(
    ("start", "cause", "consequence"),
    [
        pytest.param(*library.values, cause, consequence, marks=library.marks, id=f"{library.values[0]} {name}")
        for library, cause, consequence, name in [
            (OPEN_MPI, KILLED, LOST_A_PEER, "killed, error of MPI"),
            (MPICH, KILLED, EXITED, "killed, exit code"),
            (OPEN_MPI, KILLED, TOLD, "killed, SIGTERM"),
            (MPICH, EXITED, LOST_A_PEER, "exit code, error of MPI"),
            (OPEN_MPI, EXITED, TOLD, "exit code, SIGTERM"),
            (OPEN_MPI, RAISED, EXITED, "exception, exit code"),
        ]
    ],
    indirect=["start"],
)
def test_a_cause_is_named_though_its_report_comes_late(start, tmp_path, cause, consequence):
    run = start(LATE.format(file=str(tmp_path / "gone"), cause=cause[0], consequence=consequence[0]))
    code, output = run.end()
    assert code != 0
    assert re.search(rf"rank {start.last} on host \S+ {cause[1]}", output), output
    assert not re.search(rf"rank 0 on host \S+ {consequence[1]}", output)


LOSES_A_PEER = """
import numpy as np
from disttensor import distributed
comm = distributed.communicator()
for step in range(10**9):
    if last and step == 100:
        subprocess.Popen(["sleep", "60"])  # which its parent waits for before it ends
        os.kill(os.getpid(), signal.SIGKILL)
    comm.all_reduce(np.ones(1 << 16, np.float32))
"""
"""The others fail in MPI at once, if it is connected by sockets, as between hosts."""


@pytest.mark.parametrize("start", WITH_MPI, indirect=True)
def test_who_only_lost_a_peer_is_not_named(start):
    sockets = {"OMPI_MCA_btl": "self,tcp", "UCX_TLS": "tcp,self", "DISTTENSOR_ALLREDUCE": "mpi"}
    code, output = start(LOSES_A_PEER, env=sockets).end()
    assert code == 128 + signal.SIGKILL, output
    assert re.search(rf"rank {start.last} on host \S+ was killed by signal 9", output)
