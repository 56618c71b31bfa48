"""Activations that have parameters or weights of their own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from disttensor import activations, constraints, dtypes, initializers, ops, regularizers
from disttensor.errors import ArgumentError
from disttensor.layers.arguments import PartialShape, known_size
from disttensor.layers.layer import Layer
from disttensor.tensor import Tensor


class ReLU(Layer):
    """Rectified linear unit: x above `threshold`, but at most `max_value`; else negative_slope·(x − threshold).

    Parameters
    ----------
    max_value : float, optional
        Default: no bound.
    negative_slope : float, default 0.0
    threshold : float, default 0.0
        None of the three may be negative.
    **kwargs
        See `Layer`.

    Examples
    --------
    >>> import disttensor as keras
    >>> keras.layers.ReLU(max_value=6.0)(keras.ops.convert_to_tensor([-1.0, 2.0, 9.0])).tolist()
    [0.0, 2.0, 6.0]
    """

    def __init__(
        self, max_value: float | None = None, negative_slope: float = 0.0, threshold: float = 0.0, **kwargs: Any
    ):
        super().__init__(**kwargs)
        for name, value in (("max_value", max_value), ("negative_slope", negative_slope), ("threshold", threshold)):
            if not (value is None and name == "max_value"):
                _not_negative("ReLU", name, value)
        self.max_value = max_value
        self.negative_slope = negative_slope
        self.threshold = threshold
        self.supports_masking = True

    def call(self, inputs: Tensor) -> Tensor:
        return activations.relu(inputs, self.negative_slope, self.max_value, self.threshold)


class LeakyReLU(Layer):
    """x where it is positive, else negative_slope·x.

    Parameters
    ----------
    negative_slope : float, default 0.3
    **kwargs
        See `Layer`.
    """

    def __init__(self, negative_slope: float = 0.3, **kwargs: Any):
        super().__init__(**kwargs)
        self.negative_slope = _not_negative("LeakyReLU", "negative_slope", negative_slope)
        self.supports_masking = True

    def call(self, inputs: Tensor) -> Tensor:
        return activations.leaky_relu(inputs, self.negative_slope)


class ELU(Layer):
    """x where it is positive, else alpha·(eˣ − 1).

    Parameters
    ----------
    alpha : float, default 1.0
    **kwargs
        See `Layer`.

    References
    ----------
    Clevert, Unterthiner, Hochreiter, "Fast and accurate deep network learning by exponential linear units", 2015.
    """

    def __init__(self, alpha: float = 1.0, **kwargs: Any):
        super().__init__(**kwargs)
        self.alpha = alpha
        self.supports_masking = True

    def call(self, inputs: Tensor) -> Tensor:
        return activations.elu(inputs, self.alpha)


class Softmax(Layer):
    """Probabilities from logits: eˣ / Σ eˣ.

    Parameters
    ----------
    axis : int or sequence of int, default -1
        Along which axes the probabilities add up to 1.
    **kwargs
        See `Layer`.

    Notes
    -----
    Called as ``layer(x, mask=mask)`` with a mask that broadcasts to x, it gives probability 0 where the mask is false.
    """

    def __init__(self, axis: int | Sequence[int] = -1, **kwargs: Any):
        super().__init__(**kwargs)
        self.axis = axis if isinstance(axis, int) else tuple(axis)
        self.supports_masking = True

    def call(self, inputs: Tensor, mask: Tensor | None = None) -> Tensor:
        if mask is None:
            return activations.softmax(inputs, axis=self.axis)
        lowest = dtypes.limits(inputs.dtype)[0] / 2
        outputs = activations.softmax(ops.where(mask, inputs, lowest), axis=self.axis)
        # Where everything is masked the softmax is uniform.
        return ops.where(mask, outputs, 0.0)


class PReLU(Layer):
    """x where it is positive, else alpha·x with a learned alpha for each place.

    Parameters
    ----------
    alpha_initializer : str or Initializer, default "zeros"
    alpha_regularizer : str or Regularizer, optional
    alpha_constraint : str or Constraint, optional
    shared_axes : int or sequence of int, optional
        Axes along which one alpha serves all places, such as (1, 2) for one alpha for each channel of images.
    **kwargs
        See `Layer`.

    References
    ----------
    He, Zhang, Ren, Sun, "Delving deep into rectifiers", 2015.
    """

    def __init__(
        self,
        alpha_initializer: Any = "zeros",
        alpha_regularizer: Any = None,
        alpha_constraint: Any = None,
        shared_axes: int | Sequence[int] | None = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.alpha_initializer = initializers.get(alpha_initializer)
        self.alpha_regularizer = regularizers.get(alpha_regularizer)
        self.alpha_constraint = constraints.get(alpha_constraint)
        self.shared_axes = (shared_axes,) if isinstance(shared_axes, int) else tuple(shared_axes or ())
        self.supports_masking = True

    def build(self, input_shape: PartialShape) -> None:
        shared = {axis % len(input_shape) for axis in self.shared_axes}
        places = [
            1 if axis in shared else known_size(self, input_shape, axis, "places")
            for axis in range(1, len(input_shape))
        ]
        self.alpha = self.add_weight(
            tuple(places), self.alpha_initializer, name="alpha",
            regularizer=self.alpha_regularizer, constraint=self.alpha_constraint,
        )  # fmt: skip

    def call(self, inputs: Tensor) -> Tensor:
        return ops.relu(inputs) - self.alpha * ops.relu(-inputs)


def _not_negative(layer: str, name: str, value: Any) -> float:
    if not isinstance(value, (int, float)) or value < 0:
        raise ArgumentError(f"{layer}: {name} must be a number that is not negative, got {value!r}.")
    return value
