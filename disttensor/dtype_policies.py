"""Dtype policies: in which dtype a layer keeps its variables, and in which it computes.

Mixed precision computes in a 16-bit dtype and keeps variables in float32, because an update is often smaller than the
16-bit spacing of the weight that it changes (Micikevicius et al., "Mixed Precision Training", ICLR 2018).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from disttensor import dtypes
from disttensor.errors import ArgumentError, DTypeError

_MIXED = {"mixed_float16": ("float16", "float32"), "mixed_bfloat16": ("bfloat16", "float32")}


class DTypePolicy:
    """The dtypes of a layer.

    Parameters
    ----------
    name : str, optional
        "mixed_float16" and "mixed_bfloat16" compute in that dtype, with variables in float32; a dtype's name means that
        dtype for both. Default: the global policy.

    Examples
    --------
    >>> policy = DTypePolicy("mixed_bfloat16")
    >>> policy.compute_dtype, policy.variable_dtype
    ('bfloat16', 'float32')
    """

    def __init__(self, name: str | None = None):
        if name is None:
            name = dtype_policy().name
        if not isinstance(name, str):
            raise ArgumentError(f"the name of a DTypePolicy must be a str such as 'mixed_float16', got {name!r}.")
        try:
            self._compute_dtype, self._variable_dtype = _MIXED.get(name) or (dtypes.standardize_dtype(name),) * 2
        except DTypeError:
            raise ArgumentError(
                f"{name!r} is no dtype policy; use 'mixed_float16', 'mixed_bfloat16', or a dtype such as 'float32'."
            ) from None
        self._name = name

    @property
    def name(self) -> str:
        """What it was made of: "mixed_float16", "float32", …"""
        return self._name

    @property
    def compute_dtype(self) -> str:
        """The dtype to which a layer casts its floating-point inputs, and in which it reads its variables."""
        return self._compute_dtype

    @property
    def variable_dtype(self) -> str:
        """The dtype in which a layer makes its variables."""
        return self._variable_dtype

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {"name": self.name}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> DTypePolicy:
        """A policy made from what `get_config` returned."""
        return cls(**config)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, DTypePolicy) and self.name == other.name

    def __hash__(self) -> int:
        return hash(self.name)

    def __repr__(self) -> str:
        return f'<DTypePolicy "{self.name}">'


FloatDTypePolicy = DTypePolicy

_global: DTypePolicy | None = None


def dtype_policy() -> DTypePolicy:
    """The policy of layers that are not given one: as `set_dtype_policy` set it, else that of `config.floatx`."""
    return _global or DTypePolicy(dtypes.standardize_dtype(None))


def set_dtype_policy(policy: Any) -> None:
    """Set the policy of layers made from now on.

    Parameters
    ----------
    policy : DTypePolicy or str
        For example "mixed_bfloat16".
    """
    global _global
    _global = get(policy)


def get(identifier: Any) -> DTypePolicy:
    """A policy for a policy, its name, a dtype, its configuration, or None (the global one)."""
    if identifier is None:
        return dtype_policy()
    if isinstance(identifier, DTypePolicy):
        return identifier
    if isinstance(identifier, Mapping):
        return deserialize(identifier)
    return DTypePolicy(identifier if isinstance(identifier, str) else dtypes.standardize_dtype(identifier))


def serialize(policy: DTypePolicy) -> dict[str, Any]:
    """A policy in terms of what JSON knows."""
    return {"class_name": "DTypePolicy", "config": policy.get_config()}


def deserialize(config: Mapping[str, Any], custom_objects: Mapping[str, Any] | None = None) -> DTypePolicy:
    """The policy of a configuration; the inverse of `serialize`."""
    if config.get("class_name") not in ("DTypePolicy", "FloatDTypePolicy"):
        raise ArgumentError(f"{config.get('class_name')!r} is not a dtype policy of disttensor; it has DTypePolicy.")
    return DTypePolicy.from_config(dict(config["config"]))
