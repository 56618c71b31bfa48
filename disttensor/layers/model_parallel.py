"""Layers whose weights the ranks of a model group divide among themselves (tensor parallelism).

They give what `Dense` and `Embedding` give, with the same first weights, for any grid of ranks
(`distributed.set_grid`), up to the rounding of sums; with one rank in the group they are the same layers. A
column-parallel layer followed by a row-parallel one costs one sum over ranks forward and one backward:

    ColumnParallelDense(4 * d, activation="gelu", gather_output=False)   each rank has its columns
    RowParallelDense(d, input_is_parallel=True)                          and adds up what they contribute

Reference: Shoeybi et al., "Megatron-LM: Training Multi-Billion Parameter Language Models Using Model Parallelism",
arXiv:1909.08053, 2019, section 3.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from disttensor import distributed, ops
from disttensor.constraints import NonNeg
from disttensor.distributed.partition import Partition, divided_size
from disttensor.errors import ArgumentError, ShapeError
from disttensor.layers.arguments import PartialShape, known_size, require_size, title
from disttensor.layers.core import Dense, Embedding
from disttensor.layers.layer import Layer
from disttensor.regularizers import L1, L1L2, L2
from disttensor.tensor import Tensor, Variable


def _add_part(
    layer: Layer, shape: tuple[int, ...], axis: int, initializer: Any, regularizer: Any, constraint: Any, name: str
) -> Variable:
    """This rank's part, along an axis, of a weight of this shape; the whole has the values it has with one rank."""
    group = distributed.model_group()
    if group.size == 1:
        return layer.add_weight(shape, initializer, name=name, regularizer=regularizer, constraint=constraint)
    for kind, given, known in (
        ("regularizer", regularizer, (L1, L2, L1L2)),  # sums over elements: parts add up
        ("constraint", constraint, (NonNeg,)),  # element by element
    ):
        if given is not None and not isinstance(given, known):
            raise ArgumentError(
                f"{title(layer)} has a {kind} {type(given).__name__} of the weight {name!r}, which no rank has whole; "
                f"possible are {', '.join(k.__name__ for k in known)}."
            )
    partition = Partition(axis, group)
    length = divided_size(f"{title(layer)}: axis {axis} of the weight {name!r}", shape[axis], group)

    def first_values(part_shape: Any, dtype: Any = None) -> Any:
        return partition.part_of(initializer(shape, dtype=dtype))

    part = (*shape[:axis], length, *shape[axis + 1 :])
    variable = layer.add_weight(part, first_values, name=name, constraint=constraint)
    variable.partition = partition
    variable.regularizer = _of_whole(regularizer) if regularizer is not None else None
    return variable


def _of_whole(regularizer: Callable[[Any], Tensor]) -> Callable[[Any], Tensor]:
    return lambda part: distributed.reduce_from_group(regularizer(part))


class ColumnParallelDense(Dense):
    """`Dense` with its columns, and so its outputs, divided among the ranks of the model group.

    Parameters
    ----------
    units : int
        How many outputs there are on all ranks together; a multiple of the group's size.
    activation, use_bias, **kwargs
        See `Dense`. Regularizers may be L1, L2 or both, constraints `NonNeg`.
    gather_output : bool, default True
        Whether every rank gets all outputs, as `Dense` gives them. Without it each keeps its own units / size, for
        a `RowParallelDense` with ``input_is_parallel=True`` or something that works on each output alone.

    Examples
    --------
    >>> import disttensor as dt
    >>> dt.layers.ColumnParallelDense(8)(dt.ops.ones((2, 3))).shape
    (2, 8)
    """

    def __init__(
        self, units: int, activation: Any = None, use_bias: bool = True, *, gather_output: bool = True, **kwargs: Any
    ):
        super().__init__(units, activation, use_bias, **kwargs)
        self.gather_output = bool(gather_output)
        if self.activity_regularizer is not None and not gather_output:
            raise ArgumentError("ColumnParallelDense: an activity_regularizer needs gather_output=True.")

    def build(self, input_shape: PartialShape) -> None:
        if len(input_shape) < 2:
            raise ShapeError(f"{title(self)} got an input of shape {input_shape}; it needs (batch, features).")
        self.features = known_size(self, input_shape, -1, "features")
        self.kernel = _add_part(
            self, (self.features, self.units), 1, self.kernel_initializer, self.kernel_regularizer,
            self.kernel_constraint, "kernel",
        )  # fmt: skip
        if self.use_bias:
            self.bias = _add_part(
                self, (self.units,), 0, self.bias_initializer, self.bias_regularizer, self.bias_constraint, "bias"
            )

    def call(self, inputs: Tensor) -> Tensor:
        outputs = super().call(distributed.copy_to_group(inputs))
        return distributed.gather_from_group(outputs) if self.gather_output else outputs


class RowParallelDense(Dense):
    """`Dense` with its rows, and so its inputs, divided among the ranks of the model group; every rank has all outputs.

    The bias is on all ranks and added once.

    Parameters
    ----------
    units : int
    activation, use_bias, **kwargs
        See `Dense`. The kernel's regularizer may be L1, L2 or both, its constraint `NonNeg`.
    input_is_parallel : bool, default False
        Whether the input is this rank's part of the features already, as `ColumnParallelDense` leaves it with
        ``gather_output=False``. Otherwise each rank takes its part of a whole input, whose features must be a multiple
        of the group's size.

    Examples
    --------
    >>> import disttensor as dt
    >>> dt.layers.RowParallelDense(8)(dt.ops.ones((2, 3))).shape
    (2, 8)
    """

    def __init__(
        self,
        units: int,
        activation: Any = None,
        use_bias: bool = True,
        *,
        input_is_parallel: bool = False,
        **kwargs: Any,
    ):
        super().__init__(units, activation, use_bias, **kwargs)
        self.input_is_parallel = bool(input_is_parallel)

    def build(self, input_shape: PartialShape) -> None:
        if len(input_shape) < 2:
            raise ShapeError(f"{title(self)} got an input of shape {input_shape}; it needs (batch, features).")
        self.features = known_size(self, input_shape, -1, "features")
        whole = self.features * (distributed.model_group().size if self.input_is_parallel else 1)
        self.kernel = _add_part(
            self, (whole, self.units), 0, self.kernel_initializer, self.kernel_regularizer, self.kernel_constraint,
            "kernel",
        )  # fmt: skip
        if self.use_bias:
            self.bias = self.add_weight(
                (self.units,), self.bias_initializer, name="bias",
                regularizer=self.bias_regularizer, constraint=self.bias_constraint,
            )  # fmt: skip

    def call(self, inputs: Tensor) -> Tensor:
        require_size(self, inputs.shape, -1, self.features, "features")
        part = inputs if self.input_is_parallel else distributed.scatter_to_group(inputs)
        outputs = distributed.reduce_from_group(ops.matmul(part, self.kernel))
        if self.use_bias:
            outputs = outputs + self.bias
        return self.activation(outputs)


class VocabParallelEmbedding(Embedding):
    """`Embedding` with its rows divided among the ranks of the model group; every rank has all outputs.

    Each rank looks up the integers whose rows it holds; the sum over ranks has one term that is not zero, so that it is
    exact.

    Parameters
    ----------
    input_dim : int
        A multiple of the group's size: enlarge it, if need be.
    output_dim : int
    **kwargs
        See `Embedding`. The regularizer may be L1, L2 or both, the constraint `NonNeg`.

    Examples
    --------
    >>> import disttensor as dt
    >>> dt.layers.VocabParallelEmbedding(1000, 64)(dt.ops.zeros((32, 10), "int32")).shape
    (32, 10, 64)
    """

    def build(self, input_shape: PartialShape | None = None) -> None:
        self.embeddings = _add_part(
            self, (self.input_dim, self.output_dim), 0, self.embeddings_initializer, self.embeddings_regularizer,
            self.embeddings_constraint, "embeddings",
        )  # fmt: skip

    def call(self, inputs: Tensor) -> Tensor:
        group = distributed.model_group()
        if group.size == 1:
            return super().call(inputs)
        if inputs.dtype not in ("int32", "int64"):
            inputs = ops.cast(inputs, "int32")
        rows = self.embeddings.shape[0]
        place = inputs - group.rank * rows
        is_here = ops.logical_and(place >= 0, place < rows)
        nothing = ops.take(ops.zeros((self.input_dim,), inputs.dtype), inputs)  # raises for what no rank holds
        found = ops.take(self.embeddings, ops.where(is_here, place, nothing), axis=0)
        own = ops.where(ops.expand_dims(is_here, -1), found, 0)
        return ops.cast(distributed.reduce_from_group(own), self.compute_dtype)
