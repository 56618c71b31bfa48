"""Weights in safetensors files: plain numbers with names, shapes and dtypes, nothing that could run.

A variable's name in the file says where it stands in the model: classes of layers in snake case, numbered within the
layer that contains them, as in ``dense_1/kernel``. So a file fits every model built by the same code, whatever the
automatic names of its layers are. The states of random generators are saved too.

Reference: the safetensors format, https://huggingface.co/docs/safetensors.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import numpy as np

from disttensor import distributed, dtypes
from disttensor.distributed.partition import assign_whole, whole_array, whole_shape
from disttensor.errors import ArgumentError, SerializationError
from disttensor.naming import snake_case
from disttensor.saving.files import on_main, write_atomically
from disttensor.saving.stored import NAMES, STORED_AS
from disttensor.tensor import Variable

SUFFIX = ".safetensors"
_FORMAT = "disttensor.weights.1"
_MOST_LISTED = 10


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
    used: set[str] = set()

    def unused(name: str) -> str:
        candidate = name = name.replace("/", "_")
        number = 0
        while candidate in used:
            number += 1
            candidate = f"{name}_{number}"
        used.add(candidate)
        return prefix + candidate

    for variable in layer._own_variables():
        yield unused(variable.name), variable
    for state in layer._seed_states():
        yield unused("seed_generator"), state
    for inner in layer._sublayers():
        if id(inner) not in above:
            yield from _walk(inner, unused(snake_case(type(inner).__name__)) + "/", above | {id(inner)})


def save_weights(model: Any, filepath: Any, overwrite: bool = True) -> None:
    """Write all variables of a model to a file: call it on all ranks; rank 0 writes, and all wait for it.

    Weights that ranks divide among themselves are written whole: the file is the same for any grid of ranks.

    Parameters
    ----------
    model : Layer
        With its weights made.
    filepath : path
        Ends in ``.safetensors``. The file appears complete or not at all; missing folders are made.
    overwrite : bool, default True
        Whether an existing file is replaced.

    Raises
    ------
    ArgumentError
        If the model has no weights yet, the suffix is another, or the file exists and may not be replaced.
    OSError
        If the file cannot be written; an existing one stays as it is.
    """
    path = _checked_path(filepath)
    if not model.built:
        raise ArgumentError(f"{model.name!r} has no weights to save yet; build it or call it on data first.")
    arrays = {name: whole_array(variable) for name, variable in named_variables(model).items()}
    on_main(lambda: _write(path, arrays, overwrite))


def _write(path: str, values: dict[str, np.ndarray], overwrite: bool) -> None:
    from safetensors.numpy import save

    if not overwrite and os.path.exists(path):
        raise ArgumentError(f"{path} exists; pass overwrite=True to replace it.")
    names = {name: dtypes.standardize_dtype(array.dtype) for name, array in values.items()}
    arrays = {name: _encode(array, names[name]) for name, array in values.items()}
    types = {f"dtype {name}": dtype for name, dtype in names.items()}
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    write_atomically(path, save(arrays, metadata={"format": _FORMAT, **types}))


def load_weights(model: Any, filepath: Any) -> None:
    """Read the variables of a model from a file that `save_weights` wrote.

    Call it on all ranks; rank 0 reads, and the others get its values.

    Raises
    ------
    ArgumentError
        If the model has no weights yet, or the suffix is another.
    SerializationError
        If the file is damaged, or its names, shapes or dtypes are not those of the model; nothing is changed.
    OSError
        If the file cannot be read.
    """
    path = _checked_path(filepath)
    if not model.built:
        raise ArgumentError(f"{model.name!r} has no weights to load into yet; build it or call it on data first.")
    variables = named_variables(model)
    values = on_main(lambda: _read(path, variables))
    for name, variable in variables.items():
        whole = np.empty(whole_shape(variable), dtypes.to_numpy(variable.dtype)) if values is None else values[name]
        assign_whole(variable, distributed.communicator().broadcast(whole))


def _read(path: str, variables: dict[str, Variable]) -> dict[str, np.ndarray]:
    """The values of all variables, which are known to fit before memory is asked for."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != _FORMAT:
                raise SerializationError(
                    f"{path} has the format {metadata.get('format')!r}; this version reads {_FORMAT!r}."
                )
            heads = {
                name: _head(path, name, file.get_slice(name), metadata.get(f"dtype {name}"))
                for name in file.keys()  # noqa: SIM118
            }
            _require_fit(path, heads, variables)
            return {name: _decode(file.get_tensor(name), dtype) for name, (dtype, _) in heads.items()}
    except SafetensorError as error:
        raise SerializationError(f"{path} is damaged or no safetensors file: {error}") from None


def _head(path: str, name: str, entry: Any, dtype: str | None) -> tuple[str, tuple[int, ...]]:
    """Dtype and shape of an array in a file, marked as of this dtype."""
    stored, shape = entry.get_dtype(), tuple(entry.get_shape())
    fits = dtype is not None and stored == NAMES.get(STORED_AS.get(dtype, dtype))
    if dtype is None or not fits or (dtype in STORED_AS and shape[-1:] != (2,)):
        raise SerializationError(f"{path} is damaged: {name!r} is {stored}{list(shape)}, marked as {dtype}.")
    return dtype, shape[:-1] if dtype in STORED_AS else shape


def _require_fit(path: str, heads: dict[str, tuple[str, tuple[int, ...]]], variables: dict[str, Variable]) -> None:
    problems = [f"{name!r} is missing" for name in variables if name not in heads]
    problems += [f"{name!r} is not in the model" for name in heads if name not in variables]
    for name in variables.keys() & heads.keys():
        found = _describe(*heads[name])
        expected = _describe(variables[name].dtype, whole_shape(variables[name]))
        if found != expected:
            problems.append(f"{name!r} is {found}, in the model {expected}")
    if problems:
        shown = "; ".join(sorted(problems)[:_MOST_LISTED])
        more = f"; and {len(problems) - _MOST_LISTED} more" if len(problems) > _MOST_LISTED else ""
        raise SerializationError(f"{path} does not fit the model: {shown}{more}.")


def _encode(array: np.ndarray, dtype: str) -> np.ndarray:
    return array[..., np.newaxis].view(STORED_AS[dtype]) if dtype in STORED_AS else array


def _decode(array: np.ndarray, dtype: str) -> np.ndarray:
    return array.view(dtypes.to_numpy(dtype))[..., 0] if dtype in STORED_AS else array


def _describe(dtype: Any, shape: tuple[int, ...]) -> str:
    return f"{dtypes.standardize_dtype(dtype)}{list(shape)}"


def _checked_path(filepath: Any) -> str:
    path = os.fspath(filepath)
    if not path.endswith(SUFFIX):
        raise ArgumentError(f"weights are saved in safetensors files; {path!r} must end in {SUFFIX!r}.")
    return path
