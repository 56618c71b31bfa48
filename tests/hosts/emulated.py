"""Emulated hosts: each has its own network, name, processes and /dev/shm, and lets one in by ssh without asking.

A host is a set of Linux namespaces held by its first process; cables run to a switch, another namespace. Nothing has a
name outside, and all of it is gone when those processes are. The disk is shared, as on a cluster.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from launch.rank import end_with_parent

ROOT = Path(__file__).parents[2]
TOOLS = ("ip", "tc", "sshd", "ssh", "ssh-keygen", "nsenter", "unshare")
_SECONDS = 120.0  # in which whatever is waited for must have come, however busy the machine is

SSHD = """\
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/id.pub
PidFile none
PermitRootLogin prohibit-password
PasswordAuthentication no
UsePAM no
StrictModes no
"""
SSH = """\
Host *
  IdentityFile {folder}/id
  StrictHostKeyChecking no
  UserKnownHostsFile /dev/null
  LogLevel ERROR
"""
# The first process of a host: sets it up, then does nothing but wait for processes that nobody else waits for.
INIT = """
set -e
hostname {name}
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs tmpfs /run
mkdir /run/sshd
mount --bind {folder}/hosts /etc/hosts
mount --bind {folder}/ssh_config /etc/ssh/ssh_config
[ ! -e ~/.bashrc ] || mount --bind /dev/null ~/.bashrc  # what users set up there may take a minute
ip link set lo up
while ! ip addr add {address}/24 dev eth0 2>/dev/null; do sleep 0.02; done
ip link set eth0 up
{sshd} -D -f {folder}/sshd_config -E {folder}/{name}.log &
touch {folder}/{name}.ready
set +e
while :; do wait; sleep 0.2; done
"""


class Host:
    """One of the hosts."""

    def __init__(self, name: str, address: str, folder: Path) -> None:
        self.name, self.address = name, address
        script = INIT.format(name=name, address=address, folder=folder, sshd=shutil.which("sshd"))
        self._holder, self.init = _hold(["--uts", "--mount", "--pid", "--mount-proc"], script)

    def run(self, *command: str, **options: object) -> subprocess.Popen[str]:
        """Start a command on this host."""
        enter = ["nsenter", f"--target={self.init}", "--net", "--uts", "--mount", "--pid", f"--wd={ROOT}"]
        return subprocess.Popen([*enter, *command], text=True, **options)  # type: ignore[call-overload, no-any-return]

    def processes(self, text: str) -> list[int]:
        """The processes on this host whose command line holds this text."""
        space = os.readlink(f"/proc/{self.init}/ns/net") if Path(f"/proc/{self.init}").exists() else ""
        found = []
        for folder in Path("/proc").iterdir():
            try:
                if not folder.name.isdigit() or os.readlink(folder / "ns" / "net") != space:
                    continue
                if text.encode() in (folder / "cmdline").read_bytes().replace(b"\0", b" "):
                    found.append(int(folder.name))
            except OSError:  # ended meanwhile
                continue
        return found

    def link(self, state: str) -> None:
        """Plug the cable ``up``, or pull it (``down``)."""
        subprocess.run(["nsenter", f"--target={self.init}", "--net", "ip", "link", "set", "eth0", state], check=True)

    def limit(self, rate: str, burst: str = "32kbit") -> None:
        """Let no more than this leave the host, such as ``10mbit``, beyond a burst."""
        shape = [
            "tc",
            "qdisc",
            "replace",
            "dev",
            "eth0",
            "root",
            "tbf",
            "rate",
            rate,
            "burst",
            burst,
            "latency",
            "400ms",
        ]
        subprocess.run(["nsenter", f"--target={self.init}", "--net", *shape], check=True)

    def end(self) -> None:
        """Switch the host off: all its processes are killed."""
        self._holder.kill()
        self._holder.wait()


def _hold(spaces: list[str], script: str) -> tuple[subprocess.Popen[bytes], int]:
    """Start a shell in namespaces of its own; it ends with this process, whatever happens to it."""
    parent = os.getpid()
    holder = subprocess.Popen(
        ["unshare", "--net", *spaces, "--fork", "--kill-child", "bash", "-c", script],
        stdin=subprocess.DEVNULL,
        preexec_fn=lambda: end_with_parent(signal.SIGKILL, parent),
    )
    children = Path(f"/proc/{holder.pid}/task/{holder.pid}/children")
    limit = time.monotonic() + _SECONDS
    while time.monotonic() < limit:
        if found := children.read_text().split():
            return holder, int(found[0])
        time.sleep(0.01)
    raise RuntimeError("unshare started nothing")


@contextlib.contextmanager
def emulated_hosts(folder: Path, count: int) -> Iterator[list[Host]]:
    """Hosts h1, h2, … on one switch, up and reachable by ssh; gone when the block ends.

    Parameters
    ----------
    folder : Path
        For keys and configurations.
    count : int
    """
    names = [f"h{i + 1}" for i in range(count)]
    addresses = [f"10.77.0.{i + 1}" for i in range(count)]
    for key in ("host_key", "id"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / key)], check=True)
    (folder / "sshd_config").write_text(SSHD.format(folder=folder))
    (folder / "ssh_config").write_text(SSH.format(folder=folder))
    lines = ["127.0.0.1 localhost", *(f"{address} {name}" for address, name in zip(addresses, names, strict=True))]
    (folder / "hosts").write_text("\n".join([*lines, ""]))
    switch, inside = _hold([], "ip link add br0 type bridge && ip link set br0 up && while :; do sleep 1; done")
    made: list[Host] = []
    try:
        for name, address in zip(names, addresses, strict=True):
            made.append(Host(name, address, folder))
            cable = [
                "ip",
                "link",
                "add",
                "eth0",
                "netns",
                str(made[-1].init),
                "type",
                "veth",
                "peer",
                "name",
                f"to-{name}",
            ]
            subprocess.run([*cable, "netns", str(inside)], check=True)
            for change in (["master", "br0"], ["up"]):
                plug = ["nsenter", f"--target={inside}", "--net", "ip", "link", "set", f"to-{name}", *change]
                _repeat(plug)
        limit = time.monotonic() + _SECONDS
        while not all((folder / f"{name}.ready").exists() for name in names):
            assert time.monotonic() < limit, "the hosts did not come up"
            time.sleep(0.05)
        for name in names:
            _repeat(["nsenter", f"--target={made[0].init}", "--net", "--uts", "--mount", "--pid", "ssh", name, "true"])
        yield made
    finally:
        for host in made:
            host.end()
        switch.kill()
        switch.wait()


def _repeat(command: list[str]) -> None:
    """Run it until it succeeds."""
    limit = time.monotonic() + _SECONDS
    while (done := subprocess.run(command, capture_output=True, text=True, check=False)).returncode:
        assert time.monotonic() < limit, f"{command}: {done.stderr}"
        time.sleep(0.05)
