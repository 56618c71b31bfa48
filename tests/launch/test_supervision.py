"""Ranks that fail, restarts, signals, logs, and that nothing is left behind; real processes throughout."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launch.exit_codes import INTERRUPTED, REQUEUE
from tests.launch.running import LIMIT, ROOT, WITH_MPI, Run

GRANDCHILD = "subprocess.Popen(['sleep', str(for_ever)], start_new_session=True)"
FIRST = "if os.environ['DISTTENSOR_RESTART_COUNT'] == '0':\n    "


@pytest.mark.parametrize(
    ("fault", "code", "words"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", 137, r"was killed by signal 9 \(SIGKILL\)"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", 139, r"was killed by signal 11 \(SIGSEGV\)"),
        ("sys.exit(7)", 7, "ended with exit code 7"),
        ("raise ValueError('on purpose')", 1, "ended with exit code 1"),
    ],
)
def test_a_rank_that_fails_is_named_and_the_others_end(start, fault, code, words):
    run = start(f"if last:\n    print('about to fail', flush=True); {fault}\ntime.sleep(for_ever)")
    assert (ended := run.end())[0] == code, ended[1]
    assert re.search(f"rank {start.last} on host .* {words}", ended[1])
    assert f"The last lines of rank {start.last}:\ndisttensor-run:     rank {start.last} is here" in ended[1]
    assert "disttensor-run:     about to fail" in ended[1]


def test_a_suspended_rank_is_named(start):
    """By a program that knows nothing of disttensor, and so is not asked for its stacks."""
    source = """
signal.signal(signal.SIGRTMIN + 12, lambda *_: print('disturbed', flush=True))
if last: os.kill(os.getpid(), signal.SIGSTOP)
time.sleep(for_ever)
"""
    code, output = start(source, env={"DISTTENSOR_HOST_TIMEOUT": "3"}).end()
    assert code == 128 + signal.SIGSTOP
    assert re.search(rf"rank {start.last} on host .* was suspended by signal 19 \(SIGSTOP\).* for 3 s", output)
    assert "disturbed" not in output
    assert "Stacks of" not in output


@pytest.mark.parametrize("start", WITH_MPI, indirect=True)
def test_when_a_rank_is_suspended_the_others_show_their_stacks(start, tmp_path):
    # A thread that has told that it is at its line is still there when it is asked.
    source = f"""
import disttensor, threading
def is_here(thread, number=rank): return {str(tmp_path)!r} + f"/{{thread}}-{{number}}"
def wait_for_ever(): open(is_here("reader"), "w").close(), time.sleep(for_ever)
if last:
    wait_until(lambda: all(os.path.exists(is_here(t, r)) for t in ("reader", "main") for r in range(rank)))
    os.kill(os.getpid(), signal.SIGSTOP)
threading.Thread(target=wait_for_ever, name='a reader', daemon=True).start()
main = is_here("main")
open(main, "w").close(), time.sleep(for_ever)
"""
    code, output = start(source, env={"DISTTENSOR_HOST_TIMEOUT": "3"}).end()
    assert code == 128 + signal.SIGSTOP
    *_, states, stacks = re.split(r"Ranks that were ended:\n|(?=disttensor-run: Stacks of)", output)
    assert re.findall(r"rank (\d) \(host \S+\): (.*?)[;.]", states) == [
        ("0", "not in fit()"),
        ("1", "not in fit()"),
        ("2", "suspended by a signal"),
    ]
    assert "Stacks of ranks 0, 1, most recent call last:" in stacks
    assert re.search(r"  a reader:\n(.*\n)+?.*program.py\", line \d+, in wait_for_ever\n", stacks)
    assert re.search(r"  MainThread:\n.*program.py\", line \d+, in <module>\n", stacks)
    assert re.search("rank 2 on host .* was suspended by signal 19", stacks)


@pytest.mark.parametrize("start", ["alone"], indirect=True)
@pytest.mark.parametrize(("handler", "shown"), [("signal.SIG_DFL", 1), ("lambda *_: os._exit(0)", 0)])
def test_ranks_that_the_time_limit_ends_show_their_stacks(start, handler, shown):
    source = f"signal.signal(15, {handler})\nimport disttensor\nprint('ready', flush=True)\ntime.sleep(for_ever)"
    for seconds in (5, 30, 200):  # who was not ready by then has nothing to show
        code, output = start(source, "--timeout", seconds).end()
        if "ready\n" in output.partition("--timeout is over")[0]:
            break
    assert code == 124
    assert output.count("most recent call last:\ndisttensor-run:   MainThread:") == shown, output


@pytest.mark.slow
@pytest.mark.parametrize("start", ["openmpi"], indirect=True)
@pytest.mark.mpi
def test_ranks_that_do_not_end_in_time_show_their_stacks(start):
    source = "signal.signal(15, signal.SIG_IGN)\nimport disttensor\nprint('ready', flush=True)\ntime.sleep(for_ever)"
    for seconds in (10, 60):  # who was not ready by then has nothing to show
        code, output = start(source, "--timeout", seconds).end()
        if output.partition("--timeout is over")[0].count("ready\n") == start.ranks:
            break
    assert code == 124
    assert "Stacks of ranks 0 to 2, most recent call last:" in output


def test_a_rank_suspended_for_a_moment_is_no_failure(start):
    source = """
if last:
    me = os.getpid()
    is_suspended = f"grep -q 'State:.T' /proc/{me}/status"
    subprocess.Popen(['sh', '-c', f'until {is_suspended}; do sleep 0.1; done; sleep 0.5; kill -CONT {me}'])
    os.kill(me, signal.SIGSTOP)
    time.sleep(6)
"""
    code, output = start(source, env={"DISTTENSOR_HOST_TIMEOUT": "5"}).end()
    assert code == 0, output


def test_who_is_held_up_hears_first_and_judges_then(tmp_path):
    """It gets no processor when a rank that was suspended goes on, for longer than one may be suspended."""
    held_up = f"""
import os, signal, sys, time
from launch import attempt, cli
pass_on = attempt.Attempt._pass_on_signals
held = []
def hold_up(self):
    if not held and [peer for peer in self._peers.values() if peer.stopped]:
        held.append(True)
        os.kill(int(open({str(tmp_path / "pid")!r}).read()), signal.SIGCONT)
        time.sleep(1.5)
    pass_on(self)
attempt.Attempt._pass_on_signals = hold_up
sys.exit(cli.main(sys.argv[1:]))
"""
    program = tmp_path / "program.py"
    program.write_text(f"""
import os, signal
with open({str(tmp_path / "pid")!r}, "w") as file:
    file.write(str(os.getpid()))
os.kill(os.getpid(), signal.SIGSTOP)
""")
    command = [sys.executable, "-c", held_up, "-n", "1", str(program)]
    environ = os.environ | {"PYTHONPATH": str(ROOT), "DISTTENSOR_HOST_TIMEOUT": "1"}
    ended = subprocess.run(command, env=environ, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_success(start):
    code, output = start("print('so far', end='')", "--max-restarts", 3).end()
    assert code == 0
    assert sorted(re.findall(r"rank (\d) is here", output)) == sorted(map(str, range(start.ranks)))
    assert output.count("so far") == start.ranks
    assert "disttensor-run:" not in output


def test_restart(start):
    run = start(FIRST + "time.sleep(for_ever if not last else sys.exit(3))\nprint('went well')", "--max-restarts", 2)
    code, output = run.end()
    assert code == 0, output
    assert output.count("ended with exit code 3") == 1
    assert f"restart 1 of 2 with {start.ranks} rank" in output
    assert output.count("went well") == start.ranks


def test_restarts_are_counted(start):
    code, output = start("sys.exit(3)", "--max-restarts", 1).end()
    assert code == 3
    assert "gave up after 1 restarts" in output
    # Whoever is first ends all; the others may be on their way still.
    first, second = output.split("restart 1 of 1")
    assert re.search(r"^rank \d is here", first, re.MULTILINE)
    assert re.search(r"^rank \d is here", second, re.MULTILINE)


@pytest.mark.parametrize("code", [REQUEUE, INTERRUPTED, 2])
def test_ends_that_are_final(start, code):
    ended, output = start(f"sys.exit({code})", "--max-restarts", 5).end()
    assert ended == code
    assert "restart" not in output


def test_interrupt_once(start):
    """Each rank gets one SIGINT and may take its time to end."""
    source = """
got = []
signal.signal(signal.SIGINT, lambda *_: got.append(1))
print('ready', flush=True)
while not got: time.sleep(0.05)
time.sleep(1)
print('finished after', len(got), flush=True)
"""
    run = start(source, "--max-restarts", 5)
    run.wait_for("ready", start.ranks)
    run.process.send_signal(signal.SIGINT)
    code, output = run.end()
    assert code == 0, output
    assert output.count("finished after 1") == start.ranks


def test_interrupt_twice(start):
    run = start("signal.signal(signal.SIGINT, signal.SIG_IGN)\nprint('ready', flush=True)\ntime.sleep(for_ever)")
    run.wait_for("ready", start.ranks)
    run.process.send_signal(signal.SIGINT)
    run.wait_for("press Ctrl-C again")
    run.process.send_signal(signal.SIGINT)
    code, output = run.end()
    assert code == INTERRUPTED, output


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1"])
def test_signals_are_passed_on(start, name):
    source = f"""
def stop(number, frame):
    print('got', number, flush=True)
    sys.exit({REQUEUE})
signal.signal(signal.{name}, stop)
print('ready', flush=True)
time.sleep(for_ever)
"""
    run = start(source, "--max-restarts", 5)
    run.wait_for("ready", start.ranks)
    run.process.send_signal(signal.Signals[name])
    code, output = run.end()
    assert code == REQUEUE, output
    assert output.count(f"got {signal.Signals[name].value}") == start.ranks
    assert "restart" not in output


@pytest.fixture
def job(tmp_path):
    """The environment of a Slurm job that is made up; tests/slurm has real ones."""
    scontrol = tmp_path / "scontrol"
    scontrol.write_text('#!/bin/sh\necho "scontrol $@"\n')
    scontrol.chmod(0o755)
    return {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "7"}


@pytest.mark.parametrize("start", ["alone"], indirect=True)
@pytest.mark.parametrize(("name", "queued"), [("SIGUSR1", True), ("SIGTERM", False)])
def test_a_program_that_was_still_starting_is_queued_again(start, job, name, queued):
    """It has a checkpoint of an earlier piece, or nothing to lose; only the signal before a time limit queues it."""
    run = start("time.sleep(for_ever)", "--requeue", "--max-restarts", 5, env=job)
    run.wait_for("is here", start.ranks)
    run.process.send_signal(signal.Signals[name])
    code, output = run.end()
    assert (code == REQUEUE) == queued, output
    assert output.count("job 7 goes back into the queue") == queued
    assert "restart" not in output


@pytest.mark.parametrize("start", ["alone"], indirect=True)
def test_a_program_that_saw_the_time_limit_coming_is_queued_again(start, job):
    """As `fit` does where Slurm says when the job ends, even if the signal before it was lost."""
    code, output = start(f"sys.exit({REQUEUE})", "--requeue", env=job).end()
    assert code == REQUEUE
    assert output.count("job 7 goes back into the queue") == 1


def test_a_signal_that_comes_before_the_ranks_is_not_lost(start):
    """As soon as disttensor-run listens, when at best some ranks have been started."""
    run = start("print('ready', flush=True)\ntime.sleep(for_ever)")
    listens = 1 << (signal.SIGUSR1 - 1)
    status, limit = Path(f"/proc/{run.process.pid}/status"), time.monotonic() + LIMIT
    while not int(re.search(r"SigCgt:\s*(\w+)", status.read_text())[1], 16) & listens:
        assert time.monotonic() < limit
        time.sleep(0.001)
    run.process.send_signal(signal.SIGUSR1)
    code, output = run.end()
    assert code == 128 + signal.SIGUSR1, output


def test_timeout(start):
    run = start("time.sleep(for_ever)", "--timeout", 2, "--max-restarts", 3)
    code, output = run.end()
    assert code == 124
    assert "--timeout is over" in output


@pytest.mark.parametrize("stubborn", [False, True], ids=["", "signals ignored, a grandchild in a session of its own"])
def test_nothing_survives_a_killed_supervisor(start, stubborn):
    source = f"{GRANDCHILD}\nsignal.signal(15, signal.SIG_IGN)\n" * stubborn
    run = start(f"{source}print('ready', flush=True)\ntime.sleep(for_ever)")
    run.wait_for("ready", start.ranks)
    run.process.kill()
    run.process.wait()
    run.process.stdout.close()
    assert not run.remaining()


def test_what_a_rank_leaves_behind_is_ended(start):
    code, output = start(GRANDCHILD).end()
    assert code == 0, output


@pytest.mark.parametrize("start", WITH_MPI, indirect=True)
def test_shared_memory_of_killed_ranks_is_removed(start):
    source = """
from mpi4py import MPI
MPI.COMM_WORLD.Barrier()
for line in {line for line in open("/proc/self/maps") if "/dev/shm/" in line}:
    print("maps", line[line.index("/"):], end="", flush=True)
MPI.COMM_WORLD.Barrier()
time.sleep(0.5)
if last: os.kill(os.getpid(), signal.SIGKILL)
time.sleep(for_ever)
"""
    code, output = start(source).end()
    assert code == 128 + signal.SIGKILL, output
    segments = {line.split()[1] for line in output.splitlines() if line.startswith("maps /dev/shm/")}
    assert segments
    assert not [path for path in segments if Path(path).exists()]


def test_logs(start, tmp_path):
    logs = tmp_path / "logs"
    source = f"""
def is_here(number): return {str(tmp_path)!r} + f"/{{number}}"
print('to stderr', file=sys.stderr)
open(is_here(rank), "w").close()
{FIRST}last or time.sleep(for_ever)
    wait_until(lambda: all(os.path.exists(is_here(number)) for number in range(rank)))
    sys.exit(3)
"""
    code, output = start(source, "--log-dir", logs, "--max-restarts", 1).end()
    assert code == 0, output
    assert sorted(path.name for path in logs.iterdir()) == [
        "launcher.log",
        *(f"rank-{r}.log" for r in range(start.ranks)),
    ]
    for r in range(start.ranks):
        lines = (logs / f"rank-{r}.log").read_text().splitlines()
        assert lines.count(f"rank {r} is here") == 2
        assert [line[-len(line.partition("start")[2]) :] for line in lines if line.startswith("===")][0].startswith(
            " 1, on"
        )
        assert f"[rank {r}] rank {r} is here" in output
    assert "to stderr" in (logs / f"rank-{start.last}.log").read_text()
    assert "ended with exit code 3" in (logs / "launcher.log").read_text()


def test_a_log_folder_that_cannot_be_written(start, tmp_path):
    (tmp_path / "file").write_text("")
    code, output = start("", "--log-dir", tmp_path / "file").end()
    assert code == 2
    assert "cannot write logs to --log-dir" in output


def test_lines_of_ranks_are_not_mixed(start):
    source = "for i in range(200):\n    os.write(1, b'a' * 50)\n    os.write(1, b'b' * 50 + b'\\n')"
    code, output = start(source).end()
    assert code == 0
    assert [line for line in output.splitlines() if line.startswith("a")] == ["a" * 50 + "b" * 50] * 200 * start.ranks


def test_a_program_that_cannot_be_started(tmp_path):
    code, output = Run(sys.executable, "-n", 1, "-m", "no_such_module").end()
    assert code == 1
    assert "No module named no_such_module" in output


def test_a_closed_pipe_ends_the_run(start):
    run = start("while True:\n    print('x' * 100, flush=True)\n    time.sleep(0.01)")
    run.wait_for("x" * 100)
    run.process.stdout.close()
    assert run.process.wait(LIMIT) == 141
    assert not run.remaining()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--max-restarts", "-1"], "--max-restarts -1 must be at least 0"),
        (["--min-ranks", "0"], "--min-ranks 0 must be at least 1"),
        (["--min-ranks", "2"], "--min-ranks 2 is more than the 1 ranks"),
        (["--timeout", "-3"], "--timeout -3.0 must be at least 1"),
    ],
)
def test_bad_policies(options, words):
    code, output = Run(sys.executable, "-n", 1, *options, "-m", "this").end()
    assert code == 2
    assert words in output


def test_binding(start):
    cores = len(os.sched_getaffinity(0))
    if cores < 2:
        pytest.skip("needs two cores")
    source = "print('cores', *sorted(os.sched_getaffinity(0)))"
    code, output = start(source, "--bind", "cores", "--threads", 1).end()
    assert code == 0, output
    seen = re.findall(r"cores (.*)", output)
    assert len(seen) == start.ranks
    assert len(set(seen)) == min(start.ranks, cores)
    assert all(" " not in each for each in seen)
