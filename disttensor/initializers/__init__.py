"""Initializers: the first values of weights.

An initializer is called with a shape and a dtype. One that draws random numbers gives the same ones each time it is
called: with ``seed=None`` it draws its own seed once, when it is made. To get different numbers from every call,
give a `SeedGenerator` as the seed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from disttensor.initializers.constant_initializers import Constant, GivenValues, Identity, Ones, Zeros
from disttensor.initializers.initializer import Initializer
from disttensor.initializers.random_initializers import (
    GlorotNormal,
    GlorotUniform,
    HeNormal,
    HeUniform,
    LecunNormal,
    LecunUniform,
    Orthogonal,
    RandomNormal,
    RandomUniform,
    TruncatedNormal,
    VarianceScaling,
)
from disttensor.saving.lookup import look_up
from disttensor.saving.registration import deserialize_keras_object, serialize_keras_object
from disttensor.tensor import is_tensor

__all__ = [
    "Constant", "GlorotNormal", "GlorotUniform", "HeNormal", "HeUniform", "Identity", "IdentityInitializer",
    "Initializer", "LecunNormal", "LecunUniform", "Ones", "Orthogonal", "OrthogonalInitializer", "RandomNormal",
    "RandomUniform", "TruncatedNormal", "VarianceScaling", "Zeros", "constant", "deserialize", "get", "glorot_normal",
    "glorot_uniform", "he_normal", "he_uniform", "identity", "lecun_normal", "lecun_uniform", "ones", "orthogonal",
    "random_normal", "random_uniform", "serialize", "truncated_normal", "variance_scaling", "zeros",
]  # fmt: skip

zeros = Zeros
ones = Ones
constant = Constant
identity = IdentityInitializer = Identity
random_normal = RandomNormal
random_uniform = RandomUniform
truncated_normal = TruncatedNormal
variance_scaling = VarianceScaling
glorot_uniform = GlorotUniform
glorot_normal = GlorotNormal
he_uniform = HeUniform
he_normal = HeNormal
lecun_uniform = LecunUniform
lecun_normal = LecunNormal
orthogonal = OrthogonalInitializer = Orthogonal

_NAMES = {
    name: cls for name, cls in globals().items() if isinstance(cls, type) and issubclass(cls, Initializer)
} | {"zero": Zeros, "one": Ones, "normal": RandomNormal, "uniform": RandomUniform}  # fmt: skip


def get(identifier: Any) -> Callable[..., Any] | None:
    """The initializer that an identifier means.

    Parameters
    ----------
    identifier : None, str, dict, class, array, or callable
        A name ("glorot_uniform" or "GlorotUniform"), a configuration, an `Initializer` or its class, a function of
        shape and dtype, or the values themselves.

    Returns
    -------
    callable or None

    Raises
    ------
    ArgumentError
        If it is none of them.

    Examples
    --------
    >>> get("he_normal")(shape=(4, 2)).shape
    (4, 2)
    """
    if is_tensor(identifier) or isinstance(identifier, np.ndarray):
        return GivenValues(identifier)
    return look_up(identifier, "initializer", Initializer, _NAMES)


def serialize(initializer: Any) -> Any:
    """The configuration of an initializer, from which `deserialize` makes an equal one."""
    return serialize_keras_object(initializer)


def deserialize(config: Any, custom_objects: Mapping[str, Any] | None = None) -> Any:
    """The initializer of a configuration or a name."""
    return get(deserialize_keras_object(config, custom_objects))
