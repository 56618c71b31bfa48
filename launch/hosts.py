"""Lists of hosts, from ``--hosts`` or a host file."""

from __future__ import annotations

import re
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from launch.errors import LaunchError

_NAME = r"(?P<name>[^\s:=]+)"
_COUNT = r"\s*:\s*(?P<count>\d+)|\s+slots\s*=\s*(?P<slots>\d+)(?:\s+max_slots\s*=\s*\d+)?"
_LINE = re.compile(f"{_NAME}(?:{_COUNT})?")


class Host(NamedTuple):
    """A host and how many ranks it takes; None where that was not said."""

    name: str
    ranks: int | None


def parse_hosts(text: str) -> list[Host]:
    """Read ``a:4,b:4`` or ``a,b``.

    Examples
    --------
    >>> parse_hosts("a:4,b:2")
    [Host(name='a', ranks=4), Host(name='b', ranks=2)]
    """
    return _checked([_parse(item.strip(), "--hosts") for item in text.split(",") if item.strip()], "--hosts")


def read_hostfile(path: str) -> list[Host]:
    """Read a host file of Open MPI (``a slots=4``) or of MPICH and Intel MPI (``a:4``); ``#`` starts a comment.

    Raises
    ------
    LaunchError
        If the file cannot be read, or a line is none of these.
    """
    try:
        lines = Path(path).read_text().splitlines()
    except OSError as error:
        raise LaunchError(f"cannot read the host file {path}: {error.strerror}.") from None
    stripped = ((number, line.split("#")[0].strip()) for number, line in enumerate(lines, 1))
    return _checked([_parse(line, f"{path}, line {number}") for number, line in stripped if line], path)


def spread(hosts: list[Host], n: int | None) -> tuple[int, list[Host]]:
    """The number of ranks, and the hosts with as many ranks as each shall take at most.

    Examples
    --------
    >>> spread([Host("a", None), Host("b", None)], 3)
    (3, [Host(name='a', ranks=2), Host(name='b', ranks=2)])
    """
    counts = [host.ranks for host in hosts if host.ranks is not None]
    if not counts:
        if n is None:
            raise LaunchError("say how many processes to start (-n 8), or how many on each host (--hosts a:4,b:4).")
        return n, [Host(host.name, -(-n // len(hosts))) for host in hosts]
    room = sum(counts)
    if n is not None and n > room:
        raise LaunchError(f"-n {n} is more than the {room} processes that the hosts take; raise the hosts' numbers.")
    return (n or room), hosts


def is_here(name: str) -> bool:
    """Whether a host is this machine."""
    own = socket.gethostname()
    return name in ("localhost", "127.0.0.1", own, own.split(".")[0])


def answering(names: Sequence[str], environ: Mapping[str, str], seconds: float = 30.0) -> list[str]:
    """Those hosts that ssh reaches without asking anything, all tried at once; this machine always answers.

    A host that is merely busy may need many seconds to let one in.

    Raises
    ------
    LaunchError
        If there is no ssh.
    """
    options = ["-o", "BatchMode=yes", "-o", f"ConnectTimeout={max(int(seconds) // 2, 1)}"]
    try:
        tries = {
            name: subprocess.Popen(
                ["ssh", *options, name, "true"],
                env=dict(environ),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            for name in dict.fromkeys(names)
            if not is_here(name)
        }
    except FileNotFoundError:
        raise LaunchError(
            "there is no ssh here, which starts the processes on other hosts; install it (Debian: apt-get install "
            "openssh-client)."
        ) from None
    limit = time.monotonic() + seconds
    for process in tries.values():
        try:
            process.wait(max(limit - time.monotonic(), 0.01))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    return [name for name in names if name not in tries or tries[name].returncode == 0]


def _parse(text: str, where: str) -> Host:
    match = _LINE.fullmatch(text)
    if match is None:
        raise LaunchError(f"{where}: {text!r} is no host; write `name`, `name:4` or `name slots=4`.")
    count = match["count"] or match["slots"]
    return Host(match["name"], int(count) if count else None)


def _checked(hosts: list[Host], where: str) -> list[Host]:
    if not hosts:
        raise LaunchError(f"{where} names no host.")
    if len({host.ranks is None for host in hosts}) == 2:
        raise LaunchError(f"{where}: give the number of processes for every host, or for none.")
    if any(host.ranks == 0 for host in hosts):
        raise LaunchError(f"{where}: a host that takes 0 processes; leave it out.")
    return hosts
