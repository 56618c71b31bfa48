"""One start of the program: the ranks, their output, and how it ended."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from launch import rank as protocol
from launch.console import Console
from launch.errors import LaunchError
from launch.exit_codes import INTERRUPTED, REQUEUE
from launch.failure import Evidence, Failure, evidence_of_end
from launch.plan import Plan
from launch.rank import ASK, ENDED, ERR, EXIT, HEARD, HELLO, KILL, LEAVE, NONCE, OUT, REPORT, SIGNAL, STACKS, STOPPED
from launch.stacks import show

_START = 120.0  # seconds in which all ranks must have started
_GRACE = 0.5  # seconds that other ranks get to say what they know, when one has failed
_HEARING = 5.0  # seconds at most until all have said so, on a busy host
_FINISHING = 10.0  # the same, when it has ended because it was asked to
_ANSWERING = 5.0  # seconds that ranks get to show their stacks before they are ended, on a busy host
_VANISHED = 1.0  # seconds to wait for the reason, when a connection broke
_MPIRUN = 5.0  # seconds that mpirun or srun gets to clean up behind ended ranks
_TICK = 0.1
_UNTIL_KILLED = 10.0  # seconds that processes get to disappear after SIGKILL
_NO_ANSWER = (errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH)


class Outcome(NamedTuple):
    """How an attempt ended.

    Attributes
    ----------
    code : int
    failure : Failure or None
        The rank that failed by itself, as far as can be known.
    asked : set of int
        Signals that were passed on to the ranks meanwhile.
    """

    code: int
    failure: Failure | None
    asked: frozenset[int]
    timed_out: bool


class _Peer:
    """A connection from a rank, or from who wants to be one."""

    def __init__(self, link: socket.socket) -> None:
        self.link = link
        self.frames = protocol.Frames()
        self.nonce = secrets.token_bytes(16)
        self.rank: int | None = None
        self.host = ""
        self.reported = False  # why it ends the job
        self.ended = False
        self.stopped: tuple[float, int] | None = None  # since when, by which signal

    def tell(self, kind: int, payload: bytes = b"") -> None:
        with contextlib.suppress(OSError):  # an end that is already under way shows when reading
            protocol.send(self.link, kind, payload)


class Attempt:
    """Runs the plan once.

    Parameters
    ----------
    plan : Plan
    environ : mapping of str to str
    number : int
        How many attempts came before.
    console : Console
    pending_signals : callable
        Returns and forgets the signals that this process got.
    wakeup : int
        A descriptor that becomes readable when there is one.
    deadline : float or None
        On the monotonic clock: when the ranks are asked to end.
    patience : int
        Seconds after which a host that does not answer counts as lost, and a suspended rank as failed.
    """

    def __init__(
        self,
        plan: Plan,
        environ: Mapping[str, str],
        number: int,
        console: Console,
        pending_signals: Callable[[], list[int]],
        wakeup: int,
        deadline: float | None,
        patience: int,
    ) -> None:
        self._plan, self._environ, self._number, self._console = plan, environ, number, console
        self._pending_signals, self._wakeup, self._deadline = pending_signals, wakeup, deadline
        self._patience = patience
        self._token = secrets.token_hex(16)
        self._selector = selectors.DefaultSelector()
        self._peers: dict[int, _Peer] = {}
        self._failure: Failure | None = None
        self._unheard: set[int] = set()  # who may know of a failure before that one
        self._hear_until = 0.0
        self._all_heard = False
        self._asked: set[int] = set()
        self._timed_out = False
        self._wants_stacks = self._kills_next = False
        self._stacks: dict[int, dict[str, Any] | None] = {}  # of those that are asked; None before they answer
        self._kill_at: float | None = None
        self._killed_at: float | None = None
        self._all_ended_at: float | None = None
        self._launcher_ended = False
        self._launcher_lines: list[bytes] = []

    def run(self) -> Outcome:
        """Start all ranks and serve them until they have ended; leaves no process behind."""
        self._server = self._listen()
        self._selector.register(self._server, selectors.EVENT_READ, self._accept)
        self._selector.register(self._wakeup, selectors.EVENT_READ, self._drain_wakeup)
        self._began, self._began_at = time.monotonic(), time.time()
        self._process = self._start()
        if self._process.stdout is not None:
            os.set_blocking(self._process.stdout.fileno(), False)
            self._selector.register(self._process.stdout, selectors.EVENT_READ, self._read_launcher)
        try:
            now, idle = self._began, False
            while not self._is_over(now, idle):
                # However long this process is held up, nobody is late whose message came in time: what had come by
                # then has been read when limits are looked at.
                now = time.monotonic()
                ready = self._selector.select(_TICK)
                for key, _ in ready:
                    key.data(key.fileobj)
                idle = not ready
                self._pass_on_signals()
                self._look_at_the_clock(now)
                self._console.flush()
        finally:
            self._clean_up()
        self._show_stacks()
        return Outcome(self._code(), self._failure, frozenset(self._asked), self._timed_out)

    # Starting

    def _listen(self) -> socket.socket:
        if self._plan.one_host:
            return socket.create_server(("127.0.0.1", 0), backlog=4096)
        if socket.has_dualstack_ipv6():
            return socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True, backlog=4096)
        return socket.create_server(("", 0), backlog=4096)

    def _start(self) -> subprocess.Popen[bytes]:
        # One process alone keeps the terminal, with its colours and progress bars.
        inherits = not self._plan.command and sys.stdout.isatty() and not self._console.has_files
        exported = ["-x", protocol.TOKEN, "-x", "DISTTENSOR_RESTART_COUNT"] if self._plan.exported else []
        addresses = ["127.0.0.1"] if self._plan.one_host else _own_addresses([host.name for host in self._plan.hosts])
        wrapper = [self._plan.program[0], "-I", "-S", protocol.__file__, ",".join(addresses)]
        wrapper += [str(self._server.getsockname()[1]), str(self._patience), "inherited" if inherits else "captured"]
        wrapper += [str(self._plan.bound), *self._plan.program]
        variables = {protocol.TOKEN: self._token, "DISTTENSOR_RESTART_COUNT": str(self._number)}
        parent = os.getpid()
        captured = subprocess.PIPE if self._plan.command else None
        try:
            return subprocess.Popen(
                [*self._plan.full_command, *exported, *wrapper],
                env={**self._environ, **self._plan.variables, **variables},
                stdin=subprocess.DEVNULL if sys.stdin is None or sys.stdin.isatty() else None,
                stdout=captured,
                stderr=subprocess.STDOUT if captured else None,
                process_group=0,  # Ctrl-C comes to this process alone, which passes it on
                preexec_fn=lambda: protocol.end_with_parent(signal.SIGTERM, parent),
            )
        except OSError as error:
            name = (self._plan.command or self._plan.program)[0]
            raise LaunchError(f"cannot start {name}: {error.strerror}.") from None

    # What comes in

    def _accept(self, _: Any) -> None:
        link, _address = self._server.accept()
        protocol.notice_dead_peers(link, self._patience)
        link.settimeout(self._patience)
        peer = _Peer(link)
        peer.tell(NONCE, peer.nonce)
        self._selector.register(link, selectors.EVENT_READ, lambda _: self._read(peer))

    def _read(self, peer: _Peer) -> None:
        silent = False
        try:
            data = peer.link.recv(1 << 16)
            frames = list(peer.frames.feed(data))
        except (OSError, ValueError) as error:
            data, frames = b"", []
            silent = isinstance(error, OSError) and error.errno in _NO_ANSWER
        for kind, payload in frames:
            if peer.rank is None:
                if not self._welcome(peer, kind, payload):
                    data = b""
                    break
            elif kind in (OUT, ERR):
                self._console.output(peer.rank, 1 if kind == OUT else 2, payload)
            elif kind == REPORT:
                with contextlib.suppress(ValueError, KeyError, TypeError):
                    said = json.loads(payload)
                    evidence = Evidence.AFTERMATH if said["aftermath"] else Evidence.CAUSE
                    self._fail(peer, evidence, code=int(said["code"]))
                    peer.reported = True
            elif kind == ENDED:
                said = json.loads(payload)
                if (said["code"] or said["signal"]) and not peer.reported:
                    self._fail(peer, evidence_of_end(said["signal"], said["told"]), said["code"], said["signal"])
            elif kind == HEARD:
                self._unheard.discard(peer.rank)
            elif kind == STOPPED:
                number = int(json.loads(payload))
                peer.stopped = (time.monotonic(), number) if number else None
            elif kind == STACKS:
                self._stacks[peer.rank] = json.loads(payload)
                if self._kills_next and all(
                    said is not None or self._peers[rank].ended for rank, said in self._stacks.items()
                ):
                    self._kill_at = time.monotonic()
            elif kind == EXIT:
                peer.ended = True
                self._unheard.discard(peer.rank)
        if not data:
            self._hang_up(peer, silent)

    def _welcome(self, peer: _Peer, kind: int, payload: bytes) -> bool:
        """Whether this is a rank of ours; a stranger is ignored."""
        try:
            said = json.loads(payload) if kind == HELLO else {}
            if not secrets.compare_digest(said["proof"], protocol.proof(self._token, peer.nonce)):
                return False
            rank, peer.host = int(said["rank"]), str(said["host"])
        except (ValueError, KeyError, TypeError, RecursionError):
            return False
        if rank in self._peers:
            self._console.say(
                f"two processes say that they are rank {rank}: what starts them and how they number themselves do not "
                "belong together. Look at `disttensor doctor`."
            )
            self._kill_at = time.monotonic()
            return False
        peer.rank = rank
        self._peers[rank] = peer
        self._console.begin(rank, peer.host, self._number)
        if self._all_heard:
            peer.tell(LEAVE)
        if self._killed_at is not None:
            peer.tell(KILL)
        for number in sorted(self._asked):  # what came before this rank was there
            peer.tell(SIGNAL, json.dumps(number).encode())
        return True

    def _hang_up(self, peer: _Peer, silent: bool) -> None:
        with contextlib.suppress(KeyError):
            self._selector.unregister(peer.link)
        peer.link.close()
        if peer.rank is not None and not peer.ended:
            peer.ended = True
            if silent:
                self._fail(peer, Evidence.CAUSE)
            elif self._failure is None:  # else mpirun has ended it
                self._fail(peer, Evidence.VANISHED)
            self._unheard.discard(peer.rank)

    def _fail(self, peer: _Peer, evidence: Evidence, code: int = 0, number: int = 0, stopped: int = 0) -> None:
        """Note a failure, unless it is less the cause of the end than what is known: see `launch.failure`.

        The others get `_GRACE` seconds to report one that is more so; a parent of a rank that has not yet answered by
        then, because its host is busy, is waited for a little longer. Whose program still ran when it answered fails
        in consequence.
        """
        if self._killed_at is not None:  # our own doing
            return
        if self._asked:  # ranks end as they should: the first counts
            evidence = Evidence.CAUSE
        assert peer.rank is not None
        now = time.monotonic()
        failure = Failure(peer.rank, peer.host, code, number, now - self._began, stopped, evidence)
        if self._failure is None:
            self._unheard = {rank for rank, other in self._peers.items() if not other.ended}
            self._hear_until = now + _HEARING
            self._tell_all(ASK)
        elif peer.rank not in self._unheard or not failure.outranks(self._failure):
            return
        self._failure = failure
        expected = code in (REQUEUE, INTERRUPTED) or bool(self._asked)
        # Ranks that should have ended, or gone on, show where they are.
        self._wants_stacks |= expected or stopped > 0
        grace = _VANISHED if evidence is Evidence.VANISHED else _GRACE
        self._kill_at = now + (_FINISHING if expected else grace)

    def _read_launcher(self, _: Any) -> None:
        assert self._process.stdout is not None
        data = os.read(self._process.stdout.fileno(), 1 << 16)
        if not data:
            self._selector.unregister(self._process.stdout)
            return
        self._console.note(data)
        self._launcher_lines = [*self._launcher_lines, *data.splitlines()][-40:]

    def _drain_wakeup(self, _: Any) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._wakeup, 4096)

    # What goes out

    def _pass_on_signals(self) -> None:
        for number in self._pending_signals():
            if number == signal.SIGINT and number in self._asked:
                self._console.say("interrupted again: all ranks are ended at once.")
                self._wants_stacks = False
                self._unheard.clear()
                self._kill_at = time.monotonic()
            elif number == signal.SIGINT:
                self._console.say("interrupted: the ranks are told to finish; press Ctrl-C again to end them at once.")
            self._asked.add(number)
            self._tell_all(SIGNAL, json.dumps(number).encode())

    def _tell_all(self, kind: int, payload: bytes = b"") -> None:
        for peer in self._peers.values():
            if not peer.ended:
                peer.tell(kind, payload)

    def _look_at_the_clock(self, now: float) -> None:
        for peer in self._peers.values():
            if peer.stopped is not None and now - peer.stopped[0] > self._patience and not peer.ended:
                self._fail(peer, Evidence.CAUSE, number=peer.stopped[1], stopped=self._patience)
        if self._deadline is not None and now > self._deadline and not self._timed_out:
            self._timed_out = self._wants_stacks = True
            self._console.say("--timeout is over: the ranks are told to finish (SIGTERM), and ended after 30 s.")
            self._ask_for_stacks()  # first, for many a program ends by the signal at once
            self._tell_all(SIGNAL, json.dumps(int(signal.SIGTERM)).encode())
            self._kill_at = now + 30
        if len(self._peers) < self._plan.n and now - self._began > _START and self._killed_at is None:
            missing = sorted(set(range(self._plan.n)) - set(self._peers))
            self._console.say(f"ranks {missing} did not start within {_START:.0f} s.")
            self._kill_at = now
        heard = not self._unheard or now >= self._hear_until
        if heard and self._failure is not None and not self._all_heard:
            self._all_heard = True
            for peer in self._peers.values():  # also those that have said that all is over, and wait for this
                peer.tell(LEAVE)
        if self._kill_at is not None and now >= self._kill_at and heard and self._killed_at is None:
            if self._wants_stacks:
                self._wants_stacks, self._kills_next, self._kill_at = False, True, now + _ANSWERING
                self._ask_for_stacks()
            else:
                self._killed_at = now
                self._tell_all(KILL)

    def _ask_for_stacks(self) -> None:
        self._stacks |= {rank: None for rank, peer in sorted(self._peers.items()) if not peer.ended}
        self._tell_all(STACKS)

    # The end

    def _is_over(self, now: float, idle: bool) -> bool:
        launcher_ended = self._launcher_ended and idle  # what it and the ranks wrote before has been read
        self._launcher_ended = self._process.poll() is not None
        alive = any(not peer.ended for peer in self._peers.values())
        if launcher_ended and not alive:
            return True
        if not alive and len(self._peers) == self._plan.n:
            self._all_ended_at = self._all_ended_at or now
        if self._all_ended_at is not None and now - self._all_ended_at > _MPIRUN:
            return True
        if self._killed_at is None and launcher_ended and self._kill_at is None:
            self._kill_at = now + _GRACE  # mpirun is gone, and ranks which it started are not
        return self._killed_at is not None and now - self._killed_at > (_MPIRUN if alive else 1.0)

    def _clean_up(self) -> None:
        """End whatever is left; the ranks' own parents do so elsewhere when their connection closes."""
        for number, patience in ((signal.SIGTERM, 2.0), (signal.SIGKILL, _UNTIL_KILLED)):
            if self._process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self._process.pid, number)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._process.wait(patience)
        for key in list(self._selector.get_map().values()):
            if key.fileobj is not self._wakeup:
                self._selector.unregister(key.fileobj)
                if isinstance(key.fileobj, socket.socket):
                    key.fileobj.close()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._selector.close()
        limit = time.monotonic() + _GRACE
        while protocol.descendants(os.getpid()) and time.monotonic() < limit:  # they see that the connection closed
            time.sleep(0.01)
        protocol.kill_descendants(os.getpid())
        if self._failure is not None or self._killed_at is not None:
            protocol.remove_dead_segments(self._began_at, time.time() - _TICK)
        self._console.flush(0)

    def _show_stacks(self) -> None:
        stacks = {rank: said["stacks"] for rank, said in self._stacks.items() if said}
        ended_as_told = self._failure is None or self._failure.code in (REQUEUE, INTERRUPTED)
        if not stacks or (ended_as_told and self._killed_at is None):  # none of disttensor, or none in trouble
            return
        lines = ["Ranks that were ended:"]
        for rank, said in self._stacks.items():
            what = "did not answer" if said is None else said.get("state", "not a rank of disttensor yet") or "running"
            lines.append(f"rank {rank} (host {self._peers[rank].host}): {what}.")
        self._console.say("\n".join([*lines, *show(stacks)]))

    def _code(self) -> int:
        if self._failure is not None:
            return self._failure.exit_code
        code = self._process.returncode
        if code:
            text = b"\n".join(self._launcher_lines).decode(errors="replace")
            self._console.say(f"{(self._plan.command or self._plan.program)[0]} failed (exit code {code}).\n{text}")
        return 128 - code if code < 0 else code


def _own_addresses(hosts: list[str]) -> list[str]:
    """Where other hosts may find this one, most likely first."""
    found = []
    for host in [*hosts, "192.0.2.1"]:  # the last one stands for anywhere
        with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((host, 9))  # sends nothing; chooses the interface
            found.append(probe.getsockname()[0])
    return list(dict.fromkeys([*(a for a in found if not a.startswith("127.")), socket.gethostname(), "127.0.0.1"]))
