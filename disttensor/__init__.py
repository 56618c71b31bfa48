"""disttensor: train neural networks in one process or many, with the API of Keras.

>>> import disttensor as keras

The same names stand in `disttensor.keras`, so that ``import disttensor as tf`` serves scripts that write
``tf.keras.Model``, ``tf.GradientTape``, ``tf.function``, ``tf.Variable`` and ``tf.constant``.
"""

from __future__ import annotations

import sys as _sys

from disttensor import (
    activations,
    callbacks,
    checkpoint,
    config,
    constraints,
    data,
    datasets,
    distributed,
    dtype_policies,
    graph,
    initializers,
    layers,
    losses,
    metrics,
    mixed_precision,
    models,
    ops,
    optimizers,
    random,
    regularizers,
    saving,
    tree,
    utils,
)
from disttensor.autodiff import GradientTape, custom_gradient
from disttensor.dtype_policies import DTypePolicy, FloatDTypePolicy
from disttensor.graph import Graph, Node, function
from disttensor.initializers import Initializer
from disttensor.layers import Input, Layer
from disttensor.losses import Loss
from disttensor.metrics import Metric
from disttensor.models import Model, Sequential
from disttensor.ops import cast, convert_to_tensor, stop_gradient
from disttensor.optimizers import Optimizer
from disttensor.regularizers import Regularizer
from disttensor.rematerialization import RematScope, remat
from disttensor.tensor import KerasTensor, Tensor, Variable, constant
from disttensor.version import __version__

keras = _sys.modules[__name__]
_sys.modules[f"{__name__}.keras"] = keras
for _name, _module in list(vars().items()):
    if isinstance(_module, type(_sys)) and _module.__name__ == f"{__name__}.{_name}":
        _sys.modules[f"{__name__}.keras.{_name}"] = _module
del _name, _module

distributed.initialize()

__all__ = [
    "DTypePolicy",
    "FloatDTypePolicy",
    "Graph",
    "GradientTape",
    "Initializer",
    "Input",
    "KerasTensor",
    "Layer",
    "Loss",
    "Metric",
    "Model",
    "Node",
    "Optimizer",
    "Regularizer",
    "RematScope",
    "Sequential",
    "Tensor",
    "Variable",
    "__version__",
    "activations",
    "callbacks",
    "cast",
    "checkpoint",
    "config",
    "constant",
    "constraints",
    "convert_to_tensor",
    "custom_gradient",
    "data",
    "datasets",
    "distributed",
    "dtype_policies",
    "function",
    "graph",
    "initializers",
    "keras",
    "layers",
    "losses",
    "metrics",
    "mixed_precision",
    "models",
    "ops",
    "optimizers",
    "random",
    "regularizers",
    "remat",
    "saving",
    "stop_gradient",
    "tree",
    "utils",
]
