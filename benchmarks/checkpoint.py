"""``python -m benchmarks checkpoint``: what saving costs a training, and how fast checkpoints are written and read.

*Cost*: a training of a large perceptron with Adam is saved every so often by `BackupAndRestore`. Windows of `--window`
seconds that begin with a save, and must contain all of it, alternate with windows of the same training without one, so
what else goes on in the machine meets both alike. What a save makes slower in its window is spread over the `--every`
seconds from one save to the next. The processor time of the thread that writes is given too: what it takes from the
training's threads even where a window is too noisy to show it.

*Speed*: as many bytes as the model's weights, saved (forced to disk) and loaded by us, by safetensors and by PyTorch,
and written and read by `dd`, through the system's memory and past it, in turn.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np

import disttensor as dt
from benchmarks import machine, report
from benchmarks.contestants import PEERS_ENVIRONMENT, ROOT
from benchmarks.processes import environment

_WIDTH, _BATCH = 4096, 32
_WAYS = ("disttensor", "safetensors", "torch")


def run(options: argparse.Namespace) -> None:
    """Measure, print and write."""
    description = machine.describe()
    print("\n".join(machine.lines(description)), flush=True)
    found: dict[str, Any] = {"machine": description}
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="benchmark-") as folder:
        if options.part != "speed":
            found["cost"] = measure_cost(
                Path(folder), options.parameters, options.window or options.every, options.rounds
            )
            print(f"\n{cost_table(found['cost'], options.window or options.every, options.every)}", flush=True)
        if options.part != "cost":
            found["speed"] = measure_speed(Path(folder), 4 * options.parameters, options.rounds)
            print(f"\n{speed_table(found['speed'], 4 * options.parameters)}", flush=True)
    print(f"\nload average at the end: {machine.load()}")
    if options.json:
        report.write_json(options.json, found)


# --- what it costs


def measure_cost(folder: Path, parameters: int, window: float, rounds: int) -> dict[str, Any]:
    """Train with a save in every other window.

    Returns
    -------
    dict
        `parameters`, `bytes` of a checkpoint; for each window the steps a second, `with` and `without` a save; for each
        save the seconds for which training was held up (`held_up`), until it was complete (`latency`), and of processor
        time that the writing thread used (`writing`).
    """
    layers = max(round(parameters / _WIDTH**2), 1)
    model = dt.Sequential([dt.Input((_WIDTH,)), *(dt.layers.Dense(_WIDTH, activation="relu") for _ in range(layers))])
    model.compile("adam", "mse")
    backup = dt.callbacks.BackupAndRestore(folder / "run", save_freq=timedelta(seconds=2 * window))
    watch = _Watch(backup.manager, 2 * window * rounds + window)
    x = np.random.default_rng(0).standard_normal((_BATCH, _WIDTH)).astype("float32")
    model.fit(x, x, _BATCH, epochs=1, verbose=0)  # compiles
    model.fit(x, x, _BATCH, epochs=10**9, verbose=0, callbacks=[watch, backup])
    windows: dict[str, list[float]] = {"with": [], "without": []}
    for start in watch.saves[:rounds]:
        windows["with"].append(watch.rate(start, start + window))
        windows["without"].append(watch.rate(start + window, start + 2 * window))
    return {
        "parameters": sum(int(np.prod(v.shape)) for v in model.trainable_variables),
        "bytes": watch.bytes,
        **windows,
        "held_up": watch.held_up[:rounds],
        "latency": watch.latency[:rounds],
        "writing": watch.writing[:rounds],
    }


class _Watch(dt.callbacks.Callback):
    """Notes when steps ended and what saves took; ends training after so many seconds of saves."""

    def __init__(self, manager: Any, seconds: float):
        super().__init__()
        self._manager, self._seconds = manager, seconds
        self._ends: list[float] = []
        self.saves: list[float] = []
        self.held_up: list[float] = []
        self.latency: list[float] = []
        self.writing: list[float] = []
        self.bytes = 0
        self._cpu = 0.0

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Called before `fit` looks whether to save."""
        now = time.monotonic()
        self._ends.append(now)
        save = self._manager._save
        if save is not None and (not self.saves or save.started > self.saves[-1]):
            self.saves.append(save.started)
            self.held_up.append(save.held_up)
        if self._manager.latency and len(self.latency) < len(self.saves) and save is None:
            self.latency.append(self._manager.latency)
            cpu = _thread_seconds("disttensor-checkpoint")
            self.writing.append(cpu - self._cpu)
            self._cpu = cpu
            self.bytes = sum(path.stat().st_size for path in Path(self._manager.checkpoints[-1]).iterdir())
        if self.saves and now > self.saves[0] + self._seconds:
            self.model.stop_training = True

    def rate(self, start: float, end: float) -> float:
        """Steps a second, counted from the first step that ended in this window to the first one after it."""
        first = next(i for i, at in enumerate(self._ends) if at >= start)
        last = next(i for i, at in enumerate(self._ends) if at >= end)
        # from the moment at which the window began: a save holds the next step up before it ends
        return (last - first + 1) / (self._ends[last] - (self._ends[first - 1] if first else start))


def _thread_seconds(name: str) -> float:
    """Processor time of this process's threads of that name."""
    ticks = 0
    for thread in threading.enumerate():
        if thread.name.startswith(name):
            fields = Path(f"/proc/self/task/{thread.native_id}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def cost_table(found: dict[str, Any], window: float, every: float) -> str:
    """A row for each pair of windows, and the medians."""
    pairs = zip(found["with"], found["without"], strict=True)
    slower = [(1 - with_save / without) * window / every for with_save, without in pairs]
    columns = (found["with"], found["without"], slower, found["held_up"], found["writing"], found["latency"])
    rows = [
        [str(i + 1), f"{w:.2f}", f"{o:.2f}", f"{s:.1%}", f"{h:.2f}", f"{p:.2f}", f"{t:.1f}"]
        for i, (w, o, s, h, p, t) in enumerate(zip(*columns, strict=True))
    ]
    cores = len(machine.cores())
    used = [h * cores + p for h, p in zip(found["held_up"], found["writing"], strict=True)]
    header = ["save", "steps/s", "without", "slower", "held up, s", "writing, s of a core", "complete after, s"]
    return (
        f"{found['parameters'] / 1e6:.1f} M parameters, {found['bytes'] / 1e6:.0f} MB a checkpoint, one every "
        f"{every:.0f} s, windows of {window:.0f} s\n\n{report.table(header, rows)}\n\nslower by "
        f"{statistics.median(slower):.1%} (median); a save takes {statistics.median(used) / (cores * every):.1%} of "
        "the cores' time"
    )


# --- how fast it is


def measure_speed(folder: Path, size: int, rounds: int) -> dict[str, list[dict[str, float]]]:
    """Seconds to save and to load so many bytes, for each way, in turn."""
    found: dict[str, list[dict[str, float]]] = {"dd": [], "dd, direct": []}
    with contextlib.ExitStack() as stack:
        workers = {way: stack.enter_context(_worker(way, folder, size)) for way in _WAYS if _python(way).exists()}
        for _ in range(rounds):
            found["dd"].append(_dd(folder / "dd", size, [], []))
            found["dd, direct"].append(_dd(folder / "dd", size, ["oflag=direct"], ["iflag=direct"]))
            for way, worker in workers.items():
                found.setdefault(way, []).append(_round(worker))
    return found


def _dd(path: Path, size: int, writing: list[str], reading: list[str]) -> dict[str, float]:
    """Write and read through dd, which says itself how long it took."""
    block = 4 << 20
    write = ["dd", "if=/dev/zero", f"of={path}", f"bs={block}", f"count={size // block}", "conv=fsync", *writing]
    read = ["dd", f"if={path}", "of=/dev/null", f"bs={block}", *reading]
    seconds = []
    for command in (write, read):
        said = subprocess.run(command, capture_output=True, text=True, check=True, env={"LC_ALL": "C"}).stderr
        match = re.search(r"([\d.e-]+) s, ", said)
        assert match is not None
        seconds.append(float(match[1]))
    path.unlink()
    return {"save": seconds[0], "load": seconds[1]}


def _python(way: str) -> Path:
    return PEERS_ENVIRONMENT / "bin" / "python" if way == "torch" else Path(sys.executable)


@contextlib.contextmanager
def _worker(way: str, folder: Path, size: int) -> Iterator[subprocess.Popen[str]]:
    command = [str(_python(way)), "-m", "benchmarks.activities.saving", way, str(folder), str(size)]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment(1)
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def _round(worker: subprocess.Popen[str]) -> dict[str, float]:
    assert worker.stdin is not None
    assert worker.stdout is not None
    worker.stdin.write("round\n")
    worker.stdin.flush()
    answer: dict[str, float] = json.loads(worker.stdout.readline())
    return answer


def speed_table(found: dict[str, list[dict[str, float]]], size: int) -> str:
    """Medians, as MB a second."""
    rows = []
    for way, rounds in found.items():
        speeds = [size / 1e6 / statistics.median(one[what] for one in rounds) for what in ("save", "load")]
        rows.append([way, *(f"{speed:.0f}" for speed in speeds)])
    return f"{size / 1e6:.0f} MB\n\n{report.table(['', 'save, MB/s', 'load, MB/s'], rows)}"
