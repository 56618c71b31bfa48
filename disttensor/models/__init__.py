"""Models: functional, sequential and subclassed."""

from __future__ import annotations

from disttensor.models.model import Model
from disttensor.models.sequential import Sequential

__all__ = ["Model", "Sequential"]
