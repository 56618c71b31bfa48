"""Reverse-mode differentiation: `GradientTape` and `custom_gradient`.

A tape writes down every operator applied to what it watches. `gradient` walks the list backwards and lets each
operator's own rule (see `disttensor.ops.registry`) turn the gradient of its outputs into gradients of its inputs.
The rules are made of operators, so a second tape, or a trace, sees them like any other computation.

For complex values the gradient of a real loss L with respect to z = x + iy is ∂L/∂x + i·∂L/∂y, so that z − η·gradient
descends (the convention of TensorFlow and PyTorch).

References
----------
Griewank and Walther, "Evaluating Derivatives", 2nd edition, SIAM 2008, chapter 3.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from disttensor import dtypes, tree
from disttensor.context import state
from disttensor.errors import ArgumentError, ShapeError, TracingError
from disttensor.ops.backpropagation import Gradients, Recording, accumulate, zeros_of
from disttensor.ops.core import broadcast_to, identity
from disttensor.ops.registry import Context
from disttensor.tensor import Tensor, Variable, convert_to_tensor


class GradientTape:
    """Records operations in its ``with`` block and differentiates them.

    Parameters
    ----------
    persistent : bool, default False
        Whether `gradient` may be called more than once. Otherwise the record is dropped by the first call.
    watch_accessed_variables : bool, default True
        Whether trainable variables are watched as soon as they are read.

    Examples
    --------
    >>> import disttensor as dt
    >>> x = dt.Variable(3.0)
    >>> with dt.GradientTape() as tape:
    ...     y = x * x
    >>> float(tape.gradient(y, x))
    6.0
    """

    def __init__(self, persistent: bool = False, watch_accessed_variables: bool = True):
        self._persistent = persistent
        self._watch_variables = watch_accessed_variables
        self._recording: Recording | None = Recording()
        self._values: dict[int, list[Tensor]] = {}
        self._variables: dict[int, Variable] = {}

    def __enter__(self) -> GradientTape:
        state.recorders = (*state.recorders, self)
        return self

    def __exit__(self, *exception: object) -> None:
        state.recorders = tuple(r for r in state.recorders if r is not self)

    def watch(self, tensor: Any) -> None:
        """Follow a tensor or variable (or a nested structure of them) from here on."""
        for leaf in tree.flatten(tensor):
            if isinstance(leaf, Variable):
                self._variables[id(leaf)] = leaf
                self.read(leaf, leaf.value)
            elif isinstance(leaf, Tensor):
                if not dtypes.is_inexact(leaf.dtype):
                    raise ArgumentError(
                        f"GradientTape.watch() needs floating-point or complex tensors, got {leaf.dtype}."
                    )
                if self._recording is not None:
                    self._recording.follow(leaf)
            else:
                raise ArgumentError(
                    f"GradientTape.watch() needs tensors or variables, got {type(leaf).__name__}; make one with "
                    "ops.convert_to_tensor."
                )

    def watched_variables(self) -> list[Variable]:
        """The variables that were read while the tape watched."""
        return list(self._variables.values())

    def reset(self) -> None:
        """Forget everything recorded so far."""
        self.__init__(self._persistent, self._watch_variables)  # type: ignore[misc]

    def stop_recording(self) -> _Paused:
        """A context in which this tape records nothing."""
        return _Paused(self)

    def read(self, variable: Variable, value: Tensor) -> None:
        """Called when a variable is read: the value stands for the variable."""
        watched = id(variable) in self._variables
        if not watched and not (self._watch_variables and variable.trainable and dtypes.is_inexact(variable.dtype)):
            return
        self._variables[id(variable)] = variable
        if self._recording is not None and not self._recording.follows(value):
            self._recording.follow(value)
            self._values.setdefault(id(variable), []).append(value)

    def record(self, op: Any, inputs: Sequence[Tensor], attrs: dict[str, Any], outputs: Sequence[Tensor]) -> None:
        """Called for every operator applied while the tape is active."""
        if self._recording is not None:
            self._recording.record(op, inputs, attrs, outputs)

    def gradient(
        self, target: Any, sources: Any, output_gradients: Any = None, unconnected_gradients: str = "none"
    ) -> Any:
        """Gradients of the sum of all elements of the target with respect to the sources.

        Parameters
        ----------
        target : tensor, or nested structure of tensors
        sources : tensor or variable, or nested structure of them
        output_gradients : like target, optional
            Weights of the target's elements; default ones.
        unconnected_gradients : {"none", "zero"}, default "none"
            What stands for the gradient of a source that the target does not depend on.

        Returns
        -------
        nested structure of Tensor
            Like `sources`, each of the shape and dtype of its source.

        Raises
        ------
        ArgumentError
            If the tape is not persistent and was used before.
        """
        if unconnected_gradients not in ("none", "zero"):
            raise ArgumentError(f"unconnected_gradients must be 'none' or 'zero', got {unconnected_gradients!r}.")
        recording = self._recording
        if recording is None:
            raise ArgumentError(
                "a GradientTape that is not persistent gives gradients once; use GradientTape(persistent=True)."
            )
        with self.stop_recording():
            gradients = self._seed(target, output_gradients)
            recording.propagate(gradients)
            found = [self._gradient_of(source, gradients, unconnected_gradients) for source in tree.flatten(sources)]
        if not self._persistent:
            self._recording, self._values = None, {}
        return tree.pack_sequence_as(sources, found)

    def _seed(self, target: Any, output_gradients: Any) -> Gradients:
        targets = [t.value if isinstance(t, Variable) else convert_to_tensor(t) for t in tree.flatten(target)]
        weights = [None] * len(targets) if output_gradients is None else tree.flatten(output_gradients)
        if len(weights) != len(targets):
            raise ArgumentError(f"gradient() got {len(targets)} targets but {len(weights)} output_gradients.")
        gradients: Gradients = {}
        for tensor, weight in zip(targets, weights, strict=True):
            if not dtypes.is_inexact(tensor.dtype):
                continue
            seed = convert_to_tensor(1 if weight is None else weight, tensor.dtype)
            if weight is not None and seed.shape != tensor.shape:
                raise ShapeError(f"output_gradients has shape {seed.shape} for a target of shape {tensor.shape}.")
            accumulate(gradients, tensor, broadcast_to(seed, tensor.shape))
        return gradients

    def _gradient_of(self, source: Any, gradients: Gradients, unconnected: str) -> Tensor | None:
        values = self._values.get(id(source), []) if isinstance(source, Variable) else [source]
        total = None
        for value in values:
            gradient = gradients.get(id(value))
            if gradient is not None:
                total = gradient if total is None else total + gradient
        if total is None and unconnected == "zero":
            total = zeros_of(source)
        return total


class _Paused:
    """Takes a tape out of the active ones for a while."""

    def __init__(self, tape: GradientTape):
        self._tape = tape

    def __enter__(self) -> None:
        self._saved = state.recorders
        state.recorders = tuple(r for r in state.recorders if r is not self._tape)

    def __exit__(self, *exception: object) -> None:
        state.recorders = self._saved


def custom_gradient(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a function a gradient of its own.

    Parameters
    ----------
    function : callable
        ``function(*tensors)`` returns ``(outputs, gradient)``, where ``gradient(*output_gradients)`` returns one
        gradient for each tensor argument. If the function reads trainable variables, `gradient` must accept a keyword
        ``variables`` and return ``(argument_gradients, variable_gradients)``.

    Returns
    -------
    callable
        ``wrapped(*tensors)`` that returns the outputs.

    Examples
    --------
    A step function through which the gradient passes unchanged (the straight-through estimator):

    >>> import disttensor as dt
    >>> @dt.custom_gradient
    ... def straight_through(x):
    ...     return dt.ops.sign(x), lambda upstream: upstream
    """

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        inputs = [convert_to_tensor(a) for a in args]
        if not state.recorders:  # nobody will ask for the gradient
            outputs, _ = function(*inputs, **kwargs)
            return tree.map_structure(convert_to_tensor, outputs)
        with GradientTape() as inner:
            outer = tuple(r for r in state.recorders if r is not inner)
            state.recorders = (inner,)
            try:
                outputs, gradient = function(*inputs, **kwargs)
            finally:
                state.recorders = (*outer, inner)
        variables = inner.watched_variables()
        # Outputs of our own, so that what an input passes through unchanged is still told from the input.
        flat = [_fresh(convert_to_tensor(o)) for o in tree.flatten(outputs)]
        op = _CustomOperator(getattr(function, "__name__", "custom"), gradient, len(inputs), variables)
        all_inputs = [*inputs, *(v.value for v in variables)]
        for recorder in state.recorders:
            recorder.record(op, all_inputs, {}, flat)
        return tree.pack_sequence_as(outputs, flat)

    return wrapped


def _fresh(tensor: Tensor) -> Tensor:
    saved, state.recorders = state.recorders, ()
    try:
        return identity(tensor)
    finally:
        state.recorders = saved


class _CustomOperator:
    """What a tape sees of a function with a gradient of its own."""

    rule = None

    def __init__(self, name: str, gradient: Callable[..., Any], arguments: int, variables: list[Variable]):
        self.name = name
        self._gradient = gradient
        self._arguments = arguments
        self._variables = variables

    def gradient_rule(self, ctx: Context, *gradients: Tensor) -> list[Any]:
        """The user's gradient function on the gradients of the outputs."""
        if self._variables:
            found, of_variables = self._gradient(*gradients, variables=self._variables)
        else:
            found, of_variables = self._gradient(*gradients), []
        found = list(found) if isinstance(found, (tuple, list)) else [found]
        if len(found) != self._arguments:
            raise TracingError(
                f"the gradient of custom_gradient function {self.name!r} returned {len(found)} gradients for "
                f"{self._arguments} arguments."
            )
        return [*found, *of_variables]
