"""`EinsumDense`: a layer whose product with its weights is given in Einstein's notation."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from disttensor import activations, constraints, initializers, ops, regularizers
from disttensor.errors import ArgumentError, ShapeError
from disttensor.initializers import Initializer, VarianceScaling
from disttensor.layers.arguments import PartialShape, title
from disttensor.layers.layer import Layer
from disttensor.tensor import Tensor


class EinsumDense(Layer):
    """activation(einsum(equation, x, kernel) + bias): a `Dense` layer over any axes.

    Parameters
    ----------
    equation : str
        Of inputs, kernel and outputs, such as ``"abc,cd->abd"``. Inputs and outputs may begin with ``...`` or end with
        it, for any further axes.
    output_shape : int or sequence of int or None
        Sizes of the outputs' axes without the batch, and without those under ``...``; None for those that the inputs
        give.
    activation : str or callable, optional
        Default: none.
    bias_axes : str, optional
        Letters of the outputs: along which axes there is a bias of its own for each place. Default: no bias.
    kernel_initializer : str or Initializer, default "glorot_uniform"
    bias_initializer : str or Initializer, default "zeros"
    kernel_regularizer, bias_regularizer : str or Regularizer, optional
    kernel_constraint, bias_constraint : str or Constraint, optional
    **kwargs
        See `Layer`.

    Examples
    --------
    >>> import disttensor as keras
    >>> layer = keras.layers.EinsumDense("abc,cde->abde", output_shape=(None, 4, 16), bias_axes="de")
    >>> layer(keras.ops.ones((2, 10, 64))).shape
    (2, 10, 4, 16)
    """

    def __init__(
        self,
        equation: str,
        output_shape: int | Sequence[int | None],
        activation: Any = None,
        bias_axes: str | None = None,
        kernel_initializer: Any = "glorot_uniform",
        bias_initializer: Any = "zeros",
        kernel_regularizer: Any = None,
        bias_regularizer: Any = None,
        kernel_constraint: Any = None,
        bias_constraint: Any = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self._terms = _Terms.of(equation)
        self.equation = equation
        self.partial_output_shape = (output_shape,) if isinstance(output_shape, int) else tuple(output_shape)
        self.activation = activations.get(activation)
        self.bias_axes = bias_axes
        if not set(bias_axes or "") <= set(self._terms.outputs):
            raise ArgumentError(f"EinsumDense: bias_axes {bias_axes!r} must be letters of the outputs of {equation!r}.")
        self.kernel_initializer = initializers.get(kernel_initializer)
        self.bias_initializer = initializers.get(bias_initializer)
        self.kernel_regularizer = regularizers.get(kernel_regularizer)
        self.bias_regularizer = regularizers.get(bias_regularizer)
        self.kernel_constraint = constraints.get(kernel_constraint)
        self.bias_constraint = constraints.get(bias_constraint)
        self.supports_masking = True

    def build(self, input_shape: PartialShape) -> None:
        terms = self._terms
        inputs, outputs = self._sizes(input_shape)
        sizes = {**inputs, **outputs}
        self.kernel = self.add_weight(
            tuple(sizes[letter] for letter in terms.kernel), self._initializer_for_axes(), name="kernel",
            regularizer=self.kernel_regularizer, constraint=self.kernel_constraint,
        )  # fmt: skip
        self.bias = None
        if self.bias_axes:
            first = min(terms.outputs.index(letter) for letter in self.bias_axes)
            shape = [outputs[x] if x in self.bias_axes else 1 for x in terms.outputs[first:]]
            hidden = len(input_shape) - len(terms.inputs) if terms.dots == "right" else 0
            self.bias = self.add_weight(
                (*shape, *(1,) * hidden), self.bias_initializer, name="bias",
                regularizer=self.bias_regularizer, constraint=self.bias_constraint,
            )  # fmt: skip

    def call(self, inputs: Tensor) -> Tensor:
        outputs = ops.einsum(self.equation, inputs, self.kernel)
        return self.activation(outputs if self.bias is None else outputs + self.bias)

    def _sizes(self, input_shape: PartialShape) -> tuple[dict[str, int | None], dict[str, int | None]]:
        """The sizes of the letters of inputs and of outputs."""
        terms = self._terms
        hidden = len(input_shape) - len(terms.inputs)
        if hidden < 0 or (hidden and terms.dots == "none"):
            raise ShapeError(f"{title(self)} got an input of shape {input_shape}; its equation is {self.equation!r}.")
        visible = input_shape[hidden:] if terms.dots == "left" else input_shape[: len(terms.inputs)]
        inputs = dict(zip(terms.inputs, visible, strict=True))
        # The batch is the first axis, also where it is under the dots.
        given = self.partial_output_shape
        given = given if terms.dots == "left" and hidden else (input_shape[0], *given)
        if len(given) != len(terms.outputs):
            raise ShapeError(
                f"{title(self)}: output_shape {self.partial_output_shape} does not fit equation {self.equation!r}; it "
                "needs a size for each letter of the outputs but the batch."
            )
        outputs = dict(zip(terms.outputs, given, strict=True))
        for letter in inputs.keys() & outputs.keys():
            if outputs[letter] not in (None, inputs[letter]):
                raise ShapeError(
                    f"{title(self)}: axis {letter!r} of {self.equation!r} has size {inputs[letter]} in the inputs and "
                    f"{outputs[letter]} in output_shape."
                )
            outputs[letter] = inputs[letter]
        return inputs, outputs

    def _initializer_for_axes(self) -> Any:
        """The kernel's initializer, which is told what axes it sums over, if that matters to it."""
        given = self.kernel_initializer
        if not isinstance(given, VarianceScaling) or (given.input_axes is not None and given.output_axes is not None):
            return given
        terms = self._terms
        axes = {
            "output_axes": [a for a, letter in enumerate(terms.kernel) if letter in terms.outputs],
            "input_axes": [a for a, letter in enumerate(terms.kernel) if letter not in terms.outputs],
        }
        return type(given).from_config({**given.get_config(), **axes, "seed": given.seed})


class _Terms(NamedTuple):
    """The letters of an equation, and on which side of those of inputs and outputs the dots are."""

    inputs: str
    kernel: str
    outputs: str
    dots: str

    @classmethod
    def of(cls, equation: str) -> _Terms:
        match = re.fullmatch(
            r"(\.\.\.)?([a-zA-Z]+)(\.\.\.)?,([a-zA-Z]+)->(\.\.\.)?([a-zA-Z]+)(\.\.\.)?", equation.replace(" ", "")
        )
        if match is None or match[1] != match[5] or match[3] != match[7] or (match[1] and match[3]):
            raise ArgumentError(
                f"EinsumDense: equation {equation!r} must be like 'ab,bc->ac', '...ab,bc->...ac' or 'ab...,bc->ac...'."
            )
        inputs, kernel, outputs = match[2], match[4], match[6]
        if not set(kernel) <= set(inputs + outputs) or not set(outputs) <= set(inputs + kernel):
            raise ArgumentError(
                f"EinsumDense: in {equation!r} each letter of the kernel must be in inputs or outputs, and each of the "
                "outputs in inputs or kernel."
            )
        return cls(inputs, kernel, outputs, "left" if match[1] else "right" if match[3] else "none")


def fresh(initializer: Any) -> Any:
    """A copy of an initializer that draws other numbers, unless it was given a seed."""
    known = isinstance(initializer, Initializer)
    return type(initializer).from_config(initializer.get_config()) if known else initializer
