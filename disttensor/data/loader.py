"""`DataLoader`: this rank's slices of global batches as tensors, for loops of one's own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from disttensor import config, distributed, tree
from disttensor.context import Shard
from disttensor.data.adapter import make_adapter
from disttensor.data.batch import Batch, pack_x_y_sample_weight
from disttensor.data.dataset import Dataset
from disttensor.errors import DataError
from disttensor.random import global_seed
from disttensor.tensor import Tensor


class DataLoader:
    """Iterates over batches of arrays; each iteration is an epoch, shuffled in its own order.

    With several processes every rank gets its slice of each global batch. The tensors know which slice they are, so
    that gradients and metrics computed from them are exact means over the global batch.

    Parameters
    ----------
    x : array, nested structure of arrays, Dataset, PyDataset, or iterable of batches
    y, sample_weight : array or nested structure of arrays, optional
    batch_size : int, default 32
        Rows of the global batch.
    shuffle : bool or "batch", default False
    seed : int, optional
        Of the order; default: from `utils.set_random_seed`. That of a `Dataset` comes first.

    Yields
    ------
    x, (x, y) or (x, y, sample_weight)
        As tensors.

    Examples
    --------
    >>> import disttensor as dt
    >>> loader = dt.data.DataLoader(np.arange(5), batch_size=2)
    >>> [x.tolist() for x in loader]
    [[0, 1], [2, 3], [4]]
    """

    def __init__(
        self,
        x: Any,
        y: Any = None,
        sample_weight: Any = None,
        batch_size: int | None = None,
        shuffle: bool | str = False,
        seed: int | None = None,
    ):
        group = distributed.data_group()
        own = x.seed if isinstance(x, Dataset) else None
        seed = own if own is not None else global_seed() % (1 << 31) if seed is None else seed
        self._adapter = make_adapter(
            x, y, sample_weight, batch_size, shuffle=shuffle, rank=group.rank, size=group.size, seed=seed
        )
        self._seed = seed
        self._start = self._done = (0, 0)

    def __len__(self) -> int:
        if self._adapter.num_batches is None:
            raise TypeError("how many batches the iterable gives is not known beforehand.")
        return self._adapter.num_batches

    def __iter__(self) -> Iterator[Any]:
        epoch, start = self._start
        self._start = (epoch + 1, 0)
        for number, batch in enumerate(self._adapter.epoch(epoch, start), start + 1):
            self._done = (epoch, number)
            yield as_tensors(batch)
        self._done = (epoch + 1, 0)

    def get_state(self) -> dict[str, int]:
        """Where the loop stands: three numbers, to be kept in a checkpoint."""
        return {"epoch": self._done[0], "batch": self._done[1], "seed": self._seed}

    def set_state(self, state: dict[str, int]) -> None:
        """Let the next iteration go on behind the batch that was the last when `get_state` was called.

        Raises
        ------
        DataError
            If the order of that loop came from another seed.
        """
        if state["seed"] != self._seed:
            raise DataError(f"the state belongs to an order with seed {state['seed']}; this one has {self._seed}.")
        self._start = self._done = (int(state["epoch"]), int(state["batch"]))


def shard_of(batch: Batch) -> Shard | None:
    """What share of the global batch this is; None where one process computes the whole in one go."""
    ranks = distributed.data_group().size
    is_divided = ranks > 1 or config.virtual_shards() > 0
    return Shard(batch.local, batch.total, batch.offset, batch.total % ranks == 0) if is_divided else None


def as_tensors(batch: Batch) -> Any:
    """The arrays of a batch, as tensors that know their share of the global batch: x, (x, y) or (x, y, weights)."""
    shard = shard_of(batch)

    def wrap(part: Any) -> Any:
        if part is None:
            return None
        if type(part) is np.ndarray:
            return Tensor.wrap(part, shard)
        return tree.map_structure(wrap, part) if tree.is_nested(part) else Tensor.wrap(np.asarray(part), shard)

    return pack_x_y_sample_weight(wrap(batch.x), wrap(batch.y), wrap(batch.sample_weight))
