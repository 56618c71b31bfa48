"""Saves and loads arrays in one way: ``python -m benchmarks.activities.saving WAY FOLDER BYTES``.

For each line that it reads, it saves once, forced to disk, loads once, from what the system still holds in memory, and
answers with one line of JSON, the seconds of both.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

Way = tuple[Callable[[], object], Callable[[], object]]
TENSORS = 16


def _arrays(size: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {f"tensor{i}": rng.standard_normal(size // 4 // TENSORS, np.float32) for i in range(TENSORS)}


def _force(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def disttensor(folder: Path, size: int) -> Way:
    """Our checkpoints, whose checksums are computed and compared."""
    import disttensor as dt

    variables = {name: dt.Variable(array) for name, array in _arrays(size).items()}
    manager = dt.checkpoint.CheckpointManager(folder / "ours", keep=1)

    def load() -> None:
        found = manager.latest()
        assert found is not None
        manager.restore(found, variables)

    return lambda: manager.save(1, variables), load


def safetensors(folder: Path, size: int) -> Way:
    """The library's own functions."""
    from safetensors.numpy import load_file, save_file

    arrays, path = _arrays(size), folder / "safetensors"

    def save() -> None:
        save_file(arrays, path)
        _force(path)

    return save, lambda: load_file(path)


def torch(folder: Path, size: int) -> Way:
    """``torch.save`` and ``torch.load``."""
    import torch

    tensors, path = {name: torch.from_numpy(array) for name, array in _arrays(size).items()}, folder / "torch"

    def save() -> None:
        torch.save(tensors, path)
        _force(path)

    return save, lambda: torch.load(path, weights_only=True)


def main() -> None:
    """Serve until nobody asks any more."""
    way, folder, size = sys.argv[1:]
    save, load = {"disttensor": disttensor, "safetensors": safetensors, "torch": torch}[way](Path(folder), int(size))
    for _ in sys.stdin:
        times = [time.monotonic()]
        for action in (save, load):
            action()
            times.append(time.monotonic())
        print(json.dumps({"save": times[1] - times[0], "load": times[2] - times[1]}), flush=True)


if __name__ == "__main__":
    main()
