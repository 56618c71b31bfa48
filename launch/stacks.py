"""Python stacks of a process without its help: how a rank is asked for them, by whom it may be, and how they are shown.

A rank of disttensor has two files in memory, which others of its host open through /proc: its *status*, JSON that a
thread of it writes once a second, and its *stacks*, which `faulthandler` adds to when a signal comes. So stacks come
even from a rank that holds Python's lock for ever. The ranks' watchdog asks (`disttensor.distributed`), and so does
``disttensor-run``, through `launch.rank`, which runs this file by its path: it imports the standard library alone.
"""

from __future__ import annotations

import contextlib
import json
import linecache
import os
import re
import signal
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

STATUS, STACKS = "disttensor-status", "disttensor-stacks"
_WRITING = 1.0  # seconds that a rank gets to write its stacks
_SETTLED = 0.1  # seconds without growth after which they are complete
_OURS = ("disttensor-helper", "disttensor-watchdog", "disttensor-departures")
_THREAD = re.compile(r"^(?:Current thread|Thread) 0x([0-9a-f]+)")
_FRAME = re.compile(r'^  File "(.*)", line (\d+) in (.*)$')
_STATES = {"T": "suspended by a signal", "t": "held by a debugger", "Z": "dead", "X": "dead"}
_MOST_FRAMES, _MOST_THREADS = 40, 20


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


def ask(files: Mapping[int, Path], seconds: float) -> dict[int, str]:
    """What processes of this host add to their files when they are asked for their stacks.

    Parameters
    ----------
    files : mapping of int to Path
        The file of each process. One that is suspended, or would be ended by the signal, is not asked.
    seconds : float
        How long to wait for one that does not answer.
    """
    starts: dict[int, int] = {}
    for process, file in files.items():
        with contextlib.suppress(OSError):
            if not trouble(process) and _expects_signal(process):
                starts[process] = file.stat().st_size
                os.kill(process, signal_number())
    sizes, grew = dict(starts), time.monotonic()
    limit = grew + seconds
    while starts and (now := time.monotonic()) < limit:
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
            texts[process] = files[process].read_bytes()[start:].decode(errors="replace")
    return texts


def _expects_signal(process: int) -> bool:
    found = re.search(r"^SigCgt:\s*(\w+)", Path(f"/proc/{process}/status").read_text(), re.MULTILINE)
    return found is not None and bool(int(found[1], 16) >> (signal_number() - 1) & 1)


def of_first_rank(processes: Iterable[int]) -> dict[str, Any]:
    """The stacks of the first of these processes that is a rank of disttensor, in terms of what JSON knows.

    Returns
    -------
    dict
        "state", what is wrong with it and what it does, in words; "stacks" as from `parse`. Empty if there is none.
    """
    for process in processes:
        files = _files_in_memory(process)
        if STACKS in files:
            text = ask({process: files[STACKS]}, _WRITING).get(process, "")
            status = read_status(files[STATUS]) if STATUS in files else {}
            stacks = parse(text, status.get("threads", {}))[-_MOST_THREADS:]  # the main thread is the last
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


def parse(text: str, names: Mapping[str, str]) -> list[list[Any]]:
    """The stacks that faulthandler wrote, without those of our own threads.

    Parameters
    ----------
    text : str
    names : mapping of str to str
        The names of threads by their identifiers in hexadecimal.

    Returns
    -------
    list of [str, list of str]
        The name of each thread, and its stack as Python shows it, the most recent call last.

    Examples
    --------
    >>> parse('Thread 0x0a (most recent call first):\\n  File "x.py", line 3 in f\\n', {"a": "loader"})
    [['loader', ['File "x.py", line 3, in f']]]
    """
    stacks: list[list[Any]] = []
    for line in text.splitlines():
        if found := _THREAD.match(line):
            identifier = found[1].lstrip("0")
            stacks.append([names.get(identifier, f"thread 0x{identifier}"), []])
        elif stacks and (found := _FRAME.match(line)) and len(stacks[-1][1]) < _MOST_FRAMES:
            source = linecache.getline(found[1], int(found[2])).strip()
            shown = f'File "{found[1]}", line {found[2]}, in {found[3]}'
            stacks[-1][1].insert(0, f"{shown}\n  {source}" if source else shown)
    return [stack for stack in stacks if not stack[0].startswith(_OURS)]


def show(stacks: Mapping[int, list[Any]]) -> list[str]:
    """Lines for people, of the stacks of each rank as from `parse`; those that are equal once."""
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
