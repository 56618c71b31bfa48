"""``disttensor-run --hosts`` across emulated hosts, and what happens when one of them is lost."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.faults.campaign import wait_for_step

pytestmark = [pytest.mark.hosts, pytest.mark.mpi, pytest.mark.timeout(900)]
ROOT = Path(__file__).parents[2]
SECONDS = 250  # in which whatever is waited for must have come, however busy the machine is
only_one_library = pytest.mark.parametrize("python", ["mpich"], indirect=True)

# Sums until it is told to stop by a file, or 2 seconds after a restart.
PROGRAM = """
import os, socket, sys, time
import numpy as np
from disttensor import distributed
comm = distributed.communicator()
again = int(os.environ["DISTTENSOR_RESTART_COUNT"])
print("start", again, "rank", comm.rank, "of", comm.size, "on", socket.gethostname(), flush=True)
stop, steps = sys.argv[1], 0
while True:
    total = comm.all_reduce(np.ones(1 << 16, np.float32))
    steps += 1
    assert total[0] == comm.size
    if comm.all_reduce(np.float32([again or os.path.exists(stop)]))[0]:
        break
    time.sleep(0.02)
print("done after", steps, "steps", flush=True)
"""


class Run:
    """A disttensor-run on the first host."""

    def __init__(
        self, hosts, python, folder, *options, patience=4, command=None, variables=None, program=PROGRAM, ranks=1,
        hostfile=False,
    ):  # fmt: skip
        (folder / "program.py").write_text(program)
        self.stop = folder / "stop"
        self.program, *arguments = command or [str(folder / "program.py"), str(self.stop)]
        environ = {name: value for name, value in os.environ.items() if not name.startswith(("OMPI_", "PRTE_", "PMI"))}
        environ |= {"PYTHONPATH": str(ROOT), "DISTTENSOR_HOST_TIMEOUT": str(patience)}
        environ["UCX_TLS"] = "tcp,self"  # MPICH would find out that all hosts share one memory
        environ["PRTE_MCA_prte_tmpdir_base"] = "/dev/shm"  # process numbers repeat, and the hosts share /tmp
        environ |= variables or {}
        where = ["--hosts", ",".join(f"{host.name}:{ranks}" for host in hosts)]
        if hostfile:
            (folder / "hostfile").write_text("".join(f"{host.name} slots={ranks}\n" for host in hosts))
            where = ["--hostfile", str(folder / "hostfile")]
        self.process = hosts[0].run(
            str(python), "-m", "launch.cli", *where, *options, self.program, *arguments,
            env=environ, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        self.lines = []

    def wait_for(self, text, count=1):
        while count:
            line = self.process.stdout.readline()
            assert line, f"ended before it printed {text!r}:\n{''.join(self.lines)}"
            self.lines.append(line)
            count -= text in line

    def end(self):
        output, _ = self.process.communicate(timeout=SECONDS)
        self.lines.append(output)
        return self.process.returncode, "".join(self.lines)


@pytest.fixture
def run(hosts, python, tmp_path):
    started = []

    def begin(*options, **more):
        started.append(Run(hosts, python, tmp_path, *options, **more))
        return started[-1]

    yield begin
    for each in started:
        each.process.kill()
        each.process.wait()
        each.process.stdout.close()


def none_left(hosts, program):
    limit = time.monotonic() + SECONDS
    while (left := [host.name for host in hosts if host.processes(program)]) and time.monotonic() < limit:
        time.sleep(0.1)
    return not left


def rank_on(host, program):
    """The process of the rank itself, below its parent from the launcher."""
    return next(p for p in host.processes(program) if b"rank.py" not in Path(f"/proc/{p}/cmdline").read_bytes()
                and b"mpirun" not in Path(f"/proc/{p}/cmdline").read_bytes())  # fmt: skip


def received(host):
    """Bytes that came in over the cable."""
    enter = ["nsenter", f"--target={host.init}", "--net", "ip", "-s", "-o", "link", "show", "eth0"]
    shown = subprocess.run(enter, capture_output=True, text=True, check=True).stdout
    return int(re.search(r"RX:[^\\]*\\\s+(\d+)", shown)[1])


@pytest.mark.parametrize("hostfile", [False, True], ids=["hosts", "hostfile"])
def test_ranks_on_all_hosts(run, hosts, hostfile):
    started = run(hostfile=hostfile)
    started.wait_for("start 0", 3)
    started.stop.touch()
    code, output = started.end()
    assert code == 0, output
    assert sorted(re.findall(r"rank \d of 3 on (h\d)", output)) == ["h1", "h2", "h3"]
    assert received(hosts[2]) > 4 * (1 << 16)  # the numbers went over the network
    assert none_left(hosts, started.program)


def test_a_rank_killed_on_another_host(run, hosts):
    started = run("--max-restarts", "1")
    started.wait_for("start 0", 3)
    os.kill(rank_on(hosts[2], started.program), signal.SIGKILL)
    code, output = started.end()
    assert code == 0, output
    assert re.search(r"rank \d on host h3 was killed by signal 9", output)
    assert "restart 1 of 1 with 3 ranks" in output
    assert none_left(hosts, started.program)


@pytest.mark.parametrize("how", ["switched off", "cable pulled"])
def test_a_host_that_goes_away(run, hosts, how):
    started = run("--max-restarts", "1", "--min-ranks", "2")
    started.wait_for("start 0", 3)
    if how == "switched off":
        hosts[1].end()
    else:
        hosts[1].link("down")
    code, output = started.end()
    assert code == 0, output
    if how == "cable pulled":  # else ranks on other hosts may notice, and abort, in the same moment
        assert re.search(r"rank \d on host h2 vanished", output)
    assert "h2 does not answer; going on without" in output
    assert "restart 1 of 1 with 2 ranks" in output
    assert sorted(re.findall(r"start 1 rank \d of 2 on (h\d)", output)) == ["h1", "h3"]
    left = hosts if how == "cable pulled" else [hosts[0], hosts[2]]  # also where nobody could tell it to end
    assert none_left(left, started.program)


TRAINING = ROOT / "tests" / "faults" / "program.py"  # writes down each step, and keeps checkpoints
STEPS = 60


def test_a_training_on_a_bad_network_that_loses_a_host_ends_with_the_same_bits(run, hosts, tmp_path):
    """10 Mbit/s, a cable that is pulled for some seconds, and a host that is switched off."""
    mode = {"DISTTENSOR_DETERMINISTIC": "8", "DISTTENSOR_THREADS": "1"}
    for name in ("alone", "together"):
        (tmp_path / name).mkdir()
    alone = [sys.executable, str(TRAINING), str(tmp_path / "alone"), str(STEPS)]
    subprocess.run(alone, check=True, env={**os.environ, **mode, "PYTHONPATH": str(ROOT)})
    for host in hosts:
        host.limit("10mbit")
    # However late the host is switched off, it is in the middle of the training.
    command = [str(TRAINING), str(tmp_path / "together"), str(STEPS), "waits until it is struck", "0", "40", "0"]
    started = run("--max-restarts", "1", patience=15, command=command, variables=mode)
    wait_for_step(tmp_path / "together", 10, SECONDS)
    hosts[2].link("down")
    time.sleep(4)
    hosts[2].link("up")
    wait_for_step(tmp_path / "together", 30, SECONDS)
    hosts[1].end()
    (tmp_path / "together" / "struck").touch()
    code, output = started.end()
    assert code == 0, output
    assert "restart 1 of 1 with 2 ranks" in output
    assert "Going on from checkpoint" in output
    found, expected = ((tmp_path / name / "result.json").read_text() for name in ("together", "alone"))
    assert found == expected


def test_a_host_whose_sshd_is_gone(run, hosts):
    """Running ranks do not need it; starting new ones does."""
    started = run("--max-restarts", "1")
    started.wait_for("start 0", 3)
    for sshd in hosts[1].processes("[listener]"):
        os.kill(sshd, signal.SIGKILL)
    time.sleep(1)
    assert started.process.poll() is None
    os.kill(rank_on(hosts[1], started.program), signal.SIGKILL)
    code, output = started.end()
    assert code == 0, output
    assert "h2 does not answer; going on without" in output
    assert none_left(hosts, started.program)


@only_one_library
def test_too_few_hosts_left(run, hosts):
    started = run("--max-restarts", "1", "--min-ranks", "3")
    started.wait_for("start 0", 3)
    hosts[1].end()
    code, output = started.end()
    assert code != 0
    assert "2 ranks would be left, fewer than --min-ranks 3" in output


@only_one_library
def test_a_short_break_of_the_network_is_nothing(run, hosts):
    started = run(patience=20)
    started.wait_for("start 0", 3)
    hosts[1].link("down")
    time.sleep(5)
    hosts[1].link("up")
    time.sleep(1)
    started.stop.touch()
    code, output = started.end()
    assert code == 0, output
    assert output.count("done after") == 3


def test_nothing_survives_a_killed_supervisor(run, hosts):
    started = run()
    started.wait_for("start 0", 3)
    supervisor = next(
        p for p in hosts[0].processes("launch.cli") if b"nsenter" not in Path(f"/proc/{p}/cmdline").read_bytes()
    )
    os.kill(supervisor, signal.SIGKILL)
    assert none_left(hosts, started.program)


@only_one_library
def test_a_host_that_does_not_answer_is_named(run, hosts):
    hosts[2].end()
    code, output = run().end()
    assert code == 2
    assert "h3 cannot be reached: `ssh -o BatchMode=yes h3 true` fails" in output


def doctor(host, python, *options):
    started = host.run(
        str(python), "-m", "disttensor", "doctor", "--hosts", "h1:1,h2:1,h3:1", *options,
        env=os.environ | {"PYTHONPATH": str(ROOT)}, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    output, _ = started.communicate(timeout=SECONDS)
    return started.returncode, output


@only_one_library
def test_the_doctor_visits_all_hosts(hosts, python, tmp_path):
    code, output = doctor(hosts[0], python, "--folder", str(tmp_path))
    assert code == 0, output
    assert "can be written and is seen by all hosts" in output
    assert "on all hosts" in output
    for host in hosts:
        assert f"MPI library on {host.name}: MPICH" in output
    code, output = doctor(hosts[0], python, "--folder", "/dev/shm")  # each host has its own
    assert code == 1
    assert "2 of 3 hosts write somewhere else under that name" in output
    hosts[2].end()
    code, output = doctor(hosts[0], python, "--folder", str(tmp_path))
    assert code == 1
    assert "ERROR   host h3: cannot be reached" in output


FAST = 3600
FAST_CLOCK = f"import time\nreal = time.time\ntime.time = lambda: real() + {FAST}\n"


def with_other_packages(host, site, folder):
    """Let a host see other versions of two packages in an environment, and a clock that is an hour fast."""
    for name in ("numpy", "disttensor"):
        (info,) = site.glob(f"{name}-*.dist-info")
        (folder / info.name).mkdir(parents=True)
        text = (info / "METADATA").read_text()
        (folder / info.name / "METADATA").write_text(re.sub(r"^Version: .*", "Version: 9.9", text, flags=re.MULTILINE))
    (folder / "sitecustomize.py").write_text(FAST_CLOCK)
    layers = f"lowerdir={folder}:{site}"
    assert host.run("mount", "-t", "overlay", "overlay", "-o", layers, str(site)).wait() == 0


@only_one_library
def test_the_doctor_tells_hosts_apart(hosts, python, tmp_path):
    (site,) = python.parents[1].glob("lib/python*/site-packages")
    with_other_packages(hosts[1], site, tmp_path / "other")
    assert hosts[1].run("mount", "-o", "remount,size=16m", "/dev/shm").wait() == 0
    (tmp_path / "run").mkdir()
    assert hosts[2].run("mount", "-t", "tmpfs", "-o", "ro,size=1m", "tmpfs", str(tmp_path / "run")).wait() == 0
    began = time.monotonic()
    code, output = doctor(hosts[0], python, "--folder", str(tmp_path / "run"))
    took = time.monotonic() - began
    assert code == 1, output
    wrong = re.findall(r"^(?:WARNING|ERROR  ) (.*)\n +-> (.*)", output, re.MULTILINE)
    found = {check: (said, advice) for check, said, advice in (re.split(": ", a, maxsplit=1) + [b] for a, b in wrong)}
    assert set(found) == {
        "version of numpy", "version of disttensor", "/dev/shm of h2", "clocks", "disk of h3",
        f"folder {tmp_path / 'run'}",
    }  # fmt: skip
    said, advice = found["version of numpy"]
    assert re.fullmatch(r"2\S+ on h1, 9[.]9 on h2, 2\S+ on h3", said), said
    assert "install the same everywhere" in advice
    said, advice = found["clocks"]
    differs = int(re.fullmatch(r"that of h2 differs by (\d+) s", said)[1])
    assert FAST - 1 - took < differs <= FAST  # at least by so much, whenever the answer came
    assert advice == "let all hosts use NTP (chrony)"
    assert found["/dev/shm of h2"][0] == "16 MiB free"
    assert found[f"folder {tmp_path / 'run'}"][0] == "Read-only file system on h3"


HANGS = """
import time
import numpy as np
from disttensor import distributed
comm = distributed.communicator()

def read_for_ever():
    while True:
        time.sleep(0.1)

for step in range(1000):
    if step == 5 and comm.rank == comm.size - 1:
        read_for_ever()
    comm.all_reduce(np.ones(1 << 16, np.float32))
"""


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_rank_that_hangs_on_another_host_is_seen(run, hosts, ranks):
    """With one rank on each host, there is nobody beside it to look at it."""
    started = run(program=HANGS, ranks=ranks, variables={"DISTTENSOR_TIMEOUT": "15"})
    code, output = started.end()
    last = 3 * ranks - 1
    assert code != 0
    assert len(re.findall(r"^\[rank \d\] .* has lasted for", output, re.MULTILINE)) == 1, output
    assert f"It waits for rank {last}.\n" in output, output
    assert re.search(rf"rank {last} \(host h3, process \d+\): not in fit\(\); all_reduce", output), output
    assert re.search(r"in read_for_ever\n", output), output
    for rank in range(last):
        assert re.search(rf"rank {rank} \(host h\d, process \d+\): not in fit\(\); waits in all_reduce", output), output
    assert none_left(hosts, started.program)
