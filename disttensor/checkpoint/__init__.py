"""Checkpoints: what lets a run that was killed go on with the next step.

`CheckpointManager` saves and finds them; `Checkpoint` reads one. `fit` does both by itself with the callback
`disttensor.callbacks.BackupAndRestore`.
"""

from __future__ import annotations

from disttensor.checkpoint.checkpoint import Checkpoint, find_checkpoints
from disttensor.checkpoint.interval import best_interval
from disttensor.checkpoint.manager import CheckpointManager
from disttensor.checkpoint.packing import pack, unpack

__all__ = ["Checkpoint", "CheckpointManager", "best_interval", "find_checkpoints", "pack", "unpack"]
