"""What goes through the MPI library: flat arrays of types that it knows."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from disttensor import dtypes
from disttensor.distributed.weights import Weights, scale

HALVES = frozenset((dtypes.to_numpy("float16"), dtypes.to_numpy("bfloat16")))


def flat_pair(array: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What to send and where to receive it, flat and contiguous: one array, or two that share no memory."""
    if target.flags.c_contiguous:
        receive = target.reshape(-1)
        if target is array:
            return receive, receive
    else:
        receive = np.empty(target.size, target.dtype)
    send = np.ascontiguousarray(array).reshape(-1)
    return send.copy() if np.may_share_memory(send, receive) else send, receive


def weighted(array: np.ndarray, target: np.ndarray, weights: Weights) -> np.ndarray:
    """The weighted array, in the memory of `target`."""
    if target is not array:
        np.copyto(target, array)
    return scale(target, weights)


def as_numbers(array: np.ndarray) -> np.ndarray:
    """The elements, flat, of a type that MPI can compute with; a view of `array` where possible."""
    flat = np.ascontiguousarray(array).reshape(-1)
    if array.dtype in HALVES:
        return flat.astype(np.float32)
    return flat.view(np.uint8) if array.dtype == np.bool_ else flat


def as_words(array: np.ndarray) -> np.ndarray:
    """The elements, flat, as unsigned integers of their size; a view of `array` where possible."""
    return np.ascontiguousarray(array).reshape(-1).view(f"u{min(array.dtype.itemsize, 8)}")


def space_for(target: np.ndarray, flatten: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Where to receive what shall `land` in `target`: its own memory if `flatten` gives a view of it."""
    if target.flags.c_contiguous and (flatten is as_words or target.dtype not in HALVES):
        return flatten(target)
    return np.empty_like(flatten(np.zeros(target.shape, target.dtype)))


def land(receive: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Bring what was received to `target`, unless it was received there."""
    if not is_received_in_place(receive, target):
        values = receive if _is_widened(receive, target) else receive.view(target.dtype)
        with np.errstate(over="ignore"):  # a float32 sum that is no float16 becomes inf, as it would in float16
            target[...] = values.reshape(target.shape)
    return target


def is_received_in_place(receive: np.ndarray, target: np.ndarray) -> bool:
    return target.flags.c_contiguous and not _is_widened(receive, target)


def _is_widened(receive: np.ndarray, target: np.ndarray) -> bool:
    return target.dtype in HALVES and receive.dtype == np.float32
