"""Which steps of an optimizer that accumulates gradients are those that change the weights."""

from __future__ import annotations

import weakref
from typing import Any

from disttensor.context import state
from disttensor.errors import ArgumentError
from disttensor.tensor import Variable


class EveryNth:
    """Says of each step whether n are full with it.

    The host decides, from the number of steps done, so that the other steps contain neither update nor communication.
    A trace holds for steps of its kind only, so that a function has a plan for each.

    Parameters
    ----------
    n : int
    counter : Variable
        How many steps were done; whoever asks adds one to it in each step.
    name : str
        Of the optimizer, for errors.
    """

    def __init__(self, n: int, counter: Variable, name: str):
        self.n = n
        self.may_skip = False
        """Whether some steps turn out not to count when they have run (because of an overflow)."""
        self._counter = counter
        self._name = name
        self._trace: weakref.ref[Any] | None = None
        self._steps_in_trace = 0

    def __call__(self) -> bool:
        """Whether the step that is being taken or traced is an n-th one."""
        earlier = self._steps_earlier_in_trace()

        def is_nth() -> bool:
            return (int(self._counter.memory) + earlier + 1) % self.n == 0

        answer = is_nth()
        if state.tracer is not None:
            state.tracer.assume(is_nth, answer)
        return answer

    def _steps_earlier_in_trace(self) -> int:
        """How many steps the present trace holds already; they are not in the counter's memory."""
        if state.tracer is None:
            return 0
        if self._trace is None or self._trace() is not state.tracer:
            self._trace, self._steps_in_trace = weakref.ref(state.tracer), 0
        self._steps_in_trace += 1
        if self._steps_in_trace > 1 and self.may_skip:
            raise ArgumentError(
                f"{self._name}: with gradient_accumulation_steps and a loss scale, one traced function can take one "
                "step only, because whether a step counts shows when it has run. Call apply() once in it."
            )
        return self._steps_in_trace - 1
