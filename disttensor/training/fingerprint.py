"""What must be equal on all ranks before a model is trained, as facts that `distributed.consistency` compares."""

from __future__ import annotations

import functools
import platform
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from disttensor import config, distributed, random, tree
from disttensor.callbacks import Callback, CallbackList
from disttensor.data import Batch, DataAdapter
from disttensor.distributed.consistency import require_same
from disttensor.distributed.world import agree
from disttensor.errors import SerializationError
from disttensor.saving.registration import serialize_keras_object
from disttensor.tensor import Variable
from disttensor.version import __version__


def require_same_call(model: Any, method: str, *, callbacks: Any, **arguments: Any) -> None:
    """Require that all ranks call a method of a model with the same arguments, in the same environment.

    Raises
    ------
    DistributedError
        On all ranks.
    """
    if distributed.size() == 1:
        return
    given = callbacks.callbacks if isinstance(callbacks, CallbackList) else callbacks
    given = [given] if isinstance(given, Callback) else list(given or ())
    facts = {
        **_environment(),
        f"{method}: ": _description(arguments),
        "compile(): ": _description(model._compile_arguments),
        "optimizer: ": _description(model.optimizer),
        f"{method}: callbacks that all ranks must have": [
            type(c).__name__ for c in given if getattr(c, "on_all_ranks", False)
        ],
    }
    require_same(f"the call of {method}", facts)


def require_same_data(what: str, adapter: DataAdapter) -> None:
    """Require that the data of all ranks have as many rows and batches.

    Raises
    ------
    DistributedError
        On all ranks.
    """
    if distributed.size() > 1:
        facts = {
            "rows": adapter.num_samples,
            "batches in an epoch": adapter.num_batches,
            "rows of a global batch": adapter.batch_size,
        }
        require_same(what, facts)


def agree_on_model(model: Any, kind: str, batch: Batch, others: Sequence[Variable]) -> None:
    """Require that all ranks have the same model, built but not yet trained, and batches that fit together.

    Names of layers may differ. Values of weights may, too: all ranks get those of rank 0.

    Parameters
    ----------
    model : Model
    kind : {"train", "test", "predict"}
        Of the step that comes next.
    batch : Batch
        The first one.
    others : sequence of Variable
        What is to have the same values, too, beside the variables of the model.

    Raises
    ------
    DistributedError
        On all ranks.
    """
    if distributed.size() == 1:
        return
    facts: dict[str, Any] = _environment()
    if not type(model).__module__.startswith("disttensor."):  # ours are their layers and nothing else
        facts["model: "] = _description(model)
    layers = [layer for layer in model._walk() if layer is not model]
    facts["number of layers"] = len(layers)
    for number, layer in enumerate(layers):
        facts[f"layer {number}"] = type(layer).__name__
        facts[f"layer {number} ({type(layer).__name__}): "] = _description(layer)
    for name, layer in [("model", model), *((f"layer {i}", layer) for i, layer in enumerate(layers))]:
        graph = getattr(layer, "_layer_graph", None)
        if graph is not None:
            facts |= {f"wiring of {name}: {call}": _description(given) for call, given in graph.wiring().items()}
    variables = model.variables
    facts["number of variables"] = len(variables)
    for number, variable in enumerate(variables):
        kind_of_weight = "trainable" if variable.trainable else "not trainable"
        facts[f"variable {number}"] = [variable.shape, variable.dtype, kind_of_weight]
    facts["other variables"] = [[v.shape, v.dtype] for v in others if v.partition is None]
    if kind == "train":
        facts["optimizer: "] = _description(model.optimizer)
    facts["rows of the first global batch"] = batch.total
    for name in ("x", "y", "sample_weight"):
        arrays = [np.asarray(a) for a in tree.flatten(getattr(batch, name)) if a is not None]
        facts[f"first batch, {name}, without its rows"] = [[a.dtype.name, a.shape[1:]] for a in arrays]
    agree(f"the model and data of a {kind} step", facts, [*variables, *others])


def _environment() -> dict[str, Any]:
    library = getattr(distributed.communicator(), "library", "none")
    return {
        "version of disttensor": __version__,
        "version of numpy": np.__version__,
        "version of Python": ".".join(platform.python_version_tuple()[:2]),
        "MPI library": library.splitlines()[0].split(", package")[0].rstrip("\0").replace("\t", " "),
        "virtual shards (deterministic mode)": [config.virtual_shards(), config.virtual_shards() and _shards()],
        "DISTTENSOR_ALLREDUCE, or config.all_reduce_algorithm()": config.all_reduce_algorithm(),
        "DISTTENSOR_BUCKET_BYTES, or config.bucket_bytes()": config.bucket_bytes(),
        "DISTTENSOR_CONSISTENCY_INTERVAL, or config.consistency_interval()": config.consistency_interval(),
        "config.floatx()": config.floatx(),
        "config.epsilon()": config.epsilon(),
        "config.dtype_policy()": config.dtype_policy().name,
        "seed (utils.set_random_seed)": random.global_seed(),
        "state of the random generator of functions": random.shared_generator().state.numpy().tolist(),
    }


def _shards() -> list[list[int]]:
    size = distributed.data_group().size
    return [list(config.shards_of(rank, size)) for rank in range(size)]


def _description(value: Any) -> Any:
    """A layer, loss, … in terms of what JSON knows, without names; its class alone if it has no configuration."""
    if _is_plain(type(value)):  # type: ignore[arg-type]
        return value
    if isinstance(value, Mapping):
        return {str(key): _description(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_description(entry) for entry in value]
    try:
        return _without_names(serialize_keras_object(value))
    except (SerializationError, NotImplementedError, TypeError, ValueError, AttributeError):
        return {"class_name": getattr(value, "__qualname__", type(value).__qualname__)}


@functools.cache
def _is_plain(kind: Any) -> bool:
    """Whether JSON knows values of a type as they are."""
    return issubclass(kind, (bool, int, float, str, type(None)))


def _without_names(value: Any) -> Any:
    if _is_plain(type(value)):  # type: ignore[arg-type]
        return value
    if isinstance(value, (list, tuple)):
        return [_without_names(entry) for entry in value]
    if isinstance(value, dict):
        return {str(key): _without_names(entry) for key, entry in value.items() if key != "name"}
    raise TypeError(f"JSON does not know {type(value).__name__}")
