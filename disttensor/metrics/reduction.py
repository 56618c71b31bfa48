"""Sums and means of values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from disttensor import ops
from disttensor.distributed.collectives import parts, weight_of
from disttensor.losses.loss import apply_mask, divide_no_nan, squeeze_or_expand_to_same_rank, with_function
from disttensor.metrics.metric import Metric
from disttensor.tensor import Tensor, convert_to_tensor


class Sum(Metric):
    """The weighted sum of all values.

    Parameters
    ----------
    name : str, default "sum"
    dtype : dtype, optional
        See `Metric`.

    Examples
    --------
    >>> float(Sum()([1.0, 3.0, 5.0, 7.0]))
    16.0
    """

    def __init__(self, name: str = "sum", dtype: Any = None):
        super().__init__(name=name, dtype=dtype)
        self.total = self.add_variable((), "zeros", name="total")

    def update_state(self, values: Any, sample_weight: Any = None) -> None:
        """Add values.

        Parameters
        ----------
        values : tensor-like
        sample_weight : tensor-like, optional
            One weight for each value, or for each sample (then its values are summed first).
        """
        values, _ = samplewise(values, sample_weight, ops.sum, self.dtype)
        self.total.assign_add(ops.sum(values))

    def result(self) -> Tensor:
        """The sum so far."""
        return self.total.value


class Mean(Metric):
    """The weighted mean of all values; 0 as long as there are none.

    Parameters
    ----------
    name : str, default "mean"
    dtype : dtype, optional
        See `Metric`.

    Examples
    --------
    >>> mean = Mean()
    >>> mean.update_state([1.0, 3.0, 5.0, 7.0], sample_weight=[1, 1, 0, 0])
    >>> float(mean.result())
    2.0
    """

    def __init__(self, name: str = "mean", dtype: Any = None):
        super().__init__(name=name, dtype=dtype)
        self.total = self.add_variable((), "zeros", name="total")
        self.count = self.add_variable((), "zeros", name="count")

    def update_state(self, values: Any, sample_weight: Any = None) -> None:
        """Add values.

        Parameters
        ----------
        values : tensor-like, shape (batch, ...) or ()
            All values of a sample count as one, their mean. A scalar computed from a batch, such as a loss, is a mean
            over its rows; those of all ranks count as one value together.
        sample_weight : tensor-like, optional
            One weight for each sample, or for each value. A scalar value with weight n counts as n values.
        """
        if sample_weight is None and isinstance(values, Tensor) and not values.shape and values.shard and parts() > 1:
            sample_weight = weight_of(values.shard)
        values, sample_weight = samplewise(values, sample_weight, ops.mean, self.dtype)
        self.total.assign_add(ops.sum(values))
        count = (values.shape or (1,))[0] if sample_weight is None else ops.sum(sample_weight)
        self.count.assign_add(count)

    def result(self) -> Tensor:
        """The mean so far."""
        return divide_no_nan(self.total.value, self.count.value)


class MeanMetricWrapper(Mean):
    """The weighted mean of what a function gives for labels and predictions.

    Parameters
    ----------
    fn : callable
        ``fn(y_true, y_pred, **kwargs)`` returns one value for each sample.
    name : str, optional
        Default: the function's.
    dtype : dtype, optional
        See `Metric`.
    **kwargs
        Passed to the function.
    """

    def __init__(self, fn: Callable[..., Any], name: str | None = None, dtype: Any = None, **kwargs: Any):
        super().__init__(name=name or fn.__name__, dtype=dtype)
        self._fn = fn
        self._fn_kwargs = kwargs

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> MeanMetricWrapper:
        """A metric made from what `get_config` returned; a function is found by its name."""
        return super().from_config(with_function(config))

    def update_state(  # type: ignore[override]
        self, y_true: Any, y_pred: Any, sample_weight: Any = None
    ) -> None:
        """Add a batch.

        Parameters
        ----------
        y_true, y_pred : tensor-like, shape (batch, ...)
            Entries that a mask on `y_pred` leaves out do not count.
        sample_weight : tensor-like, optional
        """
        mask = getattr(y_pred, "_keras_mask", None)
        values = self._fn(y_true, y_pred, **self._fn_kwargs)
        if mask is not None:
            sample_weight = apply_mask(sample_weight, mask, self.dtype, "sum")
        super().update_state(values, sample_weight)


def samplewise(
    values: Any, sample_weight: Any, reduce: Callable[..., Tensor], dtype: str
) -> tuple[Tensor, Tensor | None]:
    """One weighted value and one weight for each sample.

    Parameters
    ----------
    values : tensor-like, shape (batch, ...)
    sample_weight : tensor-like, optional
        With as many axes, or fewer.
    reduce : callable
        ``reduce(x, axis)``, how values of one sample become one.
    dtype : str
    """
    mask = getattr(values, "_keras_mask", None)
    values = ops.cast(values, dtype)
    if sample_weight is not None:
        sample_weight = convert_to_tensor(sample_weight, dtype)
        if mask is not None:
            sample_weight = apply_mask(sample_weight, mask, dtype, "sum")
        values, sample_weight = squeeze_or_expand_to_same_rank(values, sample_weight)
        values = _reduce_axes(values, sample_weight.ndim, reduce)
        sample_weight = ops.broadcast_to(sample_weight, values.shape)
        values = values * sample_weight
        sample_weight = _reduce_axes(sample_weight, 1, reduce)
    return _reduce_axes(values, 1, reduce), sample_weight


def _reduce_axes(x: Tensor, first: int, reduce: Callable[..., Tensor]) -> Tensor:
    return reduce(x, axis=tuple(range(first, x.ndim))) if x.ndim > first else x
