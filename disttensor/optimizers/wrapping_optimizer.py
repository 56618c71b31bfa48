"""`WrappingOptimizer`: what optimizers around another one have in common."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from disttensor.errors import ArgumentError
from disttensor.optimizers.optimizer import Optimizer
from disttensor.tensor import Variable


class WrappingOptimizer(Optimizer):
    """Base class of optimizers that change how gradients come to another one, which updates the weights.

    Counter, learning rate, exclusions from weight decay and averages are those of the inner optimizer.

    Parameters
    ----------
    inner_optimizer : Optimizer
    name : str, optional
    """

    def __init__(self, inner_optimizer: Optimizer, name: str | None = None):
        super().__init__(learning_rate=0.0, name=name)
        self.inner_optimizer = inner_optimizer

    @property
    def innermost(self) -> Optimizer:
        """See `Optimizer.innermost`."""
        return self.inner_optimizer.innermost

    def _refuse_divided(self, variables: Iterable[Variable]) -> None:
        """Raise ArgumentError if a variable is divided among ranks."""
        divided = [v.path for v in variables if v.partition is not None]
        if divided:
            raise ArgumentError(
                f"{self.name} cannot update {', '.join(divided)}, which are divided among ranks (set_grid): use the "
                "inner optimizer by itself."
            )

    def bytes_sent(self, variable: Variable) -> int:
        """See `Optimizer.bytes_sent`."""
        return self.inner_optimizer.bytes_sent(variable)

    @property
    def sends_rows(self) -> bool:
        """See `Optimizer.sends_rows`."""
        return self.inner_optimizer.sends_rows

    @property
    def iterations(self) -> Any:
        """How often the weights were updated."""
        return self.inner_optimizer.iterations

    @property
    def learning_rate(self) -> Any:
        """The learning rate of the inner optimizer; may be set."""
        return self.inner_optimizer.learning_rate

    @learning_rate.setter
    def learning_rate(self, value: Any) -> None:
        self.inner_optimizer.learning_rate = value

    def exclude_from_weight_decay(
        self, var_list: Sequence[Variable] | None = None, var_names: Sequence[str] | None = None
    ) -> None:
        """See `Optimizer.exclude_from_weight_decay`."""
        self.inner_optimizer.exclude_from_weight_decay(var_list, var_names)

    def finalize_variable_values(self, var_list: Iterable[Variable]) -> None:
        """See `Optimizer.finalize_variable_values`."""
        self.inner_optimizer.finalize_variable_values(var_list)
