"""Mixed precision: Keras's older names for dtype policies, and the optimizer that scales the loss."""

from __future__ import annotations

from disttensor.dtype_policies import DTypePolicy, dtype_policy, set_dtype_policy
from disttensor.optimizers import LossScaleOptimizer

Policy = DTypePolicy
global_policy = dtype_policy
set_global_policy = set_dtype_policy

__all__ = [
    "DTypePolicy",
    "LossScaleOptimizer",
    "Policy",
    "dtype_policy",
    "global_policy",
    "set_dtype_policy",
    "set_global_policy",
]
