"""Attention: means of values, weighted by how well keys fit queries."""

from __future__ import annotations

import math
import string
from collections.abc import Sequence
from typing import Any

import numpy as np

from disttensor import constraints, initializers, ops, random, regularizers
from disttensor.errors import ArgumentError, ShapeError
from disttensor.layers.arguments import PartialShape, known_size, one_of, positive_int, title
from disttensor.layers.einsum_dense import EinsumDense, fresh
from disttensor.layers.layer import Layer
from disttensor.random import SeedGenerator
from disttensor.tensor import Tensor


class Attention(Layer):
    """Dot-product attention after Luong: softmax(query·keyᵀ)·value.

    Called as ``layer([query, value])`` or ``layer([query, value, key])``; without a key, the value takes its place.

    Parameters
    ----------
    use_scale : bool, default False
        Whether the scores are multiplied by a learned number.
    score_mode : {"dot", "concat"}, default "dot"
        "concat": the score is w · Σ tanh(query + key) with a learned number w.
    dropout : float, default 0.0
        Which part of the probabilities is set to zero in training.
    seed : int, optional
        Of the dropout; default: a random one.
    **kwargs
        See `Layer`.

    Notes
    -----
    Shapes: query (batch, queries, size), key (batch, keys, size), value (batch, keys, value size), outputs (batch,
    queries, value size). ``call`` takes further arguments:

    * ``mask=[query_mask, value_mask]`` of shapes (batch, queries) and (batch, keys), either of them None: outputs of
      masked queries are 0, masked keys are not seen;
    * ``return_attention_scores=True``: also return the probabilities, shape (batch, queries, keys);
    * ``use_causal_mask=True``: query i sees no key after the i-th.

    References
    ----------
    Luong, Pham, Manning, "Effective approaches to attention-based neural machine translation", 2015.

    Examples
    --------
    >>> import disttensor as keras
    >>> query, value = keras.ops.ones((2, 3, 8)), keras.ops.ones((2, 5, 8))
    >>> keras.layers.Attention()([query, value]).shape
    (2, 3, 8)
    """

    def __init__(
        self,
        use_scale: bool = False,
        score_mode: str = "dot",
        dropout: float = 0.0,
        seed: int | None = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.use_scale = use_scale
        self.score_mode = one_of(type(self).__name__, "score_mode", score_mode, ("dot", "concat"))
        self.dropout = dropout
        self.seed = seed
        self.seed_generator = SeedGenerator(seed) if dropout else None
        self.supports_masking = True

    def build(self, input_shape: Sequence[PartialShape]) -> None:
        _require_sequences(self, input_shape)
        if self.use_scale:
            self.scale = self.add_weight((), "ones", name="scale")
        if self.score_mode == "concat":
            self.concat_score_weight = self.add_weight((), "ones", name="concat_score_weight")

    def call(
        self,
        inputs: Sequence[Tensor],
        mask: Sequence[Tensor | None] | None = None,
        training: bool = False,
        return_attention_scores: bool = False,
        use_causal_mask: bool = False,
    ) -> Any:
        query, value, key = inputs if len(inputs) == 3 else (*inputs, inputs[1])
        query_mask, value_mask, *_ = mask or (None, None)
        visible = None if value_mask is None else ops.expand_dims(value_mask, 1)
        if use_causal_mask:
            causal = _causal_mask(query, value)
            visible = causal if visible is None else ops.logical_and(visible, causal)
        scores = self._scores(query, key)
        if visible is not None:
            # Not −∞, so that queries that see no key have probabilities too.
            scores = ops.where(visible, scores, scores - (65504.0 if scores.dtype == "float16" else 1e9))
        scores = ops.softmax(scores)
        if training and self.seed_generator is not None:
            scores = random.dropout(scores, self.dropout, seed=self.seed_generator)
        outputs = ops.matmul(scores, value)
        if query_mask is not None:
            outputs = ops.where(ops.expand_dims(query_mask, -1), outputs, 0.0)
        return (outputs, scores) if return_attention_scores else outputs

    def _scores(self, query: Tensor, key: Tensor) -> Tensor:
        if self.score_mode == "dot":
            scores = ops.matmul(query, ops.swapaxes(key, -2, -1))
            return scores * self.scale if self.use_scale else scores
        together = _pairwise_sums(query, key)
        return self.concat_score_weight * ops.sum(ops.tanh(self.scale * together if self.use_scale else together), -1)

    def compute_mask(self, inputs: Any, previous_mask: Any = None) -> Tensor | None:
        """The queries' mask."""
        return previous_mask[0] if previous_mask else None


class AdditiveAttention(Attention):
    """Additive attention after Bahdanau: the scores are Σ scale · tanh(query + key).

    Parameters
    ----------
    use_scale : bool, default True
        Whether there is a learned scale for each feature; else it is 1.
    dropout : float, default 0.0
        Which part of the probabilities is set to zero in training.
    **kwargs
        ``seed``, and see `Layer`.

    Notes
    -----
    Inputs, outputs and the arguments of ``call`` are those of `Attention`.

    References
    ----------
    Bahdanau, Cho, Bengio, "Neural machine translation by jointly learning to align and translate", 2015.
    """

    def __init__(self, use_scale: bool = True, dropout: float = 0.0, **kwargs: Any):
        super().__init__(use_scale=use_scale, dropout=dropout, **kwargs)

    def build(self, input_shape: Sequence[PartialShape]) -> None:
        _require_sequences(self, input_shape)
        if self.use_scale:
            size = known_size(self, input_shape[0], -1, "features")
            self.scale = self.add_weight((size,), "glorot_uniform", name="scale")

    def _scores(self, query: Tensor, key: Tensor) -> Tensor:
        fits = ops.tanh(_pairwise_sums(query, key))
        return ops.sum(self.scale * fits if self.use_scale else fits, -1)


def _require_sequences(layer: Layer, shapes: Any) -> None:
    if not isinstance(shapes, (list, tuple)) or len(shapes) not in (2, 3) or any(isinstance(n, int) for n in shapes):
        raise ShapeError(f"{title(layer)} needs a list [query, value] or [query, value, key], got shapes {shapes}.")


def _pairwise_sums(query: Tensor, key: Tensor) -> Tensor:
    return ops.expand_dims(query, -2) + ops.expand_dims(key, -3)


def _causal_mask(query: Tensor, value: Tensor) -> np.ndarray:
    """True where the key is not after the query; shape (1, queries, keys)."""
    return np.tri(query.shape[1], value.shape[1], dtype=bool)[np.newaxis]


class MultiHeadAttention(Layer):
    """Attention in several heads: each projects queries, keys and values, attends, and the heads are put together.

    Called as ``layer(query, value)`` or ``layer(query, value, key)``; without a key, the value takes its place. With
    ``layer(x, x)`` a sequence attends to itself.

    Parameters
    ----------
    num_heads : int
    key_dim : int
        Size of the queries and keys of a head; scores are multiplied by 1 / √key_dim.
    value_dim : int, optional
        Size of the values of a head; default `key_dim`.
    dropout : float, default 0.0
        Which part of the probabilities is set to zero in training. It needs the probabilities of all queries and keys
        in memory; without, attention is computed in blocks.
    use_bias : bool, default True
        Of the four projections.
    output_shape : int or sequence of int, optional
        Size of the outputs' last axis, or axes; default that of the query.
    attention_axes : int or sequence of int, optional
        Over which axes of the query attention runs; default: all but the batch and the features.
    sliding_window : int, optional
        Each query sees only keys that are less than this many places away.
    flash_attention : bool, optional
        Makes no difference: attention is computed in blocks whenever it can be.
    kernel_initializer : str or Initializer, default "glorot_uniform"
    bias_initializer : str or Initializer, default "zeros"
    kernel_regularizer, bias_regularizer : str or Regularizer, optional
    activity_regularizer : str or Regularizer, optional
        Of the outputs of each projection.
    kernel_constraint, bias_constraint : str or Constraint, optional
    use_gate : bool, default False
        Whether what the heads give is multiplied by the sigmoid of another projection of the query.
    seed : int, optional
        Of the dropout; default: a random one.
    **kwargs
        See `Layer`.

    Notes
    -----
    Shapes: query (batch, queries, features), value and key (batch, keys, features), outputs (batch, queries, features
    of the query). ``call`` takes further arguments:

    * ``attention_mask``: true where a query may see a key, shape (batch, queries, keys), (queries, keys) or (batch,
      heads, queries, keys), sizes of 1 allowed;
    * ``query_mask``, ``value_mask``, ``key_mask``: shape (batch, places); by default the masks that the tensors carry;
    * ``return_attention_scores=True``: also return the probabilities, shape (batch, heads, queries, keys);
    * ``use_causal_mask=True``: query i sees no key after the i-th.

    A query that sees no key attends to nothing: its heads give 0.

    References
    ----------
    Vaswani et al., "Attention is all you need", 2017.
    Qiu et al., "Gated attention for large language models: non-linearity, sparsity, and attention-sink-free", 2025.

    Examples
    --------
    >>> import disttensor as keras
    >>> x = keras.ops.ones((2, 10, 64))
    >>> keras.layers.MultiHeadAttention(num_heads=4, key_dim=16)(x, x, use_causal_mask=True).shape
    (2, 10, 64)
    """

    def __init__(
        self,
        num_heads: int,
        key_dim: int,
        value_dim: int | None = None,
        dropout: float = 0.0,
        use_bias: bool = True,
        output_shape: int | Sequence[int] | None = None,
        attention_axes: int | Sequence[int] | None = None,
        sliding_window: int | None = None,
        flash_attention: bool | None = None,
        kernel_initializer: Any = "glorot_uniform",
        bias_initializer: Any = "zeros",
        kernel_regularizer: Any = None,
        bias_regularizer: Any = None,
        activity_regularizer: Any = None,
        kernel_constraint: Any = None,
        bias_constraint: Any = None,
        use_gate: bool = False,
        seed: int | None = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        name = type(self).__name__
        self.num_heads = positive_int(name, "num_heads", num_heads)
        self.key_dim = positive_int(name, "key_dim", key_dim)
        self.value_dim = positive_int(name, "value_dim", key_dim if value_dim is None else value_dim)
        if not isinstance(dropout, (int, float)) or not 0 <= dropout <= 1:
            raise ArgumentError(f"{name}: dropout must be a number from 0 to 1, got {dropout!r}.")
        self.dropout = dropout
        self.use_bias = use_bias
        self._output_sizes = (output_shape,) if isinstance(output_shape, int) else tuple(output_shape or ())
        self.attention_axes = (attention_axes,) if isinstance(attention_axes, int) else attention_axes
        self.sliding_window = None if sliding_window is None else positive_int(name, "sliding_window", sliding_window)
        self.flash_attention = flash_attention
        self.kernel_initializer = initializers.get(kernel_initializer)
        self.bias_initializer = initializers.get(bias_initializer)
        self._of_projections = {
            "kernel_regularizer": regularizers.get(kernel_regularizer),
            "bias_regularizer": regularizers.get(bias_regularizer),
            "activity_regularizer": regularizers.get(activity_regularizer),
            "kernel_constraint": constraints.get(kernel_constraint),
            "bias_constraint": constraints.get(bias_constraint),
        }
        self.use_gate = use_gate
        self.seed = seed
        self.seed_generator = SeedGenerator(seed) if dropout else None
        self.supports_masking = True

    def build(  # type: ignore[override]
        self, query_shape: PartialShape, value_shape: PartialShape, key_shape: PartialShape | None = None
    ) -> None:
        key_shape = value_shape if key_shape is None else key_shape
        if key_shape[1:-1] != value_shape[1:-1] or len(key_shape) != len(query_shape):
            raise ShapeError(
                f"{title(self)} needs query, value and key with equally many axes, and as many values as keys; got "
                f"query {query_shape}, value {value_shape} and key {key_shape}."
            )
        self._free_axes = len(query_shape) - 1
        given = range(1, self._free_axes) if self.attention_axes is None else self.attention_axes
        self._axes = tuple(axis % len(query_shape) for axis in given)
        self.query_dense = self._projection("query", query_shape, self.key_dim)
        self.key_dense = self._projection("key", key_shape, self.key_dim)
        if self.use_gate:
            self.gate_dense = self._projection("gate", query_shape, self.value_dim, activation="sigmoid")
        self.value_dense = self._projection("value", value_shape, self.value_dim)
        sizes = self._output_sizes or (known_size(self, query_shape, -1, "features"),)
        free, heads, outputs = _letters(self._free_axes, 2, len(sizes))
        self.output_dense = self._dense("attention_output", f"{free}{heads},{heads}{outputs}->{free}{outputs}", sizes)
        self.output_dense.build((*query_shape[:-1], self.num_heads, self.value_dim))

    def _projection(self, name: str, shape: PartialShape, size: int, **options: Any) -> EinsumDense:
        """Of features to heads."""
        free, features, heads = _letters(self._free_axes, 1, 2)
        equation = f"{free}{features},{features}{heads}->{free}{heads}"
        layer = self._dense(name, equation, (self.num_heads, size), **options)
        layer.build(shape)
        return layer

    def _dense(self, name: str, equation: str, sizes: tuple[int, ...], **options: Any) -> EinsumDense:
        return EinsumDense(
            equation,
            output_shape=(*(None,) * (self._free_axes - 1), *sizes),
            bias_axes=equation[-len(sizes) :] if self.use_bias else None,
            kernel_initializer=fresh(self.kernel_initializer),
            bias_initializer=fresh(self.bias_initializer),
            name=name,
            dtype=self.dtype_policy,
            trainable=self.trainable,
            **self._of_projections,
            **options,
        )

    def call(
        self,
        query: Tensor,
        value: Tensor,
        key: Tensor | None = None,
        query_mask: Tensor | None = None,
        value_mask: Tensor | None = None,
        key_mask: Tensor | None = None,
        attention_mask: Tensor | None = None,
        return_attention_scores: bool = False,
        training: bool = False,
        use_causal_mask: bool = False,
    ) -> Any:
        visible = self._visible(
            query, value,
            query._keras_mask if query_mask is None else query_mask,
            value._keras_mask if value_mask is None else value_mask,
            key._keras_mask if key_mask is None and key is not None else key_mask,
            attention_mask,
        )  # fmt: skip
        heads = self.query_dense(query), self.key_dense(value if key is None else key), self.value_dense(value)
        if len(query.shape) == 3 and not return_attention_scores and not (training and self.dropout):
            mixed, scores = self._attend_in_blocks(*heads, visible, use_causal_mask), None
        else:
            mixed, scores = self._attend(*heads, visible, use_causal_mask, training)
        outputs = self.output_dense(mixed * self.gate_dense(query) if self.use_gate else mixed)
        return (outputs, scores) if return_attention_scores else outputs

    def _visible(
        self, query: Tensor, value: Tensor, query_mask: Any, value_mask: Any, key_mask: Any, attention_mask: Any
    ) -> Tensor | None:
        """Where a query sees a key by all masks but the causal one: (batch, queries, keys), or as `attention_mask`."""
        masks = [None if query_mask is None else ops.expand_dims(query_mask, -1)]
        masks += [None if mask is None else ops.expand_dims(mask, -2) for mask in (value_mask, key_mask)]
        if self.sliding_window is not None:
            places = np.arange(query.shape[1])[:, np.newaxis] - np.arange(value.shape[1])
            masks.append(ops.convert_to_tensor(np.abs(places) < self.sliding_window)[np.newaxis])
        visible = None
        for mask in masks:
            if mask is not None:
                visible = mask if visible is None else ops.logical_and(visible, mask)
        if attention_mask is None:
            return visible
        given = ops.cast(attention_mask, "bool")
        return given if visible is None else ops.logical_and(given, self._with_heads(visible, len(given.shape)))

    def _with_heads(self, mask: Tensor, ndim: int) -> Tensor:
        """With new axes for the heads, and for others that attention does not run over, until there are `ndim`."""
        for _ in range(ndim - len(mask.shape)):
            mask = ops.expand_dims(mask, -2 * len(self._axes) - 1)
        return mask

    def _attend_in_blocks(
        self, query: Tensor, key: Tensor, value: Tensor, visible: Tensor | None, causal: bool
    ) -> Tensor:  # fmt: skip
        mask = None if visible is None else self._with_heads(visible, 4)
        return ops.dot_product_attention(query, key, value, mask=mask, is_causal=causal)

    def _attend(
        self, query: Tensor, key: Tensor, value: Tensor, visible: Tensor | None, causal: bool, training: bool
    ) -> tuple[Tensor, Tensor]:
        """With all probabilities in memory."""
        queries, keys, scores_of = _attention_letters(len(query.shape), self._axes)
        scores = ops.einsum(f"{keys},{queries}->{scores_of}", key, query * (1 / math.sqrt(self.key_dim)))
        if causal:
            mask = ops.convert_to_tensor(_causal_mask(query, value))
            visible = mask if visible is None else ops.logical_and(visible, mask)
        axes = tuple(range(-len(self._axes), 0))
        if visible is not None:
            visible = self._with_heads(visible, len(scores.shape))
            scores = ops.where(visible, scores, -3e4 if scores.dtype == "float16" else -1e9)
        scores = ops.softmax(scores, axes)
        if visible is not None:
            scores = ops.where(visible, scores, 0.0)
        weights = scores
        if training and self.seed_generator is not None:
            weights = random.dropout(scores, self.dropout, seed=self.seed_generator)
        return ops.einsum(f"{scores_of},{keys}->{queries}", weights, value), scores


def _letters(*counts: int) -> list[str]:
    """Different letters, so many in each group."""
    letters = iter(string.ascii_lowercase)
    return ["".join(next(letters) for _ in range(count)) for count in counts]


def _attention_letters(ndim: int, axes: tuple[int, ...]) -> tuple[str, str, str]:
    """The letters of queries, of keys and values, and of scores, for attention over some axes of `ndim`."""
    queries, others = _letters(ndim, len(axes))
    names = dict(zip(axes, others, strict=True))
    keys = "".join(names.get(a, letter) for a, letter in enumerate(queries))
    kept = "".join(queries[a] for a in range(ndim - 1) if a not in axes)
    return queries, keys, kept + "".join(queries[a] for a in axes) + others
