"""``disttensor checkpoint ls|verify|show|diff``: look at checkpoints, without the program that wrote them."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from disttensor.checkpoint import Checkpoint, find_checkpoints
from disttensor.errors import ArgumentError, SerializationError

_EXAMPLES = """\
examples:
  disttensor checkpoint ls run/                            what is in a folder of checkpoints
  disttensor checkpoint verify run/                        read all bytes, compare all checksums
  disttensor checkpoint show run/000012-step-4800          tensors and state of one
  disttensor checkpoint diff run/000011-step-4400 run/000012-step-4800

PATH is a checkpoint, or a folder of checkpoints: verify then looks at all of them,
show and diff at the newest.

The exit code is 0 if all is well, 1 if a checkpoint is damaged (verify, ls) or two
of them differ (diff), 2 if there is nothing to look at."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.epilog = _EXAMPLES
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    for name, line, paths in (
        ("ls", "list the checkpoints of a folder", 1),
        ("verify", "read everything and compare checksums", 1),
        ("show", "list tensors and state of a checkpoint", 1),
        ("diff", "compare two checkpoints tensor by tensor", 2),
    ):
        action = actions.add_parser(name, help=line, description=f"{line[0].upper()}{line[1:]}.")
        action.add_argument("paths", metavar="PATH", nargs=paths)


def run(options: argparse.Namespace) -> int:
    """Do what was asked."""
    actions: dict[str, Callable[..., int]] = {"ls": _list, "verify": _verify, "show": _show, "diff": _diff}
    return actions[options.action](*options.paths)


def _list(path: str) -> int:
    rows: list[tuple[str, ...]] = []
    code = 0
    for folder in _folders(path):
        try:
            found = Checkpoint(folder)
        except SerializationError as error:
            rows.append((os.path.basename(folder), "", "", "", "", str(error)))
            code = 1
            continue
        manifest = found.manifest
        metrics = ", ".join(f"{name} {value:.4g}" for name, value in sorted(manifest.metrics.items()))
        rows.append((found.name, str(found.step), manifest.created, _size(found.bytes), str(manifest.ranks), metrics))
    _print(("checkpoint", "step", "saved", "size", "ranks", "metrics"), rows)
    return code


def _verify(path: str) -> int:
    rows: list[tuple[str, ...]] = []
    code = 0
    for folder in _folders(path):
        try:
            Checkpoint(folder).verify()
            rows.append((os.path.basename(folder), "whole"))
        except SerializationError as error:
            rows.append((os.path.basename(folder), str(error)))
            code = 1
    _print(("checkpoint", "found"), rows)
    return code


def _show(path: str) -> int:
    found = Checkpoint(_folders(path)[-1])
    manifest = found.manifest
    print(f"{found.name}: step {found.step}, {_size(found.bytes)}, saved {manifest.created} by {manifest.ranks} ranks")
    print("versions: " + ", ".join(f"{name} {version}" for name, version in manifest.versions.items()))
    rows = [
        (name, info.dtype, str(list(info.shape)), _size(info.bytes), ", ".join(str(p.shard) for p in info.parts))
        for name, info in manifest.tensors.items()
    ]
    _print(("tensor", "dtype", "shape", "size", "shards"), rows)
    if isinstance(manifest.state, dict):
        _print(("state", "value"), [(name, _short(value)) for name, value in manifest.state.items()])
    return 0


def _diff(first: str, second: str) -> int:
    one, other = (Checkpoint(_folders(path)[-1]) for path in (first, second))
    rows: list[tuple[str, ...]] = []
    for name in dict.fromkeys([*one.manifest.tensors, *other.manifest.tensors]):
        a, b = one.manifest.tensors.get(name), other.manifest.tensors.get(name)
        if a is None or b is None:
            rows.append((name, f"only in {(one if b is None else other).name}", ""))
        elif (a.shape, a.dtype) != (b.shape, b.dtype):
            rows.append((name, f"{a.dtype}{list(a.shape)}, {b.dtype}{list(b.shape)}", ""))
        else:
            x, y = one.array(name), other.array(name)
            if x.tobytes() != y.tobytes():
                wide = np.complex128 if x.dtype.kind == "c" else np.float64
                change = np.abs(x.astype(wide) - y.astype(wide))
                rows.append((name, f"{np.count_nonzero(change)} of {x.size} elements", f"{change.max():.3g}"))
    if not rows:
        print(f"{one.name} and {other.name} hold the same tensors, bit for bit.")
        return 0
    _print(("tensor", "differs in", "at most by"), rows)
    return 1


def _folders(path: str) -> list[str]:
    """The checkpoint at a path, or those in the folder at a path."""
    if os.path.exists(os.path.join(path, "manifest.json")):
        return [path]
    if not os.path.isdir(path):
        raise ArgumentError(f"there is no folder {path}.")
    found = find_checkpoints(path)
    if not found:
        raise ArgumentError(f"{path} is no checkpoint and holds none.")
    return found


def _print(titles: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*titles, box=box.SIMPLE_HEAD)
    for row in rows:
        table.add_row(*map(Text, row))
    console = Console(highlight=False)
    if not console.is_terminal:  # a file or a pipe: no line is broken
        console = Console(highlight=False, width=1000)
    console.print(table)


def _size(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    raise AssertionError


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 100 else text[:97] + "..."
