"""The launcher's one exception."""

from __future__ import annotations


class LaunchError(Exception):
    """The program cannot be started as asked; the message says what to do."""
