"""Watch the ranks of a program, say which failed, and start anew on the hosts that still answer."""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import NamedTuple

from launch import rank as protocol
from launch import slurm
from launch.attempt import Attempt, Outcome
from launch.console import Console
from launch.errors import LaunchError
from launch.exit_codes import INTERRUPTED, REQUEUE
from launch.failure import Failure
from launch.hosts import Host, answering
from launch.plan import Plan, Request, make_plan

_USAGE = 2  # how programs say that their arguments are wrong, and will be the next time
_TIMED_OUT = 124  # as timeout(1)
_PIPE_CLOSED = 141  # what shells use for an end by SIGPIPE
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 30.0
_PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP)


class Policy(NamedTuple):
    """What to do when ranks fail; see ``disttensor-run --help``.

    Attributes
    ----------
    max_restarts : int
    min_ranks : int
    timeout : float or None
        Seconds for everything, restarts included.
    log_dir : Path or None
    requeue : bool
        Whether a Slurm job whose training ended before its time, and was not cancelled, is put back into the queue.
    """

    max_restarts: int = 0
    min_ranks: int = 1
    timeout: float | None = None
    log_dir: Path | None = None
    requeue: bool = False


def supervise(request: Request, policy: Policy, environ: Mapping[str, str], cores: int, is_root: bool) -> int:
    """Run the program, as often as the policy allows; its exit code.

    Raises
    ------
    LaunchError
        If it cannot be started as asked.
    """
    for option, value, least in (
        ("--max-restarts", policy.max_restarts, 0),
        ("--min-ranks", policy.min_ranks, 1),
        ("--timeout", policy.timeout or 1, 1),
    ):
        if value < least:
            raise LaunchError(f"{option} {value} must be at least {least}.")
    signals: list[int] = []
    for number in _PASSED_ON:  # from now on, for making the plan can take seconds
        signal.signal(number, lambda number, frame: signals.append(number))
    plan = make_plan(request, environ, cores, is_root)
    if policy.min_ranks > plan.n:
        raise LaunchError(f"--min-ranks {policy.min_ranks} is more than the {plan.n} ranks to start.")
    return _Supervisor(request, policy, environ, cores, is_root, plan, signals).run()


class _Supervisor:
    def __init__(
        self,
        request: Request,
        policy: Policy,
        environ: Mapping[str, str],
        cores: int,
        is_root: bool,
        plan: Plan,
        signals: list[int],
    ) -> None:
        self._request, self._policy, self._environ = request, policy, environ
        self._cores, self._is_root = cores, is_root
        self._plan = plan
        self._signals = signals
        self._asked: set[int] = set()
        self._patience = _patience(environ)

    def run(self) -> int:
        console = Console(self._policy.log_dir)
        protocol.adopt_descendants()
        wake, waker = os.pipe()
        for end in (wake, waker):
            os.set_blocking(end, False)
        signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
        self._wake = wake
        try:
            return self._run(console)
        except BrokenPipeError:  # nobody reads what is printed, as in `disttensor-run … | head`
            return _PIPE_CLOSED
        finally:
            signal.set_wakeup_fd(-1)
            console.close()

    def _run(self, console: Console) -> int:
        deadline = None if self._policy.timeout is None else time.monotonic() + self._policy.timeout
        self._require_answers()
        plan = self._plan
        for number in range(self._policy.max_restarts + 1):
            attempt = Attempt(plan, self._environ, number, console, self._pending, self._wake, deadline, self._patience)
            outcome = attempt.run()
            self._asked |= outcome.asked
            if outcome.failure is not None:
                self._report(console, outcome, outcome.failure)
            if (end := self._end(outcome, console)) is not None:
                return end
            if number == self._policy.max_restarts:
                if number:
                    console.say(f"gave up after {number} restarts.")
                return outcome.code
            smaller = self._shrink(plan, console)
            if smaller is None:
                return outcome.code
            plan = smaller
            pause = min(_FIRST_PAUSE * 2**number, _LONGEST_PAUSE)
            console.say(
                f"restart {number + 1} of {self._policy.max_restarts} with {plan.n} "
                f"{'rank' if plan.n == 1 else 'ranks'} in {pause:.1f} s."
            )
            if self._was_ended_while_waiting(pause):
                return outcome.code
        raise AssertionError

    def _pending(self) -> list[int]:
        signals = list(self._signals)
        del self._signals[: len(signals)]
        return signals

    def _end(self, outcome: Outcome, console: Console) -> int | None:
        """The exit code, if this was the last attempt whatever the policy."""
        if outcome.timed_out:
            return _TIMED_OUT
        if self._policy.requeue and _can_go_on(outcome, self._asked):
            _requeue(self._environ, console)
            return REQUEUE
        if outcome.code in (0, REQUEUE, INTERRUPTED, _USAGE):
            return outcome.code
        if signal.SIGINT in self._asked:
            return INTERRUPTED
        return outcome.code if self._asked else None

    def _report(self, console: Console, outcome: Outcome, failure: Failure) -> None:
        if outcome.code in (REQUEUE, INTERRUPTED) or self._asked:
            return  # it did what it was asked to
        words = [str(failure)]
        if last := console.last_lines(failure.rank).rstrip():
            words += [f"The last lines of rank {failure.rank}:", *(f"    {line}" for line in last.splitlines())]
        console.say("\n".join(words))

    def _require_answers(self) -> None:
        names = [host.name for host in self._plan.hosts]
        silent = sorted(set(names) - set(answering(names, self._environ)))
        if silent:
            raise LaunchError(
                f"{', '.join(silent)} cannot be reached: `ssh -o BatchMode=yes {silent[0]} true` fails. Each host must "
                "let you in without a password; leave out those that are down."
            )

    def _shrink(self, plan: Plan, console: Console) -> Plan | None:
        """The plan for the hosts that still answer; None if they are too few."""
        if plan.hosts:
            names = [host.name for host in plan.hosts]
            left = set(answering(names, self._environ))
            lost = [name for name in names if name not in left]
        else:
            lost = slurm.silent_nodes(self._environ) if plan.job is not None and plan.job.nodes > 1 else []
        if not lost:
            return plan
        console.say(f"{', '.join(lost)} {'does' if len(lost) == 1 else 'do'} not answer; going on without.")
        if plan.hosts:
            hosts = [host for host in plan.hosts if host.name not in lost]
            n = min(plan.n, sum(host.ranks or 0 for host in hosts))
            request = self._request._replace(n=n, hosts=_as_text(hosts), hostfile=None)
        else:
            self._environ = slurm.without(self._environ, lost)
            n = min(plan.n, int(self._environ["SLURM_NTASKS"]))
            self._request = request = self._request._replace(n=n, without=(*self._request.without, *lost))
        if n < self._policy.min_ranks:
            console.say(f"{n} ranks would be left, fewer than --min-ranks {self._policy.min_ranks}.")
            return None
        return make_plan(request, self._environ, self._cores, self._is_root)

    def _was_ended_while_waiting(self, seconds: float) -> bool:
        limit = time.monotonic() + seconds
        with selectors.DefaultSelector() as selector:
            selector.register(self._wake, selectors.EVENT_READ)
            while not self._signals and (left := limit - time.monotonic()) > 0:
                selector.select(left)
        return bool(self._signals)


def _can_go_on(outcome: Outcome, asked: Collection[int]) -> bool:
    """Whether the training ended before its time and shall go on: not if only SIGTERM, as from scancel, asked for it.

    The ranks saved a checkpoint, because of SIGUSR1 or of the time limit that `fit` itself saw coming; or they were
    still starting, and so knew nothing of SIGUSR1 but to end by it.
    """
    if signal.SIGUSR1 in asked and outcome.failure is not None and outcome.failure.signal == signal.SIGUSR1:
        return True
    return outcome.code == REQUEUE and (signal.SIGUSR1 in asked or signal.SIGTERM not in asked)


def _as_text(hosts: list[Host]) -> str:
    return ",".join(f"{host.name}:{host.ranks}" for host in hosts)


def _patience(environ: Mapping[str, str]) -> int:
    text = environ.get("DISTTENSOR_HOST_TIMEOUT", "20")
    if not text.isdigit() or int(text) < 1:
        raise LaunchError(f"environment variable DISTTENSOR_HOST_TIMEOUT={text!r} must be a number of seconds.")
    return int(text)


def _requeue(environ: Mapping[str, str], console: Console) -> None:
    job = environ.get("SLURM_JOB_ID")
    if job is None:
        console.say(f"--requeue: this is no Slurm job. Exit code {REQUEUE} says: run the same command again.")
        return
    console.say(
        f"the training was asked to stop; job {job} goes back into the queue, to go on from its last checkpoint."
    )
    try:
        answer = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, timeout=60, check=False)
        problem = answer.stderr.strip() if answer.returncode else ""
    except (OSError, subprocess.TimeoutExpired) as error:
        problem = str(error)
    if problem:
        console.say(f"`scontrol requeue {job}` failed: {problem}. Submit the same script again; it will go on.")
