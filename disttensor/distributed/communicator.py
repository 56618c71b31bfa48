"""What ranks can say to one another: the `Communicator` protocol, and `SerialCommunicator`, its identity.

Code that trains never asks whether it runs alone: it calls the communicator, and with one process every call hands
back what it was given. Arrays travel as raw memory and other values as JSON; nothing is ever pickled.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from disttensor import dtypes
from disttensor.distributed.checks import (
    check_array,
    check_bounds,
    check_color,
    check_items,
    check_reduction,
    check_root,
    check_rows,
    check_target,
    make_target,
    share_of,
    to_json,
)
from disttensor.distributed.weights import Weights, check_weights, scale
from disttensor.tensor import aligned_empty

if TYPE_CHECKING:
    from numpy.typing import DTypeLike


class Handle:
    """A collective that was started and may still be under way.

    The arrays given to the collective must not be touched before `wait` returns.

    Parameters
    ----------
    result : ndarray or None
        What `wait` returns.
    wait : callable, optional
        Blocks until the collective is complete; None where there is nothing to wait for.
    test : callable, optional
        Tells without blocking whether the collective is complete, and lets it progress.
    """

    def __init__(
        self,
        result: np.ndarray | None,
        wait: Callable[[], object] | None = None,
        test: Callable[[], bool] | None = None,
    ) -> None:
        self._result = result
        self._wait = wait
        self._test = test

    def test(self) -> bool:
        """Whether the collective is complete, so that `wait` would not block; also moves it forward."""
        return self._test is None or self._test()

    def wait(self) -> np.ndarray | None:
        """Block until the collective is complete and return its result; further calls return it again."""
        if self._wait is not None:
            self._wait()
            self._wait = self._test = None
        return self._result


class Communicator(Protocol):
    """A group of ranks that exchange arrays.

    Every method except the attributes is *collective*: all ranks of the group call it, in the same order, with equal
    shapes and dtypes unless stated otherwise. All dtypes of disttensor are understood. With the same number of ranks
    and the same library the same bits come out, and they come out alike on every rank.

    Attributes
    ----------
    rank, size : int
        This process's number within the group, and how many there are.
    local_rank, local_size : int
        The same, among the ranks that share this host's memory.
    node, nodes : int
        The number of this host, and how many hosts there are. ``split(node)`` gives the group of one host.
    hosts : tuple of str
        The host name of every rank.
    """

    rank: int
    size: int
    local_rank: int
    local_size: int
    node: int
    nodes: int
    hosts: tuple[str, ...]

    def all_reduce(
        self, array: np.ndarray, op: str = "sum", out: np.ndarray | None = None, weights: Weights | None = None
    ) -> np.ndarray:
        """Combine the ranks' arrays element by element; every rank gets the result.

        Parameters
        ----------
        array : ndarray
            Overwritten with the result unless `out` is given.
        op : {"sum", "max", "min"}
            As in numpy, the sum of booleans is their logical or. float16 and bfloat16 are combined in float32 and
            rounded once. Which operand "max" and "min" keep when one is NaN depends on the MPI library.
        out : ndarray of the shape and dtype of `array`, optional
            Receives the result; `array` is then only read.
        weights : sequence of (int, float), optional
            This rank's weights in the sum of a contiguous array of floating-point or complex numbers (1 in that of
            others): for so many elements in a row this factor, then for the next, for at most `MAX_RUNS` such runs,
            whose lengths are the same on all ranks. Products are rounded before they are added. An element of
            weight 0 counts as 0 whatever it holds.

        Returns
        -------
        ndarray
            `out`, or `array`.

        Raises
        ------
        ShapeError, DTypeError, ArgumentError
            If `out` differs from `array`, the dtype or `op` is unknown, or complex numbers should be compared.
        DistributedError
            If the MPI library reports an error, for example because another rank died.
        """
        ...

    def all_reduce_async(
        self, array: np.ndarray, op: str = "sum", out: np.ndarray | None = None, weights: Weights | None = None
    ) -> Handle:
        """Start `all_reduce`; the handle's `wait` returns the result.

        `wait` is collective, too: it may need the others to wait for, or test, the same handle.
        """
        ...

    def shared_empty(self, shape: tuple[int, ...], dtype: DTypeLike) -> np.ndarray:
        """An array on which `all_reduce` in place is fastest; not collective.

        Where ranks share memory it lies in that memory, while there is room, and other ranks read and write it within
        `all_reduce`; anywhere else it is an array like any other. Its values are arbitrary.

        Parameters
        ----------
        shape : tuple of int
        dtype : dtype
        """
        ...

    def reduce_scatter(self, array: np.ndarray, op: str = "sum", out: np.ndarray | None = None) -> np.ndarray:
        """Combine the ranks' arrays and give each rank its share: block number `rank` of `size` along the first axis.

        Parameters
        ----------
        array : ndarray, shape (size * rows, ...)
            Only read.
        op : {"sum", "max", "min"}
        out : ndarray, shape (rows, ...), optional

        Returns
        -------
        ndarray, shape (rows, ...)

        Raises
        ------
        ShapeError
            If the first dimension is not a multiple of `size`, or `out` does not have the shape of a share.
        """
        ...

    def reduce_scatter_async(self, array: np.ndarray, op: str = "sum", out: np.ndarray | None = None) -> Handle:
        """Start `reduce_scatter`."""
        ...

    def all_gather(self, array: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """Collect the ranks' arrays, all of one shape.

        Parameters
        ----------
        array : ndarray, shape s
        out : ndarray, shape (size, *s), optional

        Returns
        -------
        ndarray, shape (size, *s)
            Item r is the array of rank r.

        Raises
        ------
        ShapeError, DTypeError
            On every rank, if the ranks' shapes or dtypes differ (checked here, not in the asynchronous form).
        """
        ...

    def all_gather_async(self, array: np.ndarray, out: np.ndarray | None = None) -> Handle:
        """Start `all_gather`, without its check that the ranks' shapes agree."""
        ...

    def all_gatherv(self, array: np.ndarray) -> np.ndarray:
        """Concatenate the ranks' rows in the order of ranks; first dimensions may differ, and may be 0.

        Parameters
        ----------
        array : ndarray, shape (rows_of_this_rank, ...)

        Returns
        -------
        ndarray, shape (rows_of_all_ranks, ...)

        Raises
        ------
        ShapeError, DTypeError
            On every rank, if anything but the first dimension differs between ranks.
        """
        ...

    def all_gather_in_place(self, array: np.ndarray, bounds: Sequence[int]) -> np.ndarray:
        """Give every rank all elements of an array of which each has a stretch.

        Parameters
        ----------
        array : ndarray, one axis, contiguous
            Of the same length and dtype on all ranks. Rank r has elements ``bounds[r]`` to ``bounds[r + 1]``; the
            others are overwritten.
        bounds : sequence of int, length size + 1
            Ascending from 0 to the length, the same on all ranks.

        Returns
        -------
        ndarray
            `array`.

        Raises
        ------
        ShapeError
            If bounds and array do not fit.
        """
        ...

    def all_to_all(self, array: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """Send item r of `array` to rank r; item r of the result came from rank r.

        Parameters
        ----------
        array : ndarray, shape (size, ...)
        out : ndarray of the same shape, optional

        Returns
        -------
        ndarray, shape (size, ...)
        """
        ...

    def broadcast(self, array: np.ndarray, root: int = 0) -> np.ndarray:
        """Overwrite `array` on every rank with that of rank `root`, and return it.

        Raises
        ------
        ShapeError, DTypeError
            On every rank, if the ranks' shapes or dtypes differ.
        """
        ...

    def broadcast_object(self, value: Any, root: int = 0) -> Any:
        """Rank `root`'s value, made of what JSON knows (tuples come back as lists), on every rank."""
        ...

    def all_gather_object(self, value: Any) -> list[Any]:
        """The values of all ranks, in their order, each made of what JSON knows."""
        ...

    def require_alike(self, call: str, array: np.ndarray, shape: tuple[int, ...] | None = None) -> None:
        """Raise on every rank unless all ranks make the same call with arrays of one shape and dtype.

        One message of 16 bytes. Two ranks that call different collectives find out as well, if both check.

        Parameters
        ----------
        call : str
            As it shall stand in messages, for example ``"all_reduce(op='sum')"``.
        array : ndarray
        shape : tuple of int, optional
            What must be equal, if it is not the whole shape of `array`.

        Raises
        ------
        ShapeError, DTypeError, DistributedError
            If shapes, dtypes or calls differ; it names the ranks and what they have.
        """
        ...

    def barrier(self) -> None:
        """Return when every rank has called it."""
        ...

    def barrier_async(self) -> Handle:
        """Announce that this rank has arrived; the handle completes when every rank has."""
        ...

    def split(self, color: int) -> Communicator:
        """The group of those ranks that gave the same non-negative `color`, in the order of their ranks.

        ``split(0)`` on all ranks gives a copy of this group: two threads need one each.
        """
        ...


class SerialCommunicator:
    """The group of one rank: every collective returns what it was given, after the same checks as over MPI.

    Examples
    --------
    >>> comm = SerialCommunicator()
    >>> comm.all_reduce(np.array([1.0, 2.0]))
    array([1., 2.])
    >>> comm.all_gather(np.array([1.0, 2.0])).shape
    (1, 2)
    """

    rank = 0
    size = 1
    local_rank = 0
    local_size = 1
    node = 0
    nodes = 1

    def __init__(self) -> None:
        self.hosts: tuple[str, ...] = (platform.node(),)

    def all_reduce(
        self, array: np.ndarray, op: str = "sum", out: np.ndarray | None = None, weights: Weights | None = None
    ) -> np.ndarray:
        """`array`, copied to `out` if that is given, and weighted; see `Communicator.all_reduce`."""
        check_reduction("all_reduce", array, op, self.rank)
        target = check_target("all_reduce", array if out is None else out, array.shape, array.dtype, self.rank)
        check_weights("all_reduce", target, op, weights, self.rank)
        return scale(_copied(array, target), weights)

    def all_reduce_async(
        self, array: np.ndarray, op: str = "sum", out: np.ndarray | None = None, weights: Weights | None = None
    ) -> Handle:
        """`all_reduce`, complete at once."""
        return Handle(self.all_reduce(array, op, out, weights))

    def shared_empty(self, shape: tuple[int, ...], dtype: DTypeLike) -> np.ndarray:
        """An array like any other."""
        return aligned_empty(shape, dtypes.standardize_dtype(np.dtype(dtype)))

    def reduce_scatter(self, array: np.ndarray, op: str = "sum", out: np.ndarray | None = None) -> np.ndarray:
        """A copy of `array`; see `Communicator.reduce_scatter`."""
        check_reduction("reduce_scatter", array, op, self.rank)
        shape = share_of("reduce_scatter", array, self.rank, self.size)
        return _copied(array, make_target("reduce_scatter", out, shape, array.dtype, self.rank))

    def reduce_scatter_async(self, array: np.ndarray, op: str = "sum", out: np.ndarray | None = None) -> Handle:
        """`reduce_scatter`, complete at once."""
        return Handle(self.reduce_scatter(array, op, out))

    def all_gather(self, array: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """A copy of `array` with a first axis of length 1; see `Communicator.all_gather`."""
        check_array("all_gather", array, self.rank)
        return _copied(array[None], make_target("all_gather", out, (1, *array.shape), array.dtype, self.rank))

    def all_gather_async(self, array: np.ndarray, out: np.ndarray | None = None) -> Handle:
        """`all_gather`, complete at once."""
        return Handle(self.all_gather(array, out))

    def all_gatherv(self, array: np.ndarray) -> np.ndarray:
        """A copy of `array`; see `Communicator.all_gatherv`."""
        check_rows("all_gatherv", array, self.rank)
        return array.copy()

    def all_gather_in_place(self, array: np.ndarray, bounds: Sequence[int]) -> np.ndarray:
        """`array`; see `Communicator.all_gather_in_place`."""
        return check_bounds("all_gather_in_place", array, bounds, self.rank, self.size)

    def all_to_all(self, array: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """A copy of `array`; see `Communicator.all_to_all`."""
        check_items("all_to_all", array, self.rank, self.size)
        return _copied(array, make_target("all_to_all", out, array.shape, array.dtype, self.rank))

    def broadcast(self, array: np.ndarray, root: int = 0) -> np.ndarray:
        """`array`; see `Communicator.broadcast`."""
        check_array("broadcast", array, self.rank)
        check_root("broadcast", root, self.rank, self.size)
        return check_target("broadcast", array, array.shape, array.dtype, self.rank)

    def broadcast_object(self, value: Any, root: int = 0) -> Any:
        """`value` as it looks after a journey through JSON."""
        check_root("broadcast_object", root, self.rank, self.size)
        return json.loads(to_json("broadcast_object", value, self.rank))

    def all_gather_object(self, value: Any) -> list[Any]:
        """A list of `value` alone, as it looks after a journey through JSON."""
        return [json.loads(to_json("all_gather_object", value, self.rank))]

    def require_alike(self, call: str, array: np.ndarray, shape: tuple[int, ...] | None = None) -> None:
        """Nobody else to differ from."""

    def barrier(self) -> None:
        """Nobody else to wait for."""

    def barrier_async(self) -> Handle:
        """`barrier`, complete at once."""
        return Handle(None)

    def split(self, color: int) -> SerialCommunicator:
        """The same group of one."""
        check_color(color, self.rank)
        return self


def _copied(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    if target is not source:
        np.copyto(target, source)
    return target
