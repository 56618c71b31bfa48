"""Python stacks of a process without its help: how a rank is asked for them, by whom it may be, and how they are shown.

A rank of disttensor has two files in memory, which others of its host open through /proc: its *status*, JSON that a
thread of it writes once a second, and its *stacks*, to which `faulthandler` adds that of the thread that gets a signal.
So stacks come even from a rank that holds Python's lock for ever. Each thread is asked by itself and writes its own
stack: to walk those of threads that run meanwhile, as ``all_threads=True`` does, ends in a segmentation fault now and
then. The ranks' watchdog asks (`disttensor.distributed`), and so does ``disttensor-run``, through `launch.rank`, which
runs this file by its path: it imports the standard library alone.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import json
import linecache
import os
import platform
import re
import signal
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

STATUS, STACKS = "disttensor-status", "disttensor-stacks"
_WRITING = 3.0  # seconds that a rank gets to write its stacks
_SETTLED = 0.1  # seconds without growth after which one is complete
_OURS = ("disttensor-helper", "disttensor-watchdog", "disttensor-departures")
_FRAME = re.compile(r'^  File "(.*)", line (\d+) in (.*)$')
_STATES = {"T": "suspended by a signal", "t": "held by a debugger", "Z": "dead", "X": "dead"}
_MOST_FRAMES, _MOST_THREADS = 40, 20
# The number of the system call tgkill, which glibc has a function for since 2.30 only.
_TGKILL = {"x86_64": 234, "aarch64": 131, "riscv64": 131, "ppc64le": 250, "s390x": 241}


def signal_number() -> int:
    """The signal by which stacks are asked for; it ends a process that does not expect it."""
    return signal.SIGRTMIN + 12


def trouble(process: int) -> str:
    """What keeps a process from answering, as far as the system knows; empty if nothing does."""
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "dead"
    return _STATES.get(state, "")


def read_status(file: Path) -> dict[str, Any]:
    """The status of a rank of this host, perhaps a second old; empty if it cannot be read."""
    for _ in range(20):
        try:
            found = json.loads(file.read_bytes())
        except OSError:
            return {}
        except ValueError:  # it is just being written
            time.sleep(0.005)
        else:
            return dict(found)
    return {}


def answer() -> int:
    """Let each thread of this process write its stack when asked; returns the descriptor of the file in memory."""
    file = os.memfd_create(STACKS)
    faulthandler.register(signal_number(), file=file, all_threads=False, chain=False)
    return file


def ask(files: Mapping[int, Path], threads: Mapping[int, Mapping[str, str]], seconds: float) -> dict[int, list[Any]]:
    """The stacks of processes of this host.

    Parameters
    ----------
    files : mapping of int to Path
        The file of each process. One that is suspended, or would be ended by the signal, is not asked.
    threads : mapping of int to mapping of str to str
        The names of its Python threads by their numbers in the system, where they are known; the main thread always is.
        Our own are not asked.
    seconds : float
        How long to wait for all together.

    Returns
    -------
    dict of int to list of [str, list of str]
        Of each process that answered, the name and the stack (see `parse`) of each thread, the main thread's last.
    """
    limit = time.monotonic() + seconds
    waiting = {
        process: _to_be_asked(process, threads.get(process, {}))
        for process in files
        if not trouble(process) and _expects_signal(process)
    }
    found: dict[int, list[Any]] = {}
    while waiting and time.monotonic() < limit:
        asked = {process: numbers.pop() for process, numbers in waiting.items()}
        # Half of the time that is left, for others have more threads; a process that is silent is not asked again, lest
        # what it says late be taken for another thread's.
        texts = _ask_threads(asked, files, (time.monotonic() + limit) / 2)
        for process, text in texts.items():
            number = asked[process]
            name = threads.get(process, {}).get(str(number), "MainThread" if number == process else f"thread {number}")
            found.setdefault(process, []).insert(0, [name, parse(text)])
        waiting = {process: numbers for process, numbers in waiting.items() if numbers and texts.get(process)}
    return found


def _to_be_asked(process: int, names: Mapping[str, str]) -> list[int]:
    """Numbers of threads, the first to be asked last: the main thread."""
    others = {int(number) for number, name in names.items() if not name.startswith(_OURS)} - {process}
    return [*sorted(others, reverse=True)[1 - _MOST_THREADS :], process]


def _ask_threads(asked: Mapping[int, int], files: Mapping[int, Path], limit: float) -> dict[int, str]:
    """What a thread of each process adds to its file; without those who add nothing."""
    starts: dict[int, int] = {}
    for process, number in asked.items():
        with contextlib.suppress(OSError):
            starts[process] = files[process].stat().st_size
            _signal_thread(process, number)
    sizes, grew = dict(starts), time.monotonic()
    while (now := time.monotonic()) < limit:
        for process in starts:
            with contextlib.suppress(OSError):
                size = files[process].stat().st_size
                if size != sizes[process]:
                    sizes[process], grew = size, now
        if now - grew > _SETTLED and all(sizes[process] > starts[process] for process in starts):
            break
        time.sleep(0.02)
    texts = {}
    for process, start in starts.items():
        with contextlib.suppress(OSError):
            if text := files[process].read_bytes()[start:].decode(errors="replace"):
                texts[process] = text
    return texts


def _signal_thread(process: int, thread: int) -> None:
    number = _TGKILL.get(platform.machine())
    if number is not None:
        ctypes.CDLL(None).syscall(number, process, thread, signal_number())  # a thread that has ended does not mind
    elif thread == process:
        os.kill(process, signal_number())  # the system prefers the main thread


def _expects_signal(process: int) -> bool:
    found = re.search(r"^SigCgt:\s*(\w+)", Path(f"/proc/{process}/status").read_text(), re.MULTILINE)
    return found is not None and bool(int(found[1], 16) >> (signal_number() - 1) & 1)


def of_first_rank(processes: Iterable[int]) -> dict[str, Any]:
    """The stacks of the first of these processes that is a rank of disttensor, in terms of what JSON knows.

    Returns
    -------
    dict
        "state", what is wrong with it and what it does, in words; "stacks" as from `ask`. Empty if there is none.
    """
    for process in processes:
        files = _files_in_memory(process)
        if STACKS in files:
            status = read_status(files[STATUS]) if STATUS in files else {}
            found = ask({process: files[STACKS]}, {process: status.get("threads", {})}, _WRITING)
            stacks = found.get(process, [])
            problem = trouble(process) or ("" if stacks else "not answering a signal")
            return {"state": "; ".join(filter(None, [problem, status.get("doing")])), "stacks": stacks}
    return {}


def _files_in_memory(process: int) -> dict[str, Path]:
    found = {}
    with contextlib.suppress(OSError):
        for file in Path(f"/proc/{process}/fd").iterdir():
            with contextlib.suppress(OSError):
                name = os.readlink(file)
                if name.startswith("/memfd:"):
                    found[name.removeprefix("/memfd:").removesuffix(" (deleted)")] = file
    return found


def parse(text: str) -> list[str]:
    """The stack that faulthandler wrote, as Python shows it, the most recent call last.

    Examples
    --------
    >>> parse('Stack (most recent call first):\\n  File "x.py", line 3 in f\\n  File "x.py", line 9 in <module>\\n')
    ['File "x.py", line 9, in <module>', 'File "x.py", line 3, in f']
    """
    frames: list[str] = []
    for line in text.splitlines():
        if (found := _FRAME.match(line)) and len(frames) < _MOST_FRAMES:
            source = linecache.getline(found[1], int(found[2])).strip()
            shown = f'File "{found[1]}", line {found[2]}, in {found[3]}'
            frames.insert(0, f"{shown}\n  {source}" if source else shown)
    return frames


def show(stacks: Mapping[int, list[Any]]) -> list[str]:
    """Lines for people, of the stacks of each rank as from `ask`; those that are equal once."""
    ranks: dict[str, list[int]] = {}
    for rank, threads in stacks.items():
        if threads:
            ranks.setdefault("\n".join(_lines(threads)), []).append(rank)
    lines = []
    for text, those in ranks.items():
        whose = f"{'rank' if len(those) == 1 else 'ranks'} {list_ranks(those)}"
        lines += [f"Stacks of {whose}, most recent call last:", *text.splitlines()]
    return lines


def _lines(threads: list[Any]) -> Iterable[str]:
    for name, frames in threads:
        yield f"  {name}:"
        for frame in frames:
            yield from (f"    {line}" for line in frame.splitlines())


def list_ranks(ranks: Iterable[int]) -> str:
    """Numbers for people: runs of three and more as a range."""
    parts: list[list[int]] = []
    for rank in sorted(ranks):
        if parts and rank == parts[-1][-1] + 1:
            parts[-1].append(rank)
        else:
            parts.append([rank])
    return ", ".join(f"{run[0]} to {run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in parts)
