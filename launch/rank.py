"""What the launcher starts in the place of each rank: it runs the program as its child and answers to the supervisor.

mpirun and srun say at best that "a process" failed, and know nothing of ranks that wait for a lost one. So every rank
has a parent on its own host, with a connection to ``disttensor-run``. It passes on what the program prints, line by
line and unbuffered, reports its exit code or signal, forwards the supervisor's signals, and ends the program with all
that it started when the supervisor says so, or is gone. The kernel ends the program if this process is killed. When
the program has failed, this process stays until the supervisor has heard all ranks: at its end mpirun kills the others,
and with them the parent which would say that its rank failed before.

This file runs by its path under ``python -I -S`` (milliseconds to start, deaf to the program's variables), so it stands
alone, but for stacks.py beside it; `launch.attempt` imports the protocol from here. A message is a kind (1 byte), a
length (4 bytes), and a payload:

* supervisor: `NONCE` (bytes), then `SIGNAL` (JSON number), `ASK`, `LEAVE` (all have been heard), `STACKS`, `KILL`;
* rank: `HELLO` (JSON: who it is, and the nonce hashed with the token), `OUT`, `ERR` (bytes), `REPORT` (JSON: with which
  code the program is about to end the job, and whether this is the aftermath of a lost rank), `STOPPED` (JSON: the
  signal that suspended the program, 0 when it goes on), `ENDED` (JSON: code, signal, and whether mpirun or srun had
  told it to), `HEARD` (to `ASK`: the program's end has been said, or it runs, so that no other has failed for want of
  it), `STACKS` (JSON: see `stacks.of_first_rank`), `EXIT` (all that the program started has ended too, and its output
  has been passed on).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import hashlib
import json
import os
import resource
import selectors
import signal
import socket
import struct
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

NONCE, HELLO, OUT, ERR, REPORT, STOPPED, ENDED, HEARD, EXIT, SIGNAL, ASK, LEAVE, STACKS, KILL = range(14)
TOKEN = "DISTTENSOR_SUPERVISOR_TOKEN"
REPORT_FD = "DISTTENSOR_REPORT_FD"
_HEADER = struct.Struct("!BI")
_LARGEST = 1 << 20  # no message is longer
_EXITING = 0x4  # PF_EXITING among the flags in /proc/PID/stat
_SET_PDEATHSIG, _SET_CHILD_SUBREAPER = 1, 36  # prctl(2)
_PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP)
_SETTLED = 60.0  # seconds after which a job has started, and all its processes have its shared memory
_LEFTOVERS = 1.0  # seconds that processes which the program left behind may go on printing


class Frames:
    """Takes bytes as they arrive, gives complete messages."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        """The messages that these bytes complete, as (kind, payload); ValueError if they are none."""
        self._rest += data
        while len(self._rest) >= _HEADER.size:
            kind, length = _HEADER.unpack_from(self._rest)
            if kind > KILL or length > _LARGEST:
                raise ValueError("not a message of disttensor-run")
            end = _HEADER.size + length
            if len(self._rest) < end:
                return
            payload, self._rest = self._rest[_HEADER.size : end], self._rest[end:]
            yield kind, payload


def send(link: socket.socket, kind: int, payload: bytes = b"") -> None:
    """Send one message; waits while the peer is busy."""
    link.sendall(_HEADER.pack(kind, len(payload)) + payload)


def proof(token: str, nonce: bytes) -> str:
    """Shows that one knows the token, without saying it."""
    return hashlib.blake2b(nonce, key=token.encode()).hexdigest()


def notice_dead_peers(link: socket.socket, seconds: int) -> None:
    """Let the kernel break the connection after this long without an answer from the other host."""
    link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    pause = max(seconds // 4, 1)
    for option, value in (("TCP_KEEPIDLE", pause), ("TCP_KEEPINTVL", pause), ("TCP_KEEPCNT", 3)):
        link.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, seconds * 1000)
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def end_with_parent(number: int, parent: int) -> None:
    """Ask the kernel to send this process a signal when its parent ends; called in a new child."""
    _prctl(_SET_PDEATHSIG, number)
    if os.getppid() != parent:  # it has ended already
        os._exit(1)


def adopt_descendants() -> None:
    """Become the parent of descendants whose own parents end, so that `descendants` finds them."""
    _prctl(_SET_CHILD_SUBREAPER, 1)


def _prctl(option: int, value: int) -> None:
    if hasattr(signal, "pidfd_send_signal"):  # Linux
        ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


def descendants(ancestor: int) -> list[int]:
    """All living processes below this one."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        with contextlib.suppress(OSError, ValueError):  # it ended meanwhile
            if name.isdigit():
                with open(f"/proc/{name}/stat", "rb") as file:
                    state, parent = file.read().rpartition(b")")[2].split()[:2]
                if state not in (b"Z", b"X"):
                    children.setdefault(int(parent), []).append(int(name))
    found, new = [], children.get(ancestor, [])
    while new:
        found += new
        new = [child for process in new for child in children.get(process, [])]
    return found


def is_ending(process: int) -> bool:
    """Whether a child that has not been waited for is on its way out, which closes its connections before it is dead.

    On a busy host that takes long enough for others to notice, to fail for it, and to be reported first.
    """
    with open(f"/proc/{process}/stat", "rb") as file:
        state, *numbers = file.read().rpartition(b")")[2].split()
    return state == b"Z" or bool(int(numbers[5]) & _EXITING)


def kill_descendants(ancestor: int) -> None:
    """Kill all processes below this one, and those which they start meanwhile."""
    for _ in range(20):
        living = descendants(ancestor)
        if not living:
            return
        for process in living:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(process, signal.SIGKILL)
        time.sleep(0.01)


def remove_dead_segments(since: float, until: float) -> None:
    """Remove what killed MPI processes left in /dev/shm: it fills up, and MPICH takes the names of a Slurm step again.

    Of those that this user's processes made between two times (`time.time`), those go which no process has in its
    memory. Who makes one has it in memory from that moment on, so that of a job which is only starting stays.
    """
    found = set()
    with contextlib.suppress(OSError):
        for entry in os.scandir("/dev/shm"):
            if entry.name.startswith(("mpich_shm_", "sm_segment.")):
                about = entry.stat(follow_symlinks=False)
                if about.st_uid == os.geteuid() and since <= about.st_mtime <= until:
                    found.add(entry.path)
    for name in os.listdir("/proc") if found else ():
        with contextlib.suppress(OSError), open(f"/proc/{name}/maps") as file:  # OSError: no process, or not ours
            found -= {line[line.find("/") :].rstrip() for line in file if "/dev/shm/" in line}
    for path in found:
        with contextlib.suppress(OSError):
            os.unlink(path)


def place(environ: Mapping[str, str]) -> tuple[int, int, int]:
    """The rank, its number on this host, and how many there are on this host, from what the launcher has set."""
    for rank, local_rank, local_size in (
        ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"),
        ("PMI_RANK", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
        ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NTASKS_PER_NODE"),
    ):
        if rank in environ and (rank != "SLURM_PROCID" or "SLURM_STEP_ID" in environ):
            return int(environ[rank]), int(environ.get(local_rank, "0")), int(environ.get(local_size, "1"))
    return 0, 0, 1


def own_cores(local_rank: int, threads: int) -> list[int]:
    """The cores of one rank, if each rank of a host has as many as threads; neighbours in the machine's order."""
    cores = sorted(os.sched_getaffinity(0), key=_position)
    first = local_rank * threads
    return [cores[i % len(cores)] for i in range(first, first + min(threads, len(cores)))]


def _position(core: int) -> tuple[int, int, int]:
    """Socket, physical core, number: hyperthreads of one core are neighbours, and so are cores of one socket."""
    numbers = []
    for name in ("physical_package_id", "core_id"):
        try:
            with open(f"/sys/devices/system/cpu/cpu{core}/topology/{name}") as file:
                numbers.append(int(file.read()))
        except (OSError, ValueError):
            numbers.append(0)
    return numbers[0], numbers[1], core


class _Program:
    """The program as a child of this process, and the connection to the supervisor."""

    def __init__(self, link: socket.socket, command: list[str], captured: bool) -> None:
        self._link = link
        self._frames = Frames()
        self._selector = selectors.DefaultSelector()
        self._pipes: dict[int, int] = {}  # what is read from it: the kind of message that it becomes
        wake, waker = os.pipe()
        for end in (wake, waker):
            os.set_blocking(end, False)
        self._told = self._asked = self._may_leave = False
        # Signals for the whole group reach the program directly; this process outlives them to report the end.
        for number in (*_PASSED_ON, signal.SIGCHLD):
            signal.signal(number, self._note_signal)
        signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
        self._status: int | None = None
        self._child = self._start(command, captured)
        self._selector.register(link, selectors.EVENT_READ)
        self._selector.register(wake, selectors.EVENT_READ)
        for pipe in self._pipes:
            self._selector.register(pipe, selectors.EVENT_READ)
        self._wake = wake

    def _note_signal(self, number: int, frame: Any) -> None:
        self._told |= number == signal.SIGTERM  # the supervisor sends its own to the program alone

    def _start(self, command: list[str], captured: bool) -> int:
        kinds = {REPORT: -1} | ({OUT: 1, ERR: 2} if captured else {})
        pipes = {kind: os.pipe() for kind in kinds}
        parent = os.getpid()
        # One that comes before the child has its own handlers must wait for these, or nobody would notice it.
        signal.pthread_sigmask(signal.SIG_BLOCK, _PASSED_ON)
        child = os.fork()
        if child == 0:
            try:
                end_with_parent(signal.SIGKILL, parent)
                signal.set_wakeup_fd(-1)
                for number in range(1, signal.NSIG):
                    with contextlib.suppress(OSError, ValueError):
                        signal.signal(number, signal.SIG_DFL)
                signal.pthread_sigmask(signal.SIG_UNBLOCK, _PASSED_ON)
                for kind, target in kinds.items():
                    if target >= 0:
                        os.dup2(pipes[kind][1], target)
                os.set_inheritable(pipes[REPORT][1], True)
                os.environ[REPORT_FD] = str(pipes[REPORT][1])
                os.execvp(command[0], command)
            except OSError as error:
                os.write(2, f"cannot start {command[0]}: {error.strerror}\n".encode())
            finally:
                os._exit(127)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _PASSED_ON)
        for kind, (read, write) in pipes.items():
            os.close(write)
            self._pipes[read] = kind
        # PMI_FD stays open here too: mpirun kills all ranks when the last copy closes, which must not be before the
        # program's end has been reported.
        return child

    def run(self) -> int:
        """Serve until the program has ended; its wait status."""
        ended = 0.0
        while self._status is None or self._pipes:
            for key, _ in self._selector.select(None if self._status is None else 0.05):
                if key.fileobj is self._link:
                    self._obey()
                elif key.fd == self._wake:
                    with contextlib.suppress(BlockingIOError):
                        os.read(self._wake, 4096)
                else:
                    self._forward(key.fd)
            self._reap()
            if self._asked and (self._status is not None or not is_ending(self._child)):
                self._asked = False  # what the program reported and how it ended, if it did, was said above
                self._say(HEARD)
            if self._status is not None:
                ended = ended or time.monotonic()
                if time.monotonic() - ended > _LEFTOVERS:
                    break
        kill_descendants(os.getpid())
        assert self._status is not None
        self._say(EXIT)
        while self._status and not self._may_leave:
            self._obey()
        return os.waitstatus_to_exitcode(self._status)

    def _say(self, kind: int, payload: bytes = b"") -> None:
        with contextlib.suppress(OSError):  # a lost supervisor shows when reading
            send(self._link, kind, payload)

    def _obey(self) -> None:
        try:
            data = self._link.recv(4096)
        except OSError:
            data = b""
        if not data:  # the supervisor, or its host, is gone
            kill_descendants(os.getpid())
            os._exit(1)
        for kind, payload in self._frames.feed(data):
            self._may_leave |= kind in (LEAVE, KILL)
            if kind == KILL:
                kill_descendants(os.getpid())
            elif kind == ASK:
                self._asked = True
            elif kind == STACKS:
                self._send_stacks()
            elif kind == SIGNAL and self._status is None:
                os.kill(self._child, json.loads(payload))

    def _send_stacks(self) -> None:
        """Takes three seconds if the program does not answer, else a quarter of one."""
        import runpy  # milliseconds that most runs need not spend

        stacks = runpy.run_path(os.path.join(os.path.dirname(__file__), "stacks.py"))
        found = stacks["of_first_rank"]([self._child, *descendants(self._child)])
        answer = json.dumps(found).encode()
        self._say(STACKS, answer if len(answer) <= _LARGEST else b"{}")

    def _forward(self, pipe: int) -> None:
        data = os.read(pipe, 1 << 16)
        if not data:
            self._selector.unregister(pipe)
            os.close(pipe)
            del self._pipes[pipe]
            return
        try:
            send(self._link, self._pipes[pipe], data)
        except OSError:
            kill_descendants(os.getpid())
            os._exit(1)

    def _reap(self) -> None:
        with contextlib.suppress(ChildProcessError):
            while True:
                process, status = os.waitpid(-1, os.WNOHANG | os.WUNTRACED | os.WCONTINUED)
                if process == 0:
                    return
                if process != self._child:
                    continue
                if os.WIFSTOPPED(status) or os.WIFCONTINUED(status):
                    number = os.WSTOPSIG(status) if os.WIFSTOPPED(status) else 0
                    self._say(STOPPED, json.dumps(number).encode())
                else:
                    self._status = status
                    code = os.waitstatus_to_exitcode(status)
                    said = {"code": max(code, 0), "signal": max(-code, 0), "told": self._told}
                    self._say(ENDED, json.dumps(said).encode())


def _connect(addresses: list[str], port: int, token: str, who: dict[str, Any], patience: int) -> socket.socket:
    """A connection on which the supervisor has asked for the proof and got it."""
    problems = []
    for address in addresses:
        try:
            link = socket.create_connection((address, port), timeout=10)
            notice_dead_peers(link, patience)
            nonce = _nonce(link)
            send(link, HELLO, json.dumps(who | {"proof": proof(token, nonce)}).encode())
            link.settimeout(None)
            return link
        except (OSError, ValueError) as error:
            problems.append(f"{address}: {error}")
    sys.exit(
        f"rank {who['rank']} on {who['host']} cannot reach disttensor-run on port {port} ({'; '.join(problems)}). The "
        "hosts must be able to connect to the one on which disttensor-run was called; look at firewalls between them."
    )


def _nonce(link: socket.socket) -> bytes:
    frames = Frames()
    while data := link.recv(1):
        for kind, payload in frames.feed(data):
            if kind == NONCE:
                return payload
    raise OSError(errno.EPROTO, "the other side hung up")


def main(arguments: list[str]) -> int:
    """Run one rank: ``rank.py ADDRESS,… PORT PATIENCE captured|inherited THREADS-TO-BIND COMMAND…``."""
    addresses, port, patience, output, bound, *command = arguments
    token = os.environ.pop(TOKEN, "")
    rank, local_rank, local_size = place(os.environ)
    who = {"rank": rank, "local_size": local_size, "host": socket.gethostname(), "pid": os.getpid()}
    adopt_descendants()
    link = _connect(addresses.split(","), int(port), token, who, int(patience))
    fcntl.fcntl(link, fcntl.F_SETFD, fcntl.FD_CLOEXEC)
    if int(bound):
        os.sched_setaffinity(0, own_cores(local_rank, int(bound)))
    remove_dead_segments(0, time.time() - _SETTLED)
    code = _Program(link, command, captured=output == "captured").run()
    if code >= 0:
        return code
    # End as the program did, so that mpirun and srun see the same, but leave no second core file.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(-code, signal.SIG_DFL) if -code not in (signal.SIGKILL, signal.SIGSTOP) else None
    os.kill(os.getpid(), -code)
    return 128 - code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
