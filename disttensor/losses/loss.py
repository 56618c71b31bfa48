"""`Loss`: one number that says how wrong predictions are, exact over any number of ranks.

Each rank computes the mean over its own rows (see `disttensor.distributed.collectives`), so that Σᵣ wᵣ·lossᵣ with
wᵣ = rows of rank r / rows of the batch is the loss of the global batch. A divisor that depends on the data, such as the
number of unmasked steps, is therefore taken from the global batch by `sync_mean`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from disttensor import dtypes, ops, tree
from disttensor.distributed.collectives import sync_mean
from disttensor.errors import ArgumentError, SerializationError
from disttensor.naming import auto_name
from disttensor.ops.registry import public
from disttensor.saving.registration import Configurable, get_registered_object
from disttensor.tensor import Tensor, convert_to_tensor

REDUCTIONS = ("sum_over_batch_size", "sum", "mean", "mean_with_sample_weight", "none", None)
"""The reductions that a loss knows."""


FUNCTIONS: dict[str, Callable[..., Any]] = {}
"""The functions of labels and predictions that configurations may name."""


def sample_function(function: Callable[..., Any]) -> Callable[..., Any]:
    """Decorator: ``function(y_true, y_pred, ...)`` gives a value for each sample; losses and metrics may name it."""
    FUNCTIONS[function.__name__] = public(function)
    return FUNCTIONS[function.__name__]


LABEL_FUNCTIONS: list[Callable[..., Any]] = []
"""Sample functions whose targets are numbers of classes: integers among them are not made floating-point numbers."""


class Loss(Configurable):
    """Base of losses; subclasses define ``call(y_true, y_pred)``, one value for each sample.

    Parameters
    ----------
    name : str, optional
        Default: the class name in snake case.
    reduction : str or None, default "sum_over_batch_size"
        How the values of the samples become one:

        * "sum_over_batch_size" or "mean": their sum over the number of values;
        * "sum": their sum over the global batch;
        * "mean_with_sample_weight": their weighted sum over the sum of the weights;
        * "none" or None: they are returned as they are.
    dtype : dtype, optional
        Of the computation; default `config.floatx`.

    Examples
    --------
    >>> import disttensor as keras
    >>> class LargestError(keras.losses.Loss):
    ...     def call(self, y_true, y_pred):
    ...         return keras.ops.max(keras.ops.absolute(y_true - y_pred), axis=-1)
    >>> float(LargestError()([[0.0, 1.0]], [[0.5, 3.0]]))
    2.0
    """

    def __init__(self, name: str | None = None, reduction: str | None = "sum_over_batch_size", dtype: Any = None):
        if reduction not in REDUCTIONS:
            known = ", ".join(repr(r) for r in REDUCTIONS)
            raise ArgumentError(f"{type(self).__name__}: reduction must be one of {known}, got {reduction!r}.")
        self.name = name or auto_name(type(self).__name__)
        self.reduction = reduction
        self.dtype = dtypes.standardize_dtype(dtype)

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """The loss of each sample."""
        raise NotImplementedError(f"{type(self).__name__} must define call(self, y_true, y_pred).")

    def __call__(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> Tensor:
        """The reduced loss.

        Parameters
        ----------
        y_true, y_pred : tensor-like, or nested structures of them
            Cast to `dtype`. A mask that a layer left on `y_pred` weighs its masked entries with zero, and the others
            so that a mean is that of the unmasked entries.
        sample_weight : tensor-like, optional
            Of the shape of the values that `call` returns, or with fewer axes: one weight for each sample.

        Returns
        -------
        Tensor
            A scalar, or the values of the samples for reduction "none".
        """
        mask = getattr(y_pred, "_keras_mask", None)
        y_true, y_pred = self._targets(y_true), _tensors(y_pred, self.dtype)
        values = convert_to_tensor(self.call(y_true, y_pred), self.dtype)
        mask = _both(mask, values._keras_mask)
        return reduce_weighted_values(values, sample_weight, mask, self.reduction)

    def _targets(self, y_true: Any) -> Any:
        return _tensors(y_true, self.dtype)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments, with the name and the reduction."""
        return {**super().get_config(), "name": self.name, "reduction": self.reduction}


class LossFunctionWrapper(Loss):
    """A loss made of a function of ``(y_true, y_pred)``.

    Parameters
    ----------
    fn : callable
        ``fn(y_true, y_pred, **kwargs)`` returns one value for each sample.
    reduction, name, dtype
        See `Loss`; the default name is the function's.
    **kwargs
        Passed to the function.
    """

    def __init__(
        self,
        fn: Callable[..., Any],
        reduction: str | None = "sum_over_batch_size",
        name: str | None = None,
        dtype: Any = None,
        **kwargs: Any,
    ):
        super().__init__(name=name or getattr(fn, "__name__", None), reduction=reduction, dtype=dtype)
        self.fn = fn
        self._fn_kwargs = kwargs

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> LossFunctionWrapper:
        """A loss made from what `get_config` returned; a function is found by its name."""
        return super().from_config(with_function(config))

    def _targets(self, y_true: Any) -> Any:
        if any(self.fn is function for function in LABEL_FUNCTIONS) and hasattr(y_true, "dtype"):
            labels = convert_to_tensor(y_true)
            if dtypes.is_integer(labels.dtype):
                return labels
        return super()._targets(y_true)

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """The function's values."""
        if not (tree.is_nested(y_true) or tree.is_nested(y_pred)):
            y_true, y_pred = squeeze_or_expand_to_same_rank(y_true, y_pred)
        return self.fn(y_true, y_pred, **self._fn_kwargs)


def with_function(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration in which the name of the function ``fn``, if there is one, is replaced by the function."""
    name = config.get("fn")
    if not isinstance(name, str):
        return config
    function = FUNCTIONS.get(name) or get_registered_object(name)
    if function is None:
        raise SerializationError(
            f"function {name!r} is unknown. If it is yours, decorate it with register_keras_serializable, or pass "
            "custom_objects={name: function}."
        )
    return {**config, "fn": function}


def _tensors(x: Any, dtype: str) -> Any:
    """A tensor of each leaf of a structure; lists of numbers are one tensor."""
    if all(isinstance(leaf, (bool, int, float)) for leaf in tree.flatten(x)):
        return convert_to_tensor(x, dtype)
    return tree.map_structure(lambda leaf: convert_to_tensor(leaf, dtype), x)


def _both(a: Any, b: Any) -> Any:
    if a is None or b is None:
        return b if a is None else a
    return ops.logical_and(a, b)


def squeeze_or_expand_to_same_rank(x1: Tensor, x2: Tensor, expand_rank_1: bool = True) -> tuple[Tensor, Tensor]:
    """Give two tensors the same number of axes where one has a last axis of size 1 more than the other.

    Parameters
    ----------
    x1, x2 : Tensor
    expand_rank_1 : bool, default True
        Whether the shorter one gets the axis if it has only one; otherwise the longer one loses it.
    """
    if x1.ndim < x2.ndim:
        x2, x1 = squeeze_or_expand_to_same_rank(x2, x1, expand_rank_1)
    elif x1.ndim == x2.ndim + 1 and x1.shape[-1] == 1:
        if x2.ndim == 1 and expand_rank_1:
            x2 = ops.expand_dims(x2, -1)
        else:
            x1 = ops.squeeze(x1, -1)
    return x1, x2


def with_trailing_axes(weight: Tensor, ndim: int) -> Tensor:
    """Weights of samples with an axis of size 1 for each axis of the values that they lack; scalars stay scalars."""
    missing = ndim - weight.ndim if weight.ndim else 0
    return ops.reshape(weight, (*weight.shape, *[1] * missing)) if missing > 0 else weight


def reduce_weighted_values(
    values: Any, sample_weight: Any = None, mask: Any = None, reduction: str | None = "sum_over_batch_size"
) -> Tensor:
    """Weigh the values of samples and reduce them as `Loss` says.

    Parameters
    ----------
    values : floating-point Tensor, shape (batch, ...)
    sample_weight, mask : tensor-like, optional
        Of the same shape, or of its leading axes (one weight for each sample).
    reduction : str or None

    Returns
    -------
    Tensor
    """
    values = convert_to_tensor(values)
    if mask is not None:
        sample_weight = apply_mask(sample_weight, mask, values.dtype, reduction)
    if sample_weight is not None:
        sample_weight = convert_to_tensor(sample_weight, values.dtype)
        values, sample_weight = squeeze_or_expand_to_same_rank(values, sample_weight)
        sample_weight = with_trailing_axes(sample_weight, values.ndim)
        values = values * sample_weight
    if reduction in (None, "none") or values.shape == ():
        return values
    if reduction == "sum":
        return _sum_over_ranks(values)
    if reduction == "mean_with_sample_weight" and sample_weight is not None:
        rows = max(values.shape[0], 1)
        return divide_no_nan(ops.sum(values) / rows, sync_mean(ops.sum(sample_weight) / rows))
    # Without rows the sum is 0, and so is the mean: a rank with an empty slice adds nothing.
    return ops.sum(values) / max(values.size, 1)


def _sum_over_ranks(values: Tensor) -> Tensor:
    """A local value whose mean over the ranks, weighted by rows, is the sum over the global batch."""
    total = ops.sum(values)
    shard = values.shard
    if shard is None or shard.local == 0:
        return total
    return total * (ops.cast(shard.total, values.dtype) / shard.local)


def apply_mask(sample_weight: Any, mask: Any, dtype: str, reduction: str | None) -> Any:
    """Multiply a mask into the weights of samples.

    For a mean, what is not masked weighs 1 / (share of the global batch that is not masked), so that dividing by the
    number of all values gives the mean of the unmasked ones.
    """
    weight = ops.cast(mask, dtype)
    if reduction in ("mean", "sum_over_batch_size"):
        weight = divide_no_nan(weight, sync_mean(ops.sum(weight) / max(weight.size, 1)))
    if sample_weight is None:
        return weight
    weight, sample_weight = squeeze_or_expand_to_same_rank(weight, convert_to_tensor(sample_weight, dtype))
    return with_trailing_axes(weight, sample_weight.ndim) * with_trailing_axes(sample_weight, weight.ndim)


def divide_no_nan(x: Any, y: Any) -> Tensor:
    """``x / y``, and 0 where y is 0."""
    zero = ops.equal(y, 0)
    return ops.where(zero, 0.0, x / ops.where(zero, 1.0, y))
