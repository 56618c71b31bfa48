"""What ranks of one host tell each other of a sum: its kind, as a number, and its length; the errors of sums."""

from __future__ import annotations

from typing import Any

from disttensor import dtypes
from disttensor.distributed.checks import REDUCTIONS
from disttensor.errors import DistributedError

_KINDS = [(op, name) for op in REDUCTIONS for name in dtypes.ALL]
CODES = {kind: code for code, kind in enumerate(_KINDS)}
REAL = {"complex64": "float32", "complex128": "float64"}
"""What complex numbers are added as."""
NAPS = 500
"""Of machine code that waits, at most 0.1 s of sleep, before Python sees to signals."""


def word_of(code: int, mode: int) -> int:
    """Word 0 of a notice: what is called, and the mode of its updates, see `updates`."""
    return code | mode << 32


def code_of(word: int) -> int:
    """The code in it, which is negative of one who called something else."""
    return (word & 0xFFFFFFFF ^ 1 << 31) - (1 << 31)


def mode_of(word: int) -> int:
    """The mode in it."""
    return word >> 32


def disagreement(rank: int, mine: Any, other: int, theirs: Any) -> DistributedError:
    """What to raise where two ranks called different things, each given by its code (see `_describe`) and bytes."""
    same = _describe(mine) == _describe(theirs)
    return DistributedError(
        f"all_reduce() needs the same operation, dtype and length on all ranks, but rank {rank} called it with "
        f"{_describe(mine)} and rank {other} with {_describe(theirs)}"
        f"{', one of them in the background' if same else ''}."
    )


def _describe(notice: Any) -> str:
    code = code_of(notice[0])
    op, dtype = _KINDS[~code if code < 0 else code]  # negative: of a short array where others are long, or reversely
    return f"op={op!r} and {notice[1] // dtypes.itemsize(dtype)} elements of {dtype}"


def left_open() -> DistributedError:
    """The error for a bucket of gradients that is to be summed while an earlier sum of it was never waited for."""
    return DistributedError(
        "an error ended a step while its gradients were being summed over the ranks, and this step's would be added to "
        "them. Compile the model (or trace the function) again, or start from the last checkpoint."
    )
