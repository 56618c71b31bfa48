"""Who takes part: our own package and its peers, each with what its process needs."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
PEERS_ENVIRONMENT = ROOT / ".venv-peers"
"""The environment that `python -m benchmarks install` makes."""


@dataclass(frozen=True)
class Contestant:
    """A framework in one way of using it.

    Attributes
    ----------
    name : str
    framework : str
        The module to import.
    session : str
        The module of `benchmarks.workloads` that trains with it.
    distributions : tuple of str
        Whose versions are reported; those that are not installed are left out.
    options : dict
        Passed to the session.
    variables : dict of str to str
        Of the process's environment.
    """

    name: str
    framework: str
    session: str
    distributions: tuple[str, ...]
    options: dict[str, Any] = field(default_factory=dict)
    variables: dict[str, str] = field(default_factory=dict)

    @property
    def python(self) -> Path:
        """The interpreter that has the framework."""
        return Path(sys.executable) if self.name == OURS else PEERS_ENVIRONMENT / "bin" / "python"


OURS = "disttensor"

_TENSORFLOW = {"KERAS_BACKEND": "tensorflow", "TF_CPP_MIN_LOG_LEVEL": "2"}
_TF_DISTRIBUTIONS = ("keras", "tensorflow", "tensorflow-cpu")

CONTESTANTS = {
    contestant.name: contestant
    for contestant in (
        Contestant(OURS, "disttensor", "keras_like", ("disttensor", "numpy", "numba")),
        Contestant("torch", "torch", "torch_steps", ("torch",), {"compiled": False}),
        Contestant("torch-compile", "torch", "torch_steps", ("torch",), {"compiled": True}),
        Contestant("jax", "jax", "jax_steps", ("jax", "jaxlib")),
        Contestant("keras-tf", "keras", "keras_like", _TF_DISTRIBUTIONS, {"jit_compile": False}, _TENSORFLOW),
        Contestant("keras-tf-jit", "keras", "keras_like", _TF_DISTRIBUTIONS, {"jit_compile": True}, _TENSORFLOW),
        Contestant("keras-jax", "keras", "keras_like", ("keras", "jax"), {}, {"KERAS_BACKEND": "jax"}),
    )
}
"""All contestants by name; the first is ours."""

PEERS = tuple(name for name in CONTESTANTS if name != OURS)


def cache_variables(folder: str) -> dict[str, str]:
    """The variables that make every contestant keep compiled code in `folder` (JAX keeps none unless told to)."""
    return {"XDG_CACHE_HOME": folder, "NUMBA_CACHE_DIR": folder, "TORCHINDUCTOR_CACHE_DIR": folder}
