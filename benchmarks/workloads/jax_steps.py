"""Training steps in JAX: one jitted function of weights, optimizer state and batch, whose old state is donated."""

from __future__ import annotations

import functools
import time
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.catalogue import Workload
from benchmarks.workloads.jax_models import MODELS, Maker


class Session:
    """Weights and a step; see `benchmarks.workloads`."""

    def __init__(self, workload: Workload):
        maker = Maker()
        model = MODELS[workload.name](maker)
        moments = 2 if workload.optimizer == "adam" else 1
        self._batch = workload.batch
        self._state = (
            maker.weights,
            maker.statistics,
            [jax.tree.map(jnp.zeros_like, maker.weights) for _ in range(moments)],
            jnp.zeros((), jnp.int32),
        )
        update = _adam if workload.optimizer == "adam" else _momentum
        loss_of = functools.partial(_loss_of, model, workload.classes == 1)

        @functools.partial(jax.jit, donate_argnums=0)
        def step(state: Any, x: Any, y: Any) -> Any:
            weights, statistics, moments, number = state
            key = jax.random.fold_in(jax.random.key(0), number)
            (loss, statistics), gradients = jax.value_and_grad(loss_of, has_aux=True)(weights, statistics, x, y, key)
            weights, moments = update(weights, gradients, moments, number + 1)
            return (weights, statistics, moments, number + 1), loss

        self._step = step

    @property
    def parameters(self) -> int:
        """Trainable numbers."""
        return sum(weight.size for weight in jax.tree.leaves(self._state[0]))

    def prepare(self, x: Any, y: Any) -> tuple[Any, Any]:
        """Batches as arrays on the device."""
        cuts = [slice(start, start + self._batch) for start in range(0, len(x), self._batch)]
        return [jnp.asarray(x[cut]) for cut in cuts], [jnp.asarray(y[cut]) for cut in cuts]

    def train(self, x: Any, y: Any) -> tuple[list[float], float]:
        """Each batch once."""
        ends, value = [], 0.0
        for inputs, targets in zip(x, y, strict=True):
            self._state, loss = self._step(self._state, inputs, targets)
            value = float(loss)  # waits for the step
            ends.append(time.perf_counter())
        return ends, value


def _loss_of(model: Any, binary: bool, weights: Any, statistics: Any, x: Any, y: Any, key: Any) -> tuple[Any, Any]:
    logits, statistics = model(weights, statistics, x, key)
    if binary:
        return (jax.nn.softplus(logits) - y * logits).mean(), statistics
    chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), y[:, None], axis=-1)
    return -chosen.mean(), statistics


def _adam(weights: Any, gradients: Any, moments: Any, number: Any) -> tuple[Any, Any]:
    mean = jax.tree.map(lambda m, g: m + 0.1 * (g - m), moments[0], gradients)
    square = jax.tree.map(lambda v, g: v + 0.001 * (g * g - v), moments[1], gradients)
    rate = 0.001 * jnp.sqrt(1 - 0.999**number) / (1 - 0.9**number)
    weights = jax.tree.map(lambda w, m, v: w - rate * m / (jnp.sqrt(v) + 1e-7), weights, mean, square)
    return weights, [mean, square]


def _momentum(weights: Any, gradients: Any, moments: Any, number: Any) -> tuple[Any, Any]:
    velocity = jax.tree.map(lambda m, g: 0.9 * m - 0.01 * g, moments[0], gradients)
    return jax.tree.map(jnp.add, weights, velocity), [velocity]
