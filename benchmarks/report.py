"""How results are shown: Markdown tables for people and documents, JSON for machines."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first column is aligned to the left, the others to the right.

    Examples
    --------
    >>> print(table(["name", "ms"], [["a", "1.50"]]))
    | name |   ms |
    |:-----|-----:|
    | a    | 1.50 |
    """
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        padded = [
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(cells, widths, strict=True))
        ]
        return f"| {' | '.join(padded)} |"

    rules = [":" + "-" * (widths[0] + 1), *["-" * (width + 1) + ":" for width in widths[1:]]]
    return "\n".join([line(header), f"|{'|'.join(rules)}|", *map(line, rows)])


def milliseconds(seconds: float) -> str:
    """Three significant digits, at least."""
    value = 1e3 * seconds
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.3g}"


def megabytes(count: float) -> str:
    """In units of 10⁶ bytes."""
    return f"{count / 1e6:.0f}"


def interval(values: Sequence[float]) -> str:
    """A ratio with the ends of its interval."""
    middle, low, high = values
    return f"{middle:.2f} ({low:.2f}–{high:.2f})"


def write_json(path: Path, content: Any) -> None:
    """Write a file that appears whole or not at all."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(content, file, indent=1, ensure_ascii=False)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
