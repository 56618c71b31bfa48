"""Callbacks: what watches and steers training."""

from __future__ import annotations

from disttensor.callbacks.backup_and_restore import BackupAndRestore
from disttensor.callbacks.callback import Callback, LambdaCallback, now_and_then
from disttensor.callbacks.callback_list import CallbackList
from disttensor.callbacks.csv_logger import CSVLogger
from disttensor.callbacks.early_stopping import EarlyStopping
from disttensor.callbacks.history import History
from disttensor.callbacks.learning_rate_scheduler import LearningRateScheduler
from disttensor.callbacks.learning_rate_warmup import LearningRateWarmup
from disttensor.callbacks.model_checkpoint import ModelCheckpoint
from disttensor.callbacks.progress import ProgbarLogger
from disttensor.callbacks.reduce_lr_on_plateau import ReduceLROnPlateau
from disttensor.callbacks.step_profile import StepProfile
from disttensor.callbacks.straggler_report import StragglerReport
from disttensor.callbacks.terminate_on_nan import TerminateOnNaN
from disttensor.callbacks.timeline import Timeline

__all__ = [
    "BackupAndRestore",
    "CSVLogger",
    "Callback",
    "CallbackList",
    "EarlyStopping",
    "History",
    "LambdaCallback",
    "LearningRateScheduler",
    "LearningRateWarmup",
    "ModelCheckpoint",
    "ProgbarLogger",
    "ReduceLROnPlateau",
    "StepProfile",
    "StragglerReport",
    "TerminateOnNaN",
    "Timeline",
    "now_and_then",
]
