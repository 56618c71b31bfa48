"""How much disk a framework takes, with everything it requires."""

from __future__ import annotations

import importlib.util
import json
import re
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks.contestants import CONTESTANTS


class Size:
    """Adds up files once and reports them in `ready`."""

    def __init__(self, job: dict[str, Any]):
        contestant = CONTESTANTS[job["contestant"]]
        installed = {_normal(d.name): d for d in metadata.distributions() if d.name}
        wanted = [name for name in contestant.distributions if name in installed]
        closure = _closure(wanted, installed)
        self.ready = {"bytes": sum(_size(installed[name]) for name in closure), "distributions": sorted(closure)}

    def round(self) -> dict[str, Any]:
        """The same again."""
        return self.ready


def _closure(wanted: list[str], installed: dict[str, metadata.Distribution]) -> set[str]:
    """Distributions and all that they require, without extras; what is required elsewhere only is not installed."""
    found: set[str] = set()
    while wanted:
        name = wanted.pop()
        if name in installed and name not in found:
            found.add(name)
            required = [r for r in installed[name].requires or () if not re.search(r"\bextra\s*==", r)]
            wanted += [_normal(re.split(r"[^\w.-]", r, maxsplit=1)[0]) for r in required]
    return found


def _size(distribution: metadata.Distribution) -> int:
    if json.loads(distribution.read_text("direct_url.json") or "{}").get("dir_info", {}).get("editable"):
        # Such an installation lists no files of its own: count the package where it lies.
        package = importlib.util.find_spec(distribution.name)
        assert package is not None
        assert package.origin is not None
        files = list(Path(package.origin).parent.rglob("*"))
    else:
        files = [Path(str(distribution.locate_file(file))) for file in distribution.files or ()]
    return sum(file.stat().st_size for file in files if file.is_file())


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
