"""Which rank is named when several fail, whoever's report comes first."""

from __future__ import annotations

import itertools
import platform
import re
import signal

import pytest

from launch.failure import Evidence, Failure, evidence_of_end
from tests.launch.running import WITH_MPI

AFTERMATH, VANISHED, CODE, CRASH, CAUSE = Evidence


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
    on_another_host = less is VANISHED and more in (CODE, CRASH) and others_host != "a"
    assert named((others_host, less), ("a", more)) == (0 if on_another_host else 1)


@pytest.mark.parametrize(
    ("number", "alone", "told"),
    [
        (0, CODE, AFTERMATH),
        (signal.SIGTERM, CAUSE, AFTERMATH),
        (signal.SIGSEGV, CRASH, AFTERMATH),
        (signal.SIGABRT, CRASH, AFTERMATH),
        (signal.SIGKILL, CAUSE, CAUSE),  # not by mpirun, which would have killed the parent that reports it
    ],
)
def test_evidence_of_an_end(number, alone, told):
    assert evidence_of_end(number, told=False) is alone
    assert evidence_of_end(number, told=True) is told


# What ends a rank: a line of its program, and how it is named.
KILLED = "os.kill(os.getpid(), signal.SIGKILL)", r"was killed by signal 9 \(SIGKILL\)"
KILLED_BEFORE_TOLD = "os.kill(os.getppid(), signal.SIGTERM); " + KILLED[0], KILLED[1]
CRASHED = "os.kill(os.getpid(), signal.SIGSEGV)", r"was killed by signal 11 \(SIGSEGV\)"
EXITED = "os._exit(3)", "ended with exit code 3"
RAISED = "report(code=5, aftermath=False)", "ended with exit code 5"
LOST_A_PEER = "report(code=1, aftermath=True)", "ended with exit code 1"
TOLD = (
    "os.kill(os.getppid(), signal.SIGTERM); os.kill(os.getpid(), signal.SIGTERM)",  # as mpirun: the whole group
    r"was killed by signal 15 \(SIGTERM\)",
)

# The last rank ends first, but its parent, which reports it, is held up for longer than the others' reports are waited
# for without asking. Until then mpirun must know of no end: it would kill that parent.
LATE = """
import json
def report(**said):  # as disttensor.distributed does before it aborts the job
    os.write(int(os.environ["DISTTENSOR_REPORT_FD"]), json.dumps(said).encode())
    time.sleep(for_ever)
if last:
    held = os.getppid()
    is_held = f"grep -q 'State:.T' /proc/{{held}}/status"
    subprocess.Popen(["sh", "-c", f"until {{is_held}}; do sleep 0.01; done; sleep 0.8; kill -CONT {{held}}"])
    os.kill(held, signal.SIGSTOP)
    open({file!r}, "w").close()
    {cause}
elif rank == 0:
    wait_until(lambda: os.path.exists({file!r}))
    time.sleep(0.05)
    {consequence}
time.sleep(for_ever)
"""


OPEN_MPI, MPICH = WITH_MPI


@pytest.mark.parametrize(
    ("start", "cause", "consequence"),
    [
        pytest.param(*library.values, cause, consequence, marks=library.marks, id=f"{library.values[0]} {name}")
        for library, cause, consequence, name in [
            (OPEN_MPI, KILLED, LOST_A_PEER, "killed, error of MPI"),
            (MPICH, KILLED, EXITED, "killed, exit code"),
            (OPEN_MPI, KILLED, EXITED, "killed, exit code"),
            (OPEN_MPI, KILLED, TOLD, "killed, SIGTERM"),
            (OPEN_MPI, KILLED_BEFORE_TOLD, EXITED, "killed before SIGTERM, exit code"),
            (OPEN_MPI, CRASHED, EXITED, "crash, exit code"),
            (MPICH, KILLED, CRASHED, "killed, crash"),
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


ABORTS = """
from disttensor import distributed
from mpi4py import MPI
distributed.communicator().barrier()
"""


@pytest.mark.parametrize("start", WITH_MPI, indirect=True)
def test_who_loses_a_peer_leaves_its_parent_time_to_say_so(start, tmp_path):
    """At an abort mpirun kills the parents."""
    consequence = "raise MPI.Exception(MPI.ERR_OTHER)"
    code, output = start(
        ABORTS + LATE.format(file=str(tmp_path / "gone"), cause=KILLED[0], consequence=consequence)
    ).end()
    assert code == 128 + signal.SIGKILL, output
    assert re.search(rf"rank {start.last} on host \S+ {KILLED[1]}", output), output
    assert "[rank 0]" in output


# The last rank is on its way out, which takes longer than others are waited for: its first thread has ended.
DYING = """
import ctypes, threading
def end():
    time.sleep(0.8)
    os.kill(os.getpid(), signal.SIGKILL)
def state():
    try:
        return open(f"/proc/{{open({file!r}).read()}}/stat").read().rpartition(")")[2].split()[0]
    except OSError:
        return ""
if last:
    threading.Thread(target=end).start()
    with open({file!r}, "w") as file: file.write(str(os.getpid()))
    ctypes.CDLL(None).syscall({exit_thread}, 0)
elif rank == 0:
    wait_until(lambda: state() == "Z")
    os._exit(3)
time.sleep(for_ever)
"""


@pytest.mark.parametrize("start", WITH_MPI, indirect=True)
def test_a_cause_is_named_though_it_dies_slowly(start, tmp_path):
    exit_thread = {"x86_64": 60, "aarch64": 93}[platform.machine()]
    code, output = start(DYING.format(file=str(tmp_path / "pid"), exit_thread=exit_thread)).end()
    assert code == 128 + signal.SIGKILL, output
    assert re.search(rf"rank {start.last} on host \S+ was killed by signal 9", output)


# The last rank's parent ends when all have been heard, which said that the program of rank 0 ran. If it does not end,
# rank 0 crashes before they have been waited for in vain.
STILL_RAN = """
if last:
    with open({file!r} + ".new", "w") as file: file.write(str(os.getppid()))
    os.rename({file!r} + ".new", {file!r})
    os._exit(3)
elif rank == 0:
    wait_until(lambda: os.path.exists({file!r}))
    parent, limit = open({file!r}).read(), time.monotonic() + 4
    wait_until(lambda: not os.path.exists(f"/proc/{{parent}}/exe") or time.monotonic() > limit)
    os.kill(os.getpid(), signal.SIGSEGV)
time.sleep(for_ever)
"""


@pytest.mark.parametrize("start", [MPICH], indirect=True)  # whose mpirun ends nobody for an exit code
def test_who_still_ran_when_another_had_failed_is_not_named(start, tmp_path):
    code, output = start(STILL_RAN.format(file=str(tmp_path / "gone"))).end()
    assert code == 3, output
    assert re.search(rf"rank {start.last} on host \S+ ended with exit code 3", output)


LOSES_A_PEER = """
import numpy as np
from disttensor import distributed
comm = distributed.communicator()
for step in range(10**9):
    if last and step == 100:
        subprocess.Popen(["sleep", str(for_ever)])  # which its parent waits for before it ends
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
