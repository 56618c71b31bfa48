"""What files should not hold, for tests of those who read them."""

from __future__ import annotations

import copy
from typing import Any

from hypothesis import strategies as st

ODD = (
    None, True, 0, -1, 1, 1 << 31, 1 << 40, 1 << 62, 1 << 63, 1 << 64, 1 << 2000, 1.5, float("nan"), float("inf"),
    "", "x", "..", "/etc/passwd", "\0", "float64", "bfloat16", "complex64", "F64", "BF16", "F8_E4M3", "F4", "C64",
    [], {}, [0], [1 << 62, 0], [0] * 70, [[]], {"a": 1}, {"__array__": "x"}, {"__array__": []},
)  # fmt: skip
"""Values that a reader may not expect."""


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """Content with some bytes changed, put in, or cut off."""
    found = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, len(found)))
        how = draw(st.sampled_from(["change", "change", "change", "insert", "cut"]))
        if how == "change":
            found[place : place + 1] = draw(st.binary(min_size=1, max_size=1))
        elif how == "insert":
            found[place:place] = draw(st.binary(min_size=1, max_size=8))
        else:
            del found[place:]
    return bytes(found)


@st.composite
def altered(draw: st.DrawFn, value: Any) -> Any:
    """What JSON knows, of which one or two entries are gone, have another name, or are something else."""
    root = [copy.deepcopy(value)]
    for _ in range(draw(st.integers(1, 2))):
        holder, key = draw(st.sampled_from(list(_entries(root))))
        how = draw(st.sampled_from(["replace", "replace", "replace", "remove", "rename"]))
        if how == "replace" or holder is root:
            holder[key] = copy.deepcopy(draw(st.sampled_from(ODD)))
        elif how == "rename" and isinstance(holder, dict):
            holder[draw(st.sampled_from(["", "x", "__array__", "__metadata__"]))] = holder.pop(key)
        else:
            del holder[key]
    return root[0]


def _entries(holder: Any) -> Any:
    """Every place in a nested structure, as what holds it, and its key there."""
    for key in list(holder) if isinstance(holder, dict) else range(len(holder)):
        yield holder, key
        if isinstance(holder[key], (dict, list)):
            yield from _entries(holder[key])
