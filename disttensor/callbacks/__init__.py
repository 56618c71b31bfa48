"""Callbacks: what watches and steers training."""

from __future__ import annotations

from disttensor.callbacks.callback import Callback, LambdaCallback
from disttensor.callbacks.callback_list import CallbackList
from disttensor.callbacks.history import History

__all__ = ["Callback", "CallbackList", "History", "LambdaCallback"]
