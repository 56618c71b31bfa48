"""What every rank of `test_interrupted` runs: a step that an error ended between two of its sums, and what follows."""

from __future__ import annotations

import numpy as np

import disttensor as keras
from disttensor import distributed
from disttensor.errors import DistributedError
from disttensor.ops.registry import apply, operator

broken = False


@operator()
def passes(out, x):
    np.copyto(out, x)


@passes.infer
def _(x):
    return x


@operator()
def may_break(out, x):
    if broken:
        raise RuntimeError("in the middle of the backward pass")
    np.copyto(out, x)


@may_break.infer
def _(x):
    return x


@passes.gradient
def _(ctx, g):
    return apply(may_break, [g], {})


class Breaking(keras.layers.Layer):
    def call(self, x):
        return apply(passes, [x], {})


def build():
    keras.utils.set_random_seed(0)
    dense = keras.layers.Dense
    model = keras.Sequential([keras.Input((8,)), dense(64), dense(64), Breaking(), dense(64), dense(1)])
    model.compile("sgd", "mse")
    return model


def step(model):
    model.fit(X, Y, batch_size=len(X), verbose=0)


def caught(model):
    try:
        step(model)
    except (RuntimeError, DistributedError) as error:
        return str(error)
    return "no error"


X = np.random.default_rng(distributed.rank()).standard_normal((12, 8)).astype("float32")
Y = X[:, :1]
keras.config.set_bucket_bytes(1)  # one for each gradient

model = build()
step(model)
broken = True
assert "in the middle" in caught(model)
broken = False
before = [v.numpy() for v in model.weights]
message = caught(model)
assert "Compile the model" in message, message
for variable, value in zip(model.weights, before, strict=True):
    assert variable.numpy().tobytes() == value.tobytes(), "the refused step changed weights"

model.compile("sgd", "mse")
want = build()
want.set_weights(before)
for each in (model, want):
    step(each)
for got, other in zip(model.weights, want.weights, strict=True):
    assert got.numpy().tobytes() == other.numpy().tobytes()
distributed.barrier()
if distributed.is_main():
    print("every check passed")
