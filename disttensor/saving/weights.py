"""Weights in safetensors files: plain numbers with names, shapes and dtypes, nothing that could run.

A variable's name in the file says where it stands in the model: classes of layers in snake case, numbered within the
layer that contains them, as in ``dense_1/kernel``. So a file fits every model built by the same code, whatever the
automatic names of its layers are. The states of random generators are saved too.

Reference: the safetensors format, https://huggingface.co/docs/safetensors.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np

from disttensor import distributed, dtypes
from disttensor.errors import ArgumentError, SerializationError
from disttensor.naming import snake_case
from disttensor.saving.files import write_atomically
from disttensor.tensor import Variable

SUFFIX = ".safetensors"
_FORMAT = "disttensor.weights.1"
# safetensors knows no complex128; complex numbers are kept as pairs of reals on a last axis.
_PAIRS = {"complex64": "float32", "complex128": "float64"}


def named_variables(model: Any) -> dict[str, Variable]:
    """Every variable of a model by its place in it."""
    found: dict[str, Variable] = {}
    seen: set[int] = set()
    for name, variable in _walk(model, "", {id(model)}):
        if id(variable) not in seen:
            seen.add(id(variable))
            found[name] = variable
    return found


def _walk(layer: Any, prefix: str, above: set[int]) -> Iterator[tuple[str, Variable]]:
    names: Counter[str] = Counter()

    def unused(name: str) -> str:
        count = names[name]
        names[name] += 1
        return f"{prefix}{name}_{count}" if count else f"{prefix}{name}"

    for variable in layer._own_variables():
        yield unused(variable.name), variable
    for state in layer._seed_states():
        yield unused("seed_generator"), state
    for inner in layer._sublayers():
        if id(inner) not in above:
            yield from _walk(inner, unused(snake_case(type(inner).__name__)) + "/", above | {id(inner)})


def save_weights(model: Any, filepath: Any, overwrite: bool = True) -> None:
    """Write all variables of a model to a file; rank 0 writes, all ranks wait for it.

    Parameters
    ----------
    model : Layer
        With its weights made.
    filepath : path
        Ends in ``.safetensors``. The file appears complete or not at all.
    overwrite : bool, default True
        Whether an existing file is replaced.

    Raises
    ------
    ArgumentError
        If the model has no weights yet, the suffix is another, or the file exists and may not be replaced.
    """
    path = _checked_path(filepath)
    if not model.built:
        raise ArgumentError(f"{model.name!r} has no weights to save yet; build it or call it on data first.")
    if not overwrite and os.path.exists(path):
        raise ArgumentError(f"{path} exists; pass overwrite=True to replace it.")
    if distributed.is_main():
        from safetensors.numpy import save

        arrays = {}
        types = {}
        for name, variable in named_variables(model).items():
            pair = _PAIRS.get(variable.dtype)
            array = np.ascontiguousarray(variable.memory)
            arrays[name] = array.view(pair).reshape(*array.shape, 2) if pair else array
            types[f"dtype {name}"] = variable.dtype
        write_atomically(path, save(arrays, metadata={"format": _FORMAT, **types}))
    distributed.barrier()


def load_weights(model: Any, filepath: Any) -> None:
    """Read the variables of a model from a file that `save_weights` wrote.

    Raises
    ------
    SerializationError
        If the file is damaged, or its names, shapes or dtypes are not those of the model; nothing is changed.
    """
    path = _checked_path(filepath)
    if not model.built:
        raise ArgumentError(f"{model.name!r} has no weights to load into yet; build it or call it on data first.")
    from safetensors import SafetensorError, safe_open

    variables = named_variables(model)
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            names = set(file.keys())
            _require_same_names(path, names, set(variables))
            arrays = {name: file.get_tensor(name) for name in variables}
    except SafetensorError as error:
        raise SerializationError(f"{path} is not a readable safetensors file: {error}") from None
    if metadata.get("format") != _FORMAT:
        raise SerializationError(f"{path} has the format {metadata.get('format')!r}; this version reads {_FORMAT!r}.")
    values = {name: _restore(path, name, arrays[name], variables[name]) for name in variables}
    for name, variable in variables.items():
        np.copyto(variable.memory, values[name])
        variable.touch()


def _restore(path: str, name: str, array: np.ndarray, variable: Variable) -> np.ndarray:
    if variable.dtype in _PAIRS and array.ndim and array.shape[-1] == 2:
        array = np.ascontiguousarray(array).view(dtypes.to_numpy(variable.dtype))[..., 0]
    if array.shape != variable.shape or dtypes.standardize_dtype(array.dtype) != variable.dtype:
        raise SerializationError(
            f"{path}: {name!r} is {array.dtype}{list(array.shape)} in the file but {variable.dtype}"
            f"{list(variable.shape)} in the model."
        )
    return array


def _require_same_names(path: str, found: set[str], expected: set[str]) -> None:
    if found == expected:
        return
    parts = []
    if expected - found:
        parts.append(f"lacks {sorted(expected - found)}")
    if found - expected:
        parts.append(f"holds {sorted(found - expected)}, which the model does not have")
    raise SerializationError(f"{path} does not fit the model: it {' and '.join(parts)}.")


def _checked_path(filepath: Any) -> str:
    path = os.fspath(filepath)
    if not path.endswith(SUFFIX):
        raise ArgumentError(f"weights are saved in safetensors files; {path!r} must end in {SUFFIX!r}.")
    return path
