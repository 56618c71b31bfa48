"""`Metric`: state that adds up over batches and ranks, and a result computed from it.

The state of a metric is made of sums (of values, of weights, of counts), so that of a global batch is the sum of the
ranks'. Every rank holds the global state after each update; results need no communication.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from typing import Any

from disttensor import dtypes, initializers, ops, tree
from disttensor.context import Shard
from disttensor.distributed.collectives import parts, weighted_sum_of_ranks
from disttensor.naming import auto_name
from disttensor.ops.registry import apply
from disttensor.saving.registration import Configurable
from disttensor.tensor import Tensor, Variable, convert_to_tensor


class _Update(threading.local):
    """The metric's update that runs; updates within it leave summing over ranks to it.

    Attributes
    ----------
    before : dict or None
        The state's variables, by identity, with the values they had; None if nothing runs.
    """

    before: dict[int, tuple[Variable, Tensor]] | None = None

    def note(self, variable: Variable) -> None:
        """Remember a variable's value, and let it start from zero."""
        assert self.before is not None
        self.before[id(variable)] = variable, variable.value
        variable.assign(ops.zeros_like(variable))


_update = _Update()


class Metric(Configurable):
    """Base of metrics.

    Subclasses make their state in ``__init__`` with `add_variable`, add to it in ``update_state`` and compute
    ``result`` from it. They need not know of ranks: if an argument of ``update_state`` is this rank's slice of a global
    batch, what the update added is summed over all ranks. So the state must be made of sums that begin with zero.

    Parameters
    ----------
    dtype : dtype, optional
        Of the state; default `config.floatx`.
    name : str, optional
        Default: the class name in snake case, with a number.

    Examples
    --------
    >>> import disttensor as keras
    >>> class Positives(keras.metrics.Metric):
    ...     def __init__(self, **kwargs):
    ...         super().__init__(**kwargs)
    ...         self.count = self.add_variable(shape=(), initializer="zeros", name="count")
    ...     def update_state(self, y_true, y_pred, sample_weight=None):
    ...         self.count.assign_add(keras.ops.sum(keras.ops.cast(y_pred > 0, self.dtype)))
    ...     def result(self):
    ...         return self.count.value
    >>> float(Positives()([0.0, 0.0, 0.0], keras.ops.convert_to_tensor([1.0, -1.0, 2.0])))
    2.0
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "update_state" in cls.__dict__:
            cls.update_state = _over_ranks(cls.update_state)  # type: ignore[method-assign]

    def __init__(self, dtype: Any = None, name: str | None = None):
        self.name = name or auto_name(type(self).__name__)
        self.dtype = dtypes.standardize_dtype(dtype)
        self._variables: list[Variable] = []

    def update_state(self, *args: Any, **kwargs: Any) -> Any:
        """Add a batch to the state."""
        raise NotImplementedError(f"{type(self).__name__} must define update_state().")

    def result(self) -> Any:
        """The value for the present state: a scalar tensor, or a dict of them."""
        raise NotImplementedError(f"{type(self).__name__} must define result().")

    def reset_state(self) -> None:
        """Set the state to zero."""
        for variable in self.variables:
            variable.assign(ops.zeros_like(variable))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Add a batch to the state and return the result."""
        self.update_state(*args, **kwargs)
        return self.result()

    def add_variable(
        self, shape: Any, initializer: Any, dtype: Any = None, aggregation: str = "sum", name: str | None = None
    ) -> Variable:
        """Make a variable of the state.

        Parameters
        ----------
        shape : tuple of int
        initializer : Initializer or str
            Use "zeros".
        dtype : dtype, optional
            Default: the metric's.
        aggregation : {"sum"}, default "sum"
            States of ranks are summed.
        name : str, optional
        """
        variable = Variable(
            initializers.get(initializer), tuple(shape), dtype or self.dtype, trainable=False, autocast=False,
            aggregation=aggregation, name=name,
        )  # fmt: skip
        variable.path = f"{self.name}/{variable.name}"
        self._variables.append(variable)
        if _update.before is not None:
            # The plan that is being traced must add to what later runs find in the variable.
            _update.note(variable)
        return variable

    def add_weight(
        self, shape: Any = (), initializer: Any = None, dtype: Any = None, name: str | None = None
    ) -> Variable:
        """Make a variable of the state; `add_variable` that begins with zeros unless told otherwise."""
        return self.add_variable(shape, initializer or "zeros", dtype, name=name)

    @property
    def variables(self) -> list[Variable]:
        """The state, with that of metrics kept in attributes."""
        return list({id(v): v for metric in self._metrics() for v in metric._variables}.values())

    def _metrics(self) -> Iterator[Metric]:
        yield self
        for value in self.__dict__.values():
            for part in tree.flatten(value):
                if isinstance(part, Metric):
                    yield from part._metrics()

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments, with the name."""
        return {**super().get_config(), "name": self.name}

    def __repr__(self) -> str:
        return f"<{type(self).__name__} name={self.name}>"


def _over_ranks(update: Callable[..., Any]) -> Callable[..., Any]:
    """An ``update_state`` that adds the ranks' updates together."""

    @functools.wraps(update)
    def update_state(self: Metric, *args: Any, **kwargs: Any) -> Any:
        shard = None if _update.before is not None or parts() == 1 else _shard_of((args, kwargs))
        if shard is None:
            return update(self, *args, **kwargs)
        before: dict[int, tuple[Variable, Tensor]] = {}
        _update.before = before
        try:
            for variable in self.variables:
                _update.note(variable)
            result = update(self, *args, **kwargs)
        except BaseException:
            for variable, value in before.values():
                variable.assign(value)
            raise
        finally:
            _update.before = None
        _add_deltas(list(before.values()), shard)
        return result

    return update_state


def _shard_of(arguments: Any) -> Shard | None:
    shards = (leaf.shard for leaf in tree.flatten(arguments) if isinstance(leaf, Tensor))
    return next((s for s in shards if s is not None), None)


def _add_deltas(before: list[tuple[Variable, Tensor]], shard: Shard) -> None:
    """Assign to each variable its value before, plus the sum over ranks of what it holds now.

    A rank without rows has weight 0 rather than a delta of zeros: what it computed may be NaN, and all ranks must meet
    in the same collectives.
    """
    weight = convert_to_tensor(float(shard.local > 0), "float64")
    for variable, value in before:
        variable.assign(value + apply(weighted_sum_of_ranks, [variable.value, weight], {}))
