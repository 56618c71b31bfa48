"""What one rank of several reads of files, and how much memory that takes: ``python -m benchmarks.data``.

Rank 1 of 1, 2 and 4 goes once, shuffled, over files that the operating system has forgotten. Each case is a process of
its own. Prints the bytes that came from the disk as shares of the file, by how much the process grew at most, and rows
a second. Needs a file system on a disk (read_bytes in /proc/self/io), h5py and Pillow.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

BATCH = 256
ROWS = {"npy": 8192, "npy, rows of 64 bytes": 500_000, "hdf5": 8192, "csv": 100_000, "images": 2000}
WAYS = [*ROWS, "npy, plain numpy"]


def write(kind: str, path: Path) -> None:
    """A file, or a folder of images."""
    rng = np.random.default_rng(0)
    rows = ROWS[kind]
    if kind == "npy":
        np.save(path, rng.integers(0, 255, (rows, 128, 128), np.uint8))
    elif kind == "npy, rows of 64 bytes":
        np.save(path, rng.normal(size=(rows, 16)).astype("float32"))
    elif kind == "hdf5":
        import h5py

        with h5py.File(path, "w") as file:
            file.create_dataset("x", data=rng.integers(0, 255, (rows, 128, 128), np.uint8))
    elif kind == "csv":
        with open(path, "w") as text:
            text.write(",".join(f"c{i}" for i in range(32)) + "\n")
            for row in rng.normal(size=(rows, 32)).round(5).tolist():
                text.write(",".join(map(repr, row)) + "\n")
    else:
        from PIL import Image

        (path / "class").mkdir(parents=True)
        for i in range(rows):
            Image.fromarray(rng.integers(0, 255, (64, 64, 3), np.uint8)).save(path / "class" / f"{i}.png")


def files_of(path: Path) -> list[Path]:
    """The file, or all files of the folder."""
    return [p for p in path.rglob("*") if p.is_file()] if path.is_dir() else [path]


def forget(path: Path) -> None:
    """Let the operating system drop what it has cached."""
    for name in files_of(path):
        file = os.open(name, os.O_RDONLY)
        os.fsync(file)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(file)


def read_from_disk() -> int:
    """Bytes that this process made the disk deliver."""
    with open("/proc/self/io") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith("read_bytes"))


def most_memory() -> int:
    """Bytes of memory, mapped pages of files included, that this process had at most."""
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def measure(way: str, path: str, size: int) -> dict[str, float]:
    """One pass of one rank."""
    from disttensor.data import ArrayDataset, CSVDataset, Permutation, image_dataset_from_directory, make_adapter

    rank = min(1, size - 1)
    dataset: Any = None
    if way == "images":
        import PIL.PngImagePlugin  # noqa: F401
    if way == "hdf5":
        import h5py  # noqa: F401
    np.take(np.zeros((4, 4)), Permutation(4, 0)(np.arange(4)), axis=0)
    before, peak = read_from_disk(), most_memory()
    start, rows = time.perf_counter(), 0
    if way == "npy, plain numpy":
        array = np.load(path, mmap_mode="r")
        order = np.random.default_rng(0).permutation(len(array))
        for first in range(BATCH // size * rank, len(array), BATCH):
            rows += len(np.array(array[np.sort(order[first : first + BATCH // size])]))
    else:
        if way.startswith("npy"):
            dataset = ArrayDataset(np.load(path, mmap_mode="r"), batch_size=BATCH, shuffle=True)
        elif way == "hdf5":
            dataset = ArrayDataset(h5py.File(path, "r")["x"], batch_size=BATCH, shuffle=True)
        elif way == "csv":
            dataset = CSVDataset(path, batch_size=BATCH, shuffle=True)
        else:
            dataset = image_dataset_from_directory(path, image_size=(64, 64), batch_size=BATCH, verbose=False)
        rows = sum(batch.local for batch in make_adapter(dataset, rank=rank, size=size, seed=1).epoch(0))
    seconds = time.perf_counter() - start
    return {"read": read_from_disk() - before, "grown": most_memory() - peak, "rate": rows / seconds}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", nargs=3, metavar=("WAY", "PATH", "SIZE"), help="one measurement, as JSON")
    parser.add_argument("--folder", default=".", help="where the files are written for a while; on a disk")
    arguments = parser.parse_args()
    if arguments.case:
        way, path, size = arguments.case
        print(json.dumps(measure(way, path, int(size))))
        return
    print("| source | size | rank of | read | memory | rows/s |\n|:--|--:|--:|--:|--:|--:|")
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        for way in WAYS:
            kind = "npy" if way == "npy, plain numpy" else way
            path = Path(folder) / f"{kind.replace(', ', '-').replace(' ', '-')}{'.npy' if 'npy' in kind else ''}"
            if not path.exists():
                write(kind, path)
            total = sum(name.stat().st_size for name in files_of(path))
            for size in (1, 2, 4):
                forget(path)
                command = [sys.executable, "-m", "benchmarks.data", "--case", way, str(path), str(size)]
                got = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
                print(
                    f"| {way} | {total / 1e6:.0f} MB | {size} | {got['read'] / total:.0%} | "
                    f"{got['grown'] / 1e6:.0f} MB | {got['rate']:,.0f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
