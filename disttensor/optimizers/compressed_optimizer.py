"""`CompressedOptimizer`: ranks send gradients in fewer bytes, and send later what that left out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from disttensor import distributed, ops
from disttensor.context import state
from disttensor.distributed.collectives import part_of_mean, parts, sync_sum
from disttensor.distributed.partition import Term
from disttensor.errors import ArgumentError
from disttensor.optimizers.checking import check_gradients
from disttensor.optimizers.optimizer import Optimizer
from disttensor.optimizers.wrapping_optimizer import WrappingOptimizer
from disttensor.saving.registration import Configurable, serialize_keras_object
from disttensor.tensor import Tensor, Variable

_HALF = ("bfloat16", "float16")


class PowerSGD(Configurable):
    """Compression of gradients to matrices of low rank, for `CompressedOptimizer`.

    Of a gradient M, as a matrix (all axes but the last, last) of n × m numbers, (n + m)·rank are sent: P = M·Q, made
    orthonormal, and Mᵀ·P, which is the Q of the next step. Smaller tensors are sent as they are.

    Parameters
    ----------
    rank : int, default 4
        More is more exact and sends more.

    References
    ----------
    Vogels, Karimireddy and Jaggi, "PowerSGD: Practical Low-Rank Gradient Compression for Distributed Optimization",
    NeurIPS 2019.
    """

    def __init__(self, rank: int = 4):
        if type(rank) is not int or rank < 1:
            raise ArgumentError(f"PowerSGD: rank must be a positive int, got {rank!r}.")
        self.rank = rank

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {"rank": self.rank}


class CompressedOptimizer(WrappingOptimizer):
    """Lets ranks send compressed gradients to one another, for links that are slow.

    What a rank's message leaves out of its gradient is added to the gradient of the next step (error feedback), so that
    nothing is lost, but some is late. With one process nothing is compressed. Results depend on the number of
    processes, therefore, and deterministic mode refuses it.

    A checkpoint holds the sum of what the ranks still owe; a run that goes on from it divides it among its ranks, and
    so does not have the bits of one that was not interrupted.

    Parameters
    ----------
    inner_optimizer : Optimizer
        Gradients are exchanged in every step, also if it accumulates them.
    compression : {"bfloat16", "float16"} or PowerSGD, default "bfloat16"
        Half the bytes, of the range of float32 or of more digits; or low rank.
    name : str, optional

    Raises
    ------
    ArgumentError
        If it is no such compression, or there is no optimizer to wrap.

    References
    ----------
    Seide, Fu, Droppo, Li and Yu, "1-bit stochastic gradient descent and its application to data-parallel distributed
    training of speech DNNs", Interspeech 2014: error feedback.

    Examples
    --------
    >>> import disttensor as keras
    >>> optimizer = keras.optimizers.CompressedOptimizer(keras.optimizers.SGD(0.1), keras.optimizers.PowerSGD(rank=2))
    """

    def __init__(self, inner_optimizer: Optimizer, compression: Any = "bfloat16", name: str | None = None):
        if not isinstance(inner_optimizer, Optimizer) or hasattr(inner_optimizer, "inner_optimizer"):
            raise ArgumentError(f"CompressedOptimizer needs a plain optimizer to wrap, got {inner_optimizer!r}.")
        if compression not in _HALF and not isinstance(compression, PowerSGD):
            raise ArgumentError(f"compression must be 'bfloat16', 'float16' or a PowerSGD, got {compression!r}.")
        super().__init__(inner_optimizer, name)
        self.compression = compression
        self.loss_scale_factor = inner_optimizer.loss_scale_factor
        self.is_update_step = inner_optimizer.is_update_step
        inner_optimizer.sums_over_ranks_first = True
        self._owed: list[Variable | None] = []
        self._factors: list[Variable | None] = []

    def build(self, variables: Sequence[Variable]) -> None:
        """Make the slots of the inner optimizer, and what compression keeps."""
        self._refuse_divided(variables)
        self.inner_optimizer.build(variables)
        self._trainable_variables = list(variables)
        self._index = {id(v): i for i, v in enumerate(self._trainable_variables)}
        self._owed = [self._like(v, "owed", "zeros") if self._compresses(v.shape) else None for v in variables]
        for owed in self._owed:
            if owed is not None:
                owed.partition = Term(distributed.data_group())
        self._factors = [self._factor(i, v) for i, v in enumerate(variables)]
        self.built = True

    def _compresses(self, shape: tuple[int, ...]) -> bool:
        if not isinstance(self.compression, PowerSGD):
            return True
        rows, columns = _matrix(shape)
        return (rows + columns) * self.compression.rank < rows * columns

    def _factor(self, number: int, variable: Variable) -> Variable | None:
        if not isinstance(self.compression, PowerSGD) or not self._compresses(variable.shape):
            return None
        factor = self._like(variable, "factor", "zeros")
        columns = _matrix(variable.shape)[1]
        start = np.random.default_rng(number).normal(size=(columns, self.compression.rank)).astype("float32")
        factor = Variable(start, trainable=False, autocast=False, name=factor.name)
        factor.path = f"{self.name}/{factor.name}"
        return factor

    @property
    def variables(self) -> list[Variable]:
        """The state of the inner optimizer, what this rank owes, and the factors of PowerSGD."""
        own = [v for v in (*self._owed, *self._factors) if v is not None]
        return [*self.inner_optimizer.variables, *own]

    @property
    def replicated_variables(self) -> list[Variable]:
        """See `Optimizer.replicated_variables`."""
        return [*self.inner_optimizer.replicated_variables, *(v for v in self._factors if v is not None)]

    def mean_gradients(
        self, grads: Sequence[Any], trainable_variables: Sequence[Variable] | None = None
    ) -> tuple[list[Tensor], list[Variable]]:
        """The sums of what ranks sent, and the variables they belong to; see `Optimizer.mean_gradients`."""
        if not self.built and trainable_variables is not None:
            self.build(list(trainable_variables))
        if state.virtual_shards:
            raise ArgumentError(
                f"{self.name} cannot be used in deterministic mode, since what ranks leave out depends on their "
                "number: use the inner optimizer by itself, or call config.disable_determinism()."
            )
        if parts() == 1:
            return self.inner_optimizer.mean_gradients(grads, trainable_variables)
        variables = self._trainable_variables if trainable_variables is None else list(trainable_variables)
        check_gradients(self.name, list(grads), variables, known=self._index)
        pairs = [(g, v) for g, v in zip(grads, variables, strict=True) if g is not None]
        return [self._exchanged(g, self._index[id(v)]) for g, v in pairs], [v for _, v in pairs]

    def _exchanged(self, gradient: Tensor, number: int) -> Tensor:
        """The sum of the ranks' compressed shares of the mean."""
        share, owed = part_of_mean(gradient), self._owed[number]
        if owed is None:
            return sync_sum(share)
        share = share + ops.cast(owed.value, share.dtype)
        factor = self._factors[number]
        if factor is None:
            sent = ops.cast(share, self.compression)
            total, sent = ops.cast(sync_sum(sent), share.dtype), ops.cast(sent, share.dtype)
        else:
            matrix = ops.reshape(share, _matrix(gradient.shape))
            left = _orthonormal(sync_sum(ops.matmul(matrix, ops.cast(factor.value, share.dtype))))
            own = ops.matmul(ops.transpose(matrix), left)
            right = sync_sum(own)
            factor.assign(ops.cast(right, "float32"))
            total, sent = (ops.reshape(ops.matmul(left, ops.transpose(q)), gradient.shape) for q in (right, own))
        left_out = share - sent
        # A step that overflowed leaves nothing behind that would spoil the next.
        owed.assign(ops.cast(ops.where(ops.isfinite(left_out), left_out, 0.0), owed.dtype))
        return total

    def bytes_sent(self, variable: Variable) -> int:
        """How long the gradient of a variable is where ranks sum it."""
        size = int(variable.memory.nbytes)
        if not self._compresses(variable.shape):
            return size
        if isinstance(self.compression, PowerSGD):
            return size * self.compression.rank * sum(_matrix(variable.shape)) // math.prod(variable.shape)
        return 2 * math.prod(variable.shape)

    @property
    def sends_rows(self) -> bool:
        """Never: what is left out of a gradient may be in any row."""
        return False

    def apply_mean(self, gradients: list[Tensor], variables: list[Variable]) -> None:
        """One step of the inner optimizer."""
        self.inner_optimizer.apply_mean(gradients, variables)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        compression = self.compression
        return {
            "name": self.name,
            "inner_optimizer": serialize_keras_object(self.inner_optimizer),
            "compression": serialize_keras_object(compression) if isinstance(compression, PowerSGD) else compression,
        }


def _matrix(shape: tuple[int, ...]) -> tuple[int, int]:
    """Rows and columns of a gradient of PowerSGD."""
    columns = shape[-1] if shape else 1
    return int(np.prod(shape[:-1], dtype=np.int64)), columns


def _orthonormal(columns: Tensor) -> Tensor:
    """Gram and Schmidt's orthonormal columns; one that depends on those before it becomes (nearly) zero."""
    found: list[Tensor] = []
    for i in range(columns.shape[1]):
        column = columns[:, i]
        for other in found:
            column = column - other * ops.sum(other * column)
        found.append(column / (ops.sqrt(ops.sum(ops.square(column))) + 1e-12))
    return ops.stack(found, axis=1)
