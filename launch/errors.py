"""The launcher's one exception."""

from __future__ import annotations

from collections.abc import Mapping


class LaunchError(Exception):
    """The program cannot be started as asked; the message says what to do."""


def require_positive(options: Mapping[str, int | None]) -> None:
    """Require that these options, by name, are at least 1 where they are given.

    Raises
    ------
    LaunchError
        Names the first that is not.
    """
    for option, value in options.items():
        if value is not None and value < 1:
            raise LaunchError(f"{option} {value} must be at least 1.")
