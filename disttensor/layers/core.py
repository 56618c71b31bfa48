"""Layers that every model has: Dense, Embedding, Activation, Identity, Lambda."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from disttensor import activations, constraints, initializers, ops, regularizers
from disttensor.errors import ArgumentError, SerializationError, ShapeError
from disttensor.layers.arguments import PartialShape, known_size, positive_int, require_size, title
from disttensor.layers.layer import Layer
from disttensor.tensor import Tensor


class Dense(Layer):
    """Every output is a weighted sum of all inputs: activation(x·kernel + bias).

    Parameters
    ----------
    units : int
        How many outputs.
    activation : str or callable, optional
        Default: none.
    use_bias : bool, default True
    kernel_initializer : str or Initializer, default "glorot_uniform"
    bias_initializer : str or Initializer, default "zeros"
    kernel_regularizer, bias_regularizer : str or Regularizer, optional
    activity_regularizer : str or Regularizer, optional
        Of the output.
    kernel_constraint, bias_constraint : str or Constraint, optional
    **kwargs
        See `Layer`.

    Notes
    -----
    Input shape (batch, …, features), output shape (batch, …, units): with more than two axes, the same weights are
    applied at every place.

    Examples
    --------
    >>> import disttensor as keras
    >>> keras.layers.Dense(10, activation="softmax")(keras.ops.ones((32, 784))).shape
    (32, 10)
    """

    def __init__(
        self,
        units: int,
        activation: Any = None,
        use_bias: bool = True,
        kernel_initializer: Any = "glorot_uniform",
        bias_initializer: Any = "zeros",
        kernel_regularizer: Any = None,
        bias_regularizer: Any = None,
        activity_regularizer: Any = None,
        kernel_constraint: Any = None,
        bias_constraint: Any = None,
        **kwargs: Any,
    ):
        super().__init__(activity_regularizer=activity_regularizer, **kwargs)
        self.units = positive_int(type(self).__name__, "units", units)
        self.activation = activations.get(activation)
        self.use_bias = use_bias
        self.kernel_initializer = initializers.get(kernel_initializer)
        self.bias_initializer = initializers.get(bias_initializer)
        self.kernel_regularizer = regularizers.get(kernel_regularizer)
        self.bias_regularizer = regularizers.get(bias_regularizer)
        self.kernel_constraint = constraints.get(kernel_constraint)
        self.bias_constraint = constraints.get(bias_constraint)
        self.supports_masking = True

    def build(self, input_shape: PartialShape) -> None:
        if len(input_shape) < 2:
            raise ShapeError(
                f"{title(self)} got an input of shape {input_shape}; it needs (batch, features). For a single example "
                "add a batch axis with ops.expand_dims(x, 0)."
            )
        self.features = known_size(self, input_shape, -1, "features")
        self.kernel = self.add_weight(
            (self.features, self.units), self.kernel_initializer, name="kernel",
            regularizer=self.kernel_regularizer, constraint=self.kernel_constraint,
        )  # fmt: skip
        if self.use_bias:
            self.bias = self.add_weight(
                (self.units,), self.bias_initializer, name="bias",
                regularizer=self.bias_regularizer, constraint=self.bias_constraint,
            )  # fmt: skip

    def call(self, inputs: Tensor) -> Tensor:
        advice = "Add Flatten() before it." if len(inputs.shape) > 2 else ""
        require_size(self, inputs.shape, -1, self.features, "features", advice)
        outputs = ops.matmul(inputs, self.kernel)
        if self.use_bias:
            outputs = outputs + self.bias
        return self.activation(outputs)


class Embedding(Layer):
    """A vector for each integer: a table that is looked up.

    Parameters
    ----------
    input_dim : int
        How many integers there are: inputs lie in 0 … input_dim − 1.
    output_dim : int
        How long the vectors are.
    embeddings_initializer : str or Initializer, default "uniform"
    embeddings_regularizer : str or Regularizer, optional
    embeddings_constraint : str or Constraint, optional
    mask_zero : bool, default False
        Whether 0 marks the end of shorter sequences: layers that follow and know masks then ignore it.
    **kwargs
        See `Layer`.

    Notes
    -----
    Input: integers of any shape (batch, …); output shape (batch, …, output_dim).

    Examples
    --------
    >>> import disttensor as keras
    >>> keras.layers.Embedding(1000, 64)(keras.ops.zeros((32, 10), "int32")).shape
    (32, 10, 64)
    """

    def __init__(
        self,
        input_dim: int,
        output_dim: int,
        embeddings_initializer: Any = "uniform",
        embeddings_regularizer: Any = None,
        embeddings_constraint: Any = None,
        mask_zero: bool = False,
        **kwargs: Any,
    ):
        super().__init__(autocast=False, **kwargs)
        self.input_dim = positive_int(type(self).__name__, "input_dim", input_dim)
        self.output_dim = positive_int(type(self).__name__, "output_dim", output_dim)
        self.embeddings_initializer = initializers.get(embeddings_initializer)
        self.embeddings_regularizer = regularizers.get(embeddings_regularizer)
        self.embeddings_constraint = constraints.get(embeddings_constraint)
        self.mask_zero = mask_zero
        self.supports_masking = mask_zero

    def build(self, input_shape: PartialShape | None = None) -> None:
        self.embeddings = self.add_weight(
            (self.input_dim, self.output_dim), self.embeddings_initializer, name="embeddings",
            regularizer=self.embeddings_regularizer, constraint=self.embeddings_constraint,
        )  # fmt: skip

    def call(self, inputs: Tensor) -> Tensor:
        if inputs.dtype not in ("int32", "int64"):
            inputs = ops.cast(inputs, "int32")
        return ops.cast(ops.take(self.embeddings, inputs, axis=0), self.compute_dtype)

    def compute_mask(self, inputs: Tensor, previous_mask: Tensor | None = None) -> Tensor | None:
        return ops.not_equal(inputs, 0) if self.mask_zero else None


class Activation(Layer):
    """An activation function as a layer.

    Parameters
    ----------
    activation : str or callable
    **kwargs
        See `Layer`.

    Examples
    --------
    >>> import disttensor as keras
    >>> keras.layers.Activation("relu")(keras.ops.convert_to_tensor([-1.0, 2.0])).tolist()
    [0.0, 2.0]
    """

    def __init__(self, activation: Any, **kwargs: Any):
        super().__init__(**kwargs)
        self.activation = activations.get(activation)
        self.supports_masking = True

    def call(self, inputs: Tensor) -> Tensor:
        return self.activation(inputs)


class Identity(Layer):
    """The inputs as they are, masks included; a place to hang something on, or the other way of a choice.

    Examples
    --------
    >>> import disttensor as keras
    >>> keras.layers.Identity()(keras.ops.convert_to_tensor([1.0, 2.0])).tolist()
    [1.0, 2.0]
    """

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self.supports_masking = True

    def call(self, inputs: Any) -> Any:
        """The inputs."""
        return inputs


class Lambda(Layer):
    """A Python function as a layer, for experiments.

    A model with such a layer cannot be saved, because there is no safe way to load a Python function from a file. Write
    a subclass of `Layer` for a model to keep.

    Parameters
    ----------
    function : callable
        ``function(inputs, **arguments)``.
    output_shape : optional
        Not needed: the shape is found by tracing the function.
    mask : tensor or callable, optional
        The mask of the outputs, or a function of inputs and mask that computes it.
    arguments : dict, optional
        Further keyword arguments of the function.
    **kwargs
        See `Layer`.

    Examples
    --------
    >>> import disttensor as keras
    >>> keras.layers.Lambda(lambda x: x ** 2)(keras.ops.convert_to_tensor([3.0])).tolist()
    [9.0]
    """

    def __init__(
        self,
        function: Callable[..., Any],
        output_shape: Any = None,
        mask: Any = None,
        arguments: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        if not callable(function):
            raise ArgumentError(f"Lambda needs a function, got {function!r}.")
        self.function = function
        self.mask = mask
        self.arguments = dict(arguments or {})
        self.supports_masking = mask is not None

    def call(self, inputs: Any) -> Any:
        return self.function(inputs, **self.arguments)

    def compute_mask(self, inputs: Any, previous_mask: Any = None) -> Any:
        return self.mask(inputs, previous_mask) if callable(self.mask) else self.mask

    def get_config(self) -> dict[str, Any]:
        """Refused: a Python function has no configuration.

        Raises
        ------
        SerializationError
        """
        raise SerializationError(
            f"{title(self)} holds a Python function, which cannot be saved and loaded safely. Write a subclass of "
            "Layer with the function as its call(), decorated with register_keras_serializable()."
        )
