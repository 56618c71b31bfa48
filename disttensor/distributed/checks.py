"""What all communicators check: each function looks at this rank's arguments only and sends nothing."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from disttensor import dtypes
from disttensor.errors import ArgumentError, DistributedError, DistTensorError, DTypeError, ShapeError

REDUCTIONS = ("sum", "max", "min")
_MOST_LISTED = 8
_DTYPES = frozenset(dtypes.to_numpy(name) for name in dtypes.ALL)


def check_array(name: str, array: np.ndarray, rank: int) -> None:
    """Require a numpy array of a dtype that disttensor knows."""
    if not isinstance(array, np.ndarray):
        raise DTypeError(f"{name}() on rank {rank} needs a numpy array, got {type(array).__name__}.")
    if array.dtype not in _DTYPES:
        raise DTypeError(
            f"{name}() on rank {rank} got an array of shape {array.shape} and dtype {array.dtype}; "
            f"dtypes that ranks exchange are {', '.join(dtypes.ALL)}."
        )


def check_reduction(name: str, array: np.ndarray, op: str, rank: int) -> None:
    """Require an array and an operation that can combine its elements."""
    check_array(name, array, rank)
    if op not in REDUCTIONS:
        raise ArgumentError(f"{name}() on rank {rank} got op={op!r}; use one of {', '.join(REDUCTIONS)}.")
    if array.dtype.kind == "c" and op != "sum":
        raise DTypeError(f"{name}() on rank {rank}: complex numbers ({array.dtype}) have no {op}; use op='sum'.")


def check_rows(name: str, array: np.ndarray, rank: int) -> None:
    """Require an array with a first axis."""
    check_array(name, array, rank)
    if array.ndim == 0:
        raise ShapeError(f"{name}() on rank {rank} needs an array with at least one axis, got a scalar.")


def check_items(name: str, array: np.ndarray, rank: int, size: int) -> None:
    """Require an array with one item for every rank."""
    check_rows(name, array, rank)
    if array.shape[0] != size:
        raise ShapeError(
            f"{name}() on rank {rank} got an array of shape {array.shape}; its first dimension must be the number of "
            f"ranks, {size}."
        )


def share_of(name: str, array: np.ndarray, rank: int, size: int) -> tuple[int, ...]:
    """The shape of one of `size` equal blocks of rows."""
    check_rows(name, array, rank)
    if array.shape[0] % size:
        raise ShapeError(
            f"{name}() on rank {rank} got an array of shape {array.shape}; its first dimension must be a multiple of "
            f"the number of ranks, {size}. Pad it to {-(-array.shape[0] // size) * size} rows."
        )
    return (array.shape[0] // size, *array.shape[1:])


def check_bounds(name: str, array: np.ndarray, bounds: Sequence[int], rank: int, size: int) -> np.ndarray:
    """Require a contiguous array with one axis, and bounds of a stretch of it for every rank; return the array."""
    check_array(name, array, rank)
    ascending = all(a <= b for a, b in itertools.pairwise(bounds))
    if array.ndim != 1 or not array.flags.c_contiguous or not array.flags.writeable:
        raise ShapeError(
            f"{name}() on rank {rank} needs a writable, contiguous array with one axis, got shape {array.shape}."
        )
    if len(bounds) != size + 1 or not ascending or bounds[0] != 0 or bounds[-1] != array.size:
        raise ShapeError(
            f"{name}() on rank {rank} got bounds {list(bounds)}; they must be {size + 1} numbers that ascend from 0 to "
            f"the length of the array, {array.size}."
        )
    return array


def check_target(name: str, target: np.ndarray, shape: tuple[int, ...], dtype: np.dtype[Any], rank: int) -> np.ndarray:
    """Require a writable array of this shape and dtype, and return it."""
    if not isinstance(target, np.ndarray) or target.dtype != dtype:
        found = target.dtype if isinstance(target, np.ndarray) else type(target).__name__
        raise DTypeError(f"{name}() on rank {rank} needs an array of dtype {dtype} for its result, got {found}.")
    if target.shape != shape:
        raise ShapeError(f"{name}() on rank {rank} needs shape {shape} for its result, got {target.shape}.")
    if not target.flags.writeable:
        raise ArgumentError(f"{name}() on rank {rank} cannot write its result: the array is read-only. Pass a copy.")
    return target


def make_target(
    name: str, out: np.ndarray | None, shape: tuple[int, ...], dtype: np.dtype[Any], rank: int
) -> np.ndarray:
    """`out` after `check_target`, or a new array."""
    return np.empty(shape, dtype) if out is None else check_target(name, out, shape, dtype, rank)


def disagreement(facts: list[list[Any]], members: Sequence[int], rank: int, which: str = "") -> DistTensorError:
    """The error for ranks that differ.

    Parameters
    ----------
    facts : list of [dtype, shape, call]
        One for each rank of the group.
    members : sequence of int
        The ranks of the group as numbered in the world, by which the message names them.
    rank : int
        This process's number in the group.
    which : str, optional
        What part of the shape must be equal, as it stands before "and dtype".
    """
    calls = {call for _, _, call in facts}
    alike: dict[str, list[int]] = {}
    for member, (dtype, shape, call) in zip(members, facts, strict=True):
        what = f"{dtype}{shape}" if len(calls) == 1 else f"{call} of {dtype}{shape}"
        alike.setdefault(what, []).append(member)
    found = "; ".join(f"{_listed(ranks)}: {what}" for what, ranks in alike.items())
    here = f"on rank {members[rank]}"
    if len(calls) > 1:
        return DistributedError(
            f"{facts[rank][2]} {here}, but ranks call different collectives: {found}. All ranks of a group must make "
            "the same calls, in one order."
        )
    kind = ShapeError if len({dtype for dtype, _, _ in facts}) == 1 else DTypeError
    return kind(f"{facts[0][2]} {here} needs the same shape {which}and dtype on all ranks, but they differ: {found}.")


def _listed(ranks: list[int]) -> str:
    shown = ", ".join(map(str, ranks[:_MOST_LISTED]))
    more = f" and {len(ranks) - _MOST_LISTED} more" if len(ranks) > _MOST_LISTED else ""
    return f"rank{'s' if len(ranks) > 1 else ''} {shown}{more}"


def check_root(name: str, root: int, rank: int, size: int) -> None:
    """Require a rank of the group."""
    if not 0 <= root < size:
        raise ArgumentError(f"{name}() on rank {rank} got root={root}; ranks are 0 to {size - 1}.")


def check_color(color: int, rank: int) -> None:
    """Require a number that may name a group."""
    if color < 0:
        raise ArgumentError(f"split() on rank {rank} got color={color}; it must not be negative.")


def to_json(name: str, value: Any, rank: int) -> bytes:
    """The value as JSON."""
    try:
        return json.dumps(value).encode()
    except (TypeError, ValueError) as error:
        raise ArgumentError(
            f"{name}() on rank {rank} sends values as JSON (numbers, strings, booleans, None, lists, dicts): {error}."
        ) from None
